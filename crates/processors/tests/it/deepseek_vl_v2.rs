//! DeepSeek-VL2: its own chat template, and when pictures are cut into tiles. The pixels are compared by `eval parity`.

use crate::support::{family, noise, processor};
use ocelli_processors::{ChatOptions, Content, Detail, Message};
use serde_json::Value;

fn user(content: Vec<Content>) -> Message {
    Message { role: "user".to_owned(), content }
}

#[test]
fn a_chat_is_the_prompt_that_the_reference_was_given() {
    let processor = processor(family("deepseek_vl_v2"));
    let reference = std::fs::read(family("deepseek_vl_v2").join("reference.json")).unwrap();
    let reference: Value = serde_json::from_slice(&reference).unwrap();
    let image = [noise(1, 150, 90)];
    let question = user(vec![Content::Image, Content::Text("what is in the picture?".to_owned())]);
    let prompt = processor.chat_prompt(&[question], &image, &ChatOptions::answer()).unwrap();
    let expected = processor.raw_prompt(reference["prompt"].as_str().unwrap(), &image).unwrap();
    assert_eq!((prompt.text, prompt.ids), (expected.text, expected.ids));
}

#[test]
fn a_conversation_is_as_published() {
    let processor = processor(family("deepseek_vl_v2_tiny"));
    let messages = [
        Message::text("system", "Be brief."),
        user(vec![Content::Text("Hi".to_owned())]),
        Message::text("assistant", "Yes?"),
        user(vec![Content::Text("Why?".to_owned())]),
    ];
    let prompt = processor.chat_prompt(&messages, &[], &ChatOptions::answer()).unwrap();
    let expected = "<｜begin▁of▁sentence｜>Be brief.\n\n<|User|>: Hi\n\n<|Assistant|>: Yes?<｜end▁of▁sentence｜>\
                    <|User|>: Why?\n\n<|Assistant|>:";
    assert_eq!(prompt.text, expected);
}

#[test]
fn of_more_than_two_pictures_none_is_cut() {
    let processor = processor(family("deepseek_vl_v2"));
    let tiles = |n_images: usize, detail| {
        let images: Vec<_> = (0..n_images).map(|seed| noise(seed as u32, 150, 90)).collect();
        let options = ChatOptions { detail, ..ChatOptions::answer() };
        let prompt = processor.chat_prompt(&[user(vec![Content::Image; n_images])], &images, &options).unwrap();
        prompt.images.iter().map(|image| image.shape[0]).collect::<Vec<_>>()
    };
    assert_eq!(tiles(2, Detail::Auto), [5, 5]);
    assert_eq!(tiles(3, Detail::Auto), [1, 1, 1]);
    assert_eq!(tiles(1, Detail::Low), [1]);
    assert_eq!(tiles(3, Detail::High), [5, 5, 5]);
}
