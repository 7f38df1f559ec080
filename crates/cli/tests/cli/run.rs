//! `ocelli run`: one prompt.

use crate::support::{Scratch, picture, repository};

#[test]
fn a_question_about_a_picture() {
    let scratch = Scratch::with_pictures();
    let ran = scratch.run(["run", "--image", "pics/a.png", "Describe the image."]);
    assert_eq!(ran.ok(), scratch.run(["describe", "pics/a.png"]).ok());
    let ran = scratch.run_with_input(["run", "--image", "-", "Describe the image."], &picture());
    assert_eq!(ran.ok(), scratch.run(["describe", "pics/a.png"]).ok());
}

#[test]
fn a_prompt_from_standard_input() {
    let scratch = Scratch::with_pictures();
    let direct = scratch.run(["run", "--image", "pics/a.png", "How many shapes are there?"]);
    let piped = scratch.run_with_input(["run", "--image", "pics/a.png", "-"], b"How many shapes are there?\n");
    assert_eq!(direct.ok(), piped.ok());
}

#[test]
fn several_pictures_are_lists_in_json() {
    let scratch = Scratch::with_pictures();
    let arguments = ["run", "--json", "--max-tokens", "2", "-i", "pics/a.png", "-i", "pics/c.png", "What changed?"];
    let ran = scratch.run(arguments);
    ran.ok();
    let object = &ran.objects()[0];
    assert_eq!(object["image"], serde_json::json!(["pics/a.png", "pics/c.png"]));
    assert_eq!(object["image_size"].as_array().unwrap().len(), 2);
}

#[test]
fn a_text_model_continues_a_raw_prompt() {
    let scratch = Scratch::new();
    let model = repository("fixtures/qwen2");
    let arguments = ["run", "--raw", "hello", "--max-tokens", "5", "--json", "--model", model.to_str().unwrap()];
    let ran = scratch.run(arguments);
    ran.ok();
    let object = &ran.objects()[0];
    assert!(object["image"].is_null() && object["image_size"].is_null());
    assert_eq!(object["vision_tokens"], 0);
    assert!(object["completion_tokens"].as_u64() <= Some(5));
}

#[test]
fn a_failure_is_an_object_too() {
    let scratch = Scratch::with_pictures();
    let ran = scratch.run(["run", "--json", "--image", "pics/b.png", "What is this?"]);
    assert_eq!(ran.code, 1);
    let object = &ran.objects()[0];
    assert!(object["error"].as_str().unwrap().starts_with("pics/b.png: "), "{ran:?}");
    assert!(ran.stderr.starts_with("error: pics/b.png: "));
    let ran = scratch.run(["run", "--raw", ""]);
    assert_eq!((ran.code, ran.stderr.as_str()), (1, "error: the prompt is empty\n"));
}
