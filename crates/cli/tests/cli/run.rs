//! `ocelli run`: one prompt.

use std::path::{Path, PathBuf};

use crate::support::{Ran, Scratch, picture, repository};

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

/// What a Qwen2.5-VL reads of a prompt with a video.
const WITH_VIDEO: [&str; 5] =
    ["--raw", "--json", "--max-tokens", "2", "<|vision_start|><|video_pad|><|vision_end|>what happens?"];

#[test]
fn a_video_is_a_file_or_a_folder_of_frames() {
    let scratch = Scratch::new();
    let model = repository("fixtures/qwen2_5_vl");
    let clip = repository("fixtures/qwen2_5_vl_video/video0.gif");
    let run = |video: &Path, more: &[&str]| {
        let mut arguments = vec!["run".into(), "--model".into(), model.clone(), "--video".into(), video.to_path_buf()];
        arguments.extend(WITH_VIDEO.iter().chain(more).map(PathBuf::from));
        scratch.run(&arguments)
    };
    let tokens = |ran: &Ran| {
        ran.ok();
        ran.objects()[0]["vision_tokens"].as_u64().unwrap()
    };
    // 3 pairs of frames of 4 x 2 tokens, and 2 pairs.
    assert_eq!(tokens(&run(&clip, &["--fps", "3"])), 24);
    assert_eq!(tokens(&run(&clip, &["--fps", "3", "--max-frames", "5"])), 16);
    let frame = std::fs::read(repository("fixtures/qwen2_5_vl_video/image0.png")).unwrap();
    scratch.write("frames/1.png", &frame);
    let first = scratch.write("frames/2.png", &frame);
    let ran = run(first.parent().unwrap(), &["--verbose"]);
    // A pair of frames of 3 x 3 tokens.
    assert_eq!(tokens(&ran), 9);
    assert!(ran.stderr.contains("video 90x84, 2 frames seen as 84x84"), "{ran:?}");
    // More than the context: of the other frames, which are none, not one is read.
    for number in 3..200 {
        scratch.write(&format!("frames/{number}.png"), b"no picture");
    }
    let long = run(first.parent().unwrap(), &[]);
    assert!(long.code == 1 && long.stderr.contains("tokens, but the model's context is 512\nhint: "), "{long:?}");
    assert!(long.stderr.contains("199 frames of the video") && long.stderr.contains("--max-frames"), "{long:?}");

    let gone = run(Path::new("gone.mp4"), &[]);
    assert_eq!((gone.code, gone.objects()[0]["error"].as_str()), (1, Some("gone.mp4: no such file")));
    let zero = run(&clip, &["--fps", "0"]);
    assert!(zero.code == 2 && zero.stderr.contains("expected a number above 0"), "{zero:?}");
    let still = repository("fixtures/idefics3");
    let still = ["run".as_ref(), "--raw".as_ref(), "--model".as_ref(), still.as_path(), "--video".as_ref(), &clip];
    let still = scratch.run(still.iter().map(|part| part.as_os_str()).chain(["what happens?".as_ref()]));
    assert_eq!(still.code, 3);
    assert!(still.stderr.contains("takes no videos\nhint: these do: qwen2_5_vl, "), "{still:?}");
}
