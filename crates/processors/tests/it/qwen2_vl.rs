//! Qwen2-VL and its successors: conversations with several pictures, and where settings stand. The pixels are compared by
//! `eval parity`.

use crate::support::{family, noise, processor, variant};
use ocelli_formats::{Config, ModelFiles};
use ocelli_processors::{ChatOptions, Content, Message, image_processor};
use serde_json::{Value, json};

/// Does with system prompts and pictures what the published template does.
const TEMPLATE: &str = "{% for message in messages %}\
    {% if loop.first and message.role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}\
    <|im_start|>{{ message.role }}\n\
    {% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}\
    {% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}\
    {% endfor %}{% endif %}<|im_end|>\n\
    {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

#[test]
fn a_chat_with_two_pictures_is_the_text_that_the_reference_was_given() {
    for name in ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"] {
        let template = json!({"chat_template": TEMPLATE}).to_string();
        let processor = processor(variant(name, &[("chat_template.json", &template)]).path());
        let images = ["image0.png", "image1.png"].map(|file| std::fs::read(family(name).join(file)).unwrap());
        let images = images.map(|bytes| processor.decode_image(&bytes).unwrap());
        let reference = std::fs::read(family(name).join("reference.json")).unwrap();
        let reference: Value = serde_json::from_slice(&reference).unwrap();
        let text = Content::Text("describe this image in detail.".to_owned());
        let content = vec![Content::Image, Content::Image, text];
        let message = Message { role: "user".to_owned(), content };
        let prompt = processor.chat_prompt(&[message], &images, &ChatOptions::answer()).unwrap();
        let expected = processor.raw_prompt(reference["prompt"].as_str().unwrap(), &images).unwrap();
        assert_eq!((&prompt.text, &prompt.ids), (&expected.text, &expected.ids), "{name}");
        let tokens: Vec<u64> = prompt.images.iter().map(|image| image.vision_tokens as u64).collect();
        assert_eq!(json!(tokens), reference["tokens_per_image"], "{name}");
    }
}

#[test]
fn areas_have_three_spellings() {
    let image = noise(2, 300, 200);
    let sizes = [
        json!({"min_pixels": 3136, "max_pixels": 20_000}),
        json!({"size": {"shortest_edge": 3136, "longest_edge": 20_000}}),
        json!({"size": {"min_pixels": 3136, "max_pixels": 20_000}}),
    ];
    let prepared = sizes.map(|settings| {
        let folder = variant("qwen2_vl", &[("preprocessor_config.json", &settings.to_string())]);
        let prepared = processor(folder.path()).into_image_processor().unwrap().prepare(&image).unwrap();
        (prepared.grid, prepared.content_hash)
    });
    assert_eq!(prepared[0].0, [1, 8, 12]);
    assert!(prepared[1] == prepared[0] && prepared[2] == prepared[0], "{prepared:?}");
}

/// Re-saved configs have the old and the new name of a key.
#[test]
fn channels_may_be_named_twice() {
    let config = std::fs::read(family("qwen2_vl").join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    config["vision_config"]["in_chans"] = 3.into();
    let folder = variant("qwen2_vl", &[("config.json", &config.to_string())]);
    assert!(processor(folder.path()).has_images());
}

#[test]
fn settings_that_do_not_fit_the_tower_are_errors() {
    let error = |settings: Value| {
        let folder = variant("qwen2_vl", &[("preprocessor_config.json", &settings.to_string())]);
        let files = ModelFiles::open(folder.path()).unwrap();
        image_processor(&files, &Config::load(&files).unwrap()).err().expect("an error").to_string()
    };
    for (settings, expected) in [
        (json!({"patch_size": 16}), "vision_config.patch_size: 14 does not fit pictures prepared for 16"),
        (json!({"merge_size": 0}), "merge_size: expected 1 to 256, got 0"),
        (json!({"min_pixels": 9, "max_pixels": 4}), "min_pixels: expected 1 to 4, got 9"),
        (json!({"max_pixels": 1u64 << 40}), "max_pixels: expected 1 to 268435456"),
        (json!({"do_resize": false}), "do_resize: false is not supported"),
        (json!({"resample": 9}), "resample: expected a filter number from 0 to 5, got 9"),
    ] {
        let error = error(settings);
        assert!(error.contains(expected), "{error}");
    }
}
