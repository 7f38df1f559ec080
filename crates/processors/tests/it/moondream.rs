//! Moondream 2's prompts, which depend on the age of a checkpoint.

use ocelli_formats::{Config, ModelFiles};
use ocelli_processors::{ChatOptions, Message, Processor};
use serde_json::{Value, json};

use crate::support::{family, noise, processor, variant};

/// The first id of a prompt, which tells the generation; `end` is the id of the token that ends texts.
fn begins_with(versions: Option<&str>, end: u32) -> Result<u32, String> {
    let mut tokenizer: Value =
        serde_json::from_slice(&std::fs::read(family("moondream2").join("tokenizer.json")).unwrap()).unwrap();
    tokenizer["model"]["vocab"]["<|endoftext|>"] = end.into();
    tokenizer["added_tokens"] = json!([{
        "id": end, "content": "<|endoftext|>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true,
    }]);
    let config = json!({"architectures": ["HfMoondream"], "model_type": "moondream1", "config": {}});
    let mut files = vec![("config.json", config.to_string()), ("tokenizer.json", tokenizer.to_string())];
    files.extend(versions.map(|versions| ("versions.txt", versions.to_owned())));
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
    let folder = variant("moondream2", &files);
    let files = ModelFiles::open(folder.path()).unwrap();
    let processor = Processor::load(&files, &Config::load(&files).unwrap()).map_err(|error| error.to_string())?;
    let prompt = processor.chat_prompt(&[Message::text("user", "why")], &[], &ChatOptions::answer()).unwrap();
    Ok(prompt.ids[0])
}

#[test]
fn prompts_are_those_of_the_revision_or_else_of_the_tokenizer() {
    const GPT2: u32 = 50_256;
    assert_eq!(begins_with(None, GPT2), Ok(GPT2));
    assert_eq!(begins_with(None, 420), Ok(0));
    assert_eq!(begins_with(Some("2024-08-26\n2025-01-09\n2025-04-14\n"), GPT2), Ok(GPT2));
    assert_eq!(begins_with(Some("2025-04-14\n2025-06-21\n"), 420), Ok(0));
    // What the repository holds: the tokenizer is not the one that the model was trained with.
    let error = begins_with(Some("2025-04-14\n2025-06-21\n"), GPT2).unwrap_err();
    assert!(
        error.contains("tokenizer.json is not a usable tokenizer: it is GPT-2's, but revision 2025-06-21"),
        "{error}"
    );
    assert!(error.ends_with("put tokenizer.json of moondream/starmie-v1 in its place"), "{error}");
}

#[test]
fn a_single_crop_is_the_whole_picture_and_not_there_twice() {
    let images = processor(family("moondream2")).into_image_processor().unwrap();
    let tiles = |width, height| {
        let prepared = images.prepare(&noise(1, width, height)).unwrap();
        (prepared.shape[0], prepared.grid)
    };
    for (width, height) in [(378, 378), (224, 224), (1280, 300), (5, 900)] {
        assert_eq!(tiles(width, height), (1, [1, 1, 1]), "{width}x{height}");
    }
    assert_eq!(tiles(400, 380), (10, [1, 3, 3]));
}
