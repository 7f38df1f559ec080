//! FastVLM's folders as Apple publishes them: no settings for pictures, a text model's chat template, no `<image>`.

use std::path::{Path, PathBuf};

use ocelli_formats::{ModelFiles, Safetensors};
use ocelli_processors::{ChatOptions, Content, Error, Image, ImageLimits, Message, Processor, decode_image};
use serde_json::Value;

use crate::support::{family, processor};

/// A text model's template, which takes a turn for a string.
const TEXT_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content \
                             + '<|im_end|>\\n' }}{% endfor %}<|im_start|>assistant\\n";

/// A folder with Apple's config, changed by `change`, and the converted fixture's tokenizer without its `<image>`.
fn apple(change: impl Fn(&mut Value)) -> tempfile::TempDir {
    let read = |path: PathBuf| -> Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/data/fast_vlm_apple");
    let mut config = read(data.join("config.json"));
    change(&mut config);
    let mut tokenizer = read(family("fast_vlm").join("tokenizer.json"));
    tokenizer["added_tokens"].as_array_mut().unwrap().retain(|token| token["content"] != "<image>");
    let folder = tempfile::tempdir().unwrap();
    for (name, value) in [
        ("config.json", config),
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", serde_json::json!({ "chat_template": TEXT_TEMPLATE })),
    ] {
        std::fs::write(folder.path().join(name), value.to_string()).unwrap();
    }
    folder
}

fn picture() -> Image {
    decode_image(&std::fs::read(family("fast_vlm").join("image0.png")).unwrap(), &ImageLimits::default()).unwrap()
}

fn ask(processor: &Processor, question: &str) -> ocelli_processors::Prompt {
    let content = vec![Content::Image, Content::Text(question.into())];
    let messages = [Message { role: "user".into(), content }];
    processor.chat_prompt(&messages, &[picture()], &ChatOptions::answer()).unwrap()
}

#[test]
fn a_conversation_gives_the_reference_s_ids_and_pixels() {
    let folder = apple(|_| ());
    let prompt = ask(&processor(&folder), "describe this image in detail.");
    let files = ModelFiles::open(family("fast_vlm")).unwrap();
    let bytes = files.bytes("reference.safetensors").unwrap().unwrap();
    let reference = Safetensors::parse(bytes, "reference.safetensors").unwrap();
    let ids = reference.tensor("in.input_ids").unwrap().to_i64().unwrap();
    assert_eq!(prompt.ids.iter().map(|&id| i64::from(id)).collect::<Vec<_>>(), ids);
    assert_eq!(prompt.images[0].pixel_values, reference.tensor("in.pixel_values").unwrap().to_f32().unwrap());
}

#[test]
fn a_user_who_writes_the_token_means_the_word() {
    let folder = apple(|_| ());
    let prompt = ask(&processor(&folder), "what is <image>?");
    assert_eq!(prompt.ids.iter().filter(|&&id| id == 423).count(), prompt.images[0].vision_tokens);
    assert!(prompt.text.ends_with("what is <image>?<|im_end|>\n<|im_start|>assistant\n"), "{}", prompt.text);
}

#[test]
fn what_the_tower_is_not_made_for_is_named() {
    for (key, value, expected) in [
        ("image_aspect_ratio", "anyres", "anyres is not supported (expected pad)"),
        ("mm_vision_tower", "mobileclip_l_7", "mobileclip_l_7 is not supported"),
    ] {
        let folder = apple(|config| config[key] = value.into());
        let files = ModelFiles::open(folder.path()).unwrap();
        let config = ocelli_formats::Config::load(&files).unwrap();
        let error = Processor::load(&files, &config).unwrap_err();
        assert!(matches!(error, Error::Files(_)), "{error:?}");
        assert!(error.to_string().contains(key) && error.to_string().contains(expected), "{error}");
    }
}
