//! Folders without `tokenizer.json`: the same ids as transformers' tokenizer classes give, and what is missing is
//! named.

use std::path::Path;

use ocelli_formats::{Config, ModelFiles};
use ocelli_processors::{Error, Processor, Tokenizer};
use serde_json::{Value, json};

use crate::support::{family, fixture, ids};

/// Vocabulary and merges of a `tokenizer.json` in the old form, as `make_tokenizer_fixture.py` writes them.
pub(crate) fn write_parts(tokenizer: &Path, folder: &Path) {
    let model = serde_json::from_slice::<Value>(&std::fs::read(tokenizer).unwrap()).unwrap()["model"].take();
    let write = |name: &str, text: String| std::fs::write(folder.join(name), text).unwrap();
    if model["type"] == "WordPiece" {
        let mut tokens: Vec<_> = model["vocab"].as_object().unwrap().iter().collect();
        tokens.sort_by_key(|(_, id)| id.as_u64());
        return write("vocab.txt", tokens.iter().map(|(token, _)| format!("{token}\n")).collect());
    }
    let pair = |pair: &Value| format!("{} {}\n", pair[0].as_str().unwrap(), pair[1].as_str().unwrap());
    let merges: String = model["merges"].as_array().unwrap().iter().map(pair).collect();
    write("vocab.json", model["vocab"].to_string());
    write("merges.txt", format!("#version: 0.2\n{merges}"));
}

fn folder_of(case: &Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), "{}").unwrap();
    write_parts(&family(case["model"].as_str().unwrap()).join("tokenizer.json"), folder.path());
    for (name, content) in case["files"].as_object().unwrap() {
        std::fs::write(folder.path().join(name), content.to_string()).unwrap();
    }
    folder
}

fn load(folder: &Path) -> Result<Tokenizer, Error> {
    Tokenizer::load(&ModelFiles::open(folder).unwrap())
}

#[test]
fn the_ids_are_those_of_the_reference_s_classes() {
    let fixture = fixture("tokenizers.json");
    let texts: Vec<&str> = fixture["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    for case in fixture["cases"].as_array().unwrap() {
        let tokenizer = load(folder_of(case).path()).unwrap();
        let label = &case["files"]["tokenizer_config.json"];
        for (at, text) in texts.iter().enumerate() {
            let (bare, framed) = (ids(&case["bare"][at]), ids(&case["framed"][at]));
            assert_eq!(tokenizer.encode(text, false).unwrap(), bare, "{text:?} {label}");
            assert_eq!(tokenizer.encode(text, true).unwrap(), framed, "{text:?} {label}");
            assert_eq!(case["back"][at], tokenizer.decode(&bare, true).unwrap(), "{text:?} {label}");
        }
        let named: Vec<_> = tokenizer.named_tokens().collect();
        for (role, token) in case["named"].as_object().unwrap() {
            let found = named.iter().find(|(name, _)| name == role).map(|(_, token)| *token);
            assert_eq!(found, token.as_str(), "{role} {label}");
        }
    }
}

#[test]
fn vocabulary_and_merges_are_the_tokenizer_they_are_from() {
    let opt = json!({
        "tokenizer_class": "GPT2Tokenizer", "add_bos_token": true, "bos_token": "</s>", "eos_token": "</s>",
        "unk_token": "</s>",
    });
    let qwen = json!({"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>"});
    for (model, mut config) in [("fast_vlm", qwen), ("blip2_opt", opt)] {
        let whole = family(model).join("tokenizer.json");
        let added = serde_json::from_slice::<Value>(&std::fs::read(&whole).unwrap()).unwrap()["added_tokens"].take();
        let by_id = |token: &Value| (token["id"].to_string(), token.clone());
        config["added_tokens_decoder"] = added.as_array().unwrap().iter().map(by_id).collect();
        let folder = folder_of(&json!({"model": model, "files": {"tokenizer_config.json": config}}));
        let (parts, whole) = (load(folder.path()).unwrap(), load(&family(model)).unwrap());
        for text in fixture("tokenizers.json")["texts"].as_array().unwrap() {
            let text = text.as_str().unwrap();
            assert_eq!(parts.encode(text, true).unwrap(), whole.encode(text, true).unwrap(), "{text:?}");
            assert_eq!(parts.encode_literal(text).unwrap(), whole.encode_literal(text).unwrap(), "{text:?}");
        }
        assert!(parts.file().ends_with("vocab.json") && whole.file().ends_with("tokenizer.json"));
    }
}

#[test]
fn what_is_missing_is_named() {
    let case = |config: Value| json!({"model": "qwen2", "files": {"tokenizer_config.json": config}});
    let folder = folder_of(&case(json!({"tokenizer_class": "Qwen2Tokenizer"})));
    std::fs::remove_file(folder.path().join("merges.txt")).unwrap();
    let error = load(folder.path()).unwrap_err();
    assert!(matches!(error, Error::NoTokenizer { .. }));
    assert!(error.to_string().ends_with(" has no tokenizer.json, no merges.txt"), "{error}");
    let error = load(folder_of(&case(json!({"tokenizer_class": "LlamaTokenizer"}))).path()).unwrap_err();
    assert!(matches!(error, Error::TokenizerClass { .. }));
    assert!(error.to_string().ends_with(" has no tokenizer.json, and a LlamaTokenizer cannot be made of other files"));
    let hint = error.hint().unwrap();
    assert!(hint.contains("save_pretrained") && hint.contains("these can: BertTokenizer, CodeGenTokenizer"), "{hint}");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), r#"{"model_type": "whisper", "n_mels": 80}"#).unwrap();
    let files = ModelFiles::open(folder.path()).unwrap();
    let error = Processor::load(&files, &Config::load(&files).unwrap()).unwrap_err();
    assert!(matches!(error, Error::NoSpeechTokenizer { .. }));
    assert!(error.to_string().ends_with(" has no tokenizer.json: MLX's folders of Whisper leave it out"), "{error}");
    assert!(error.hint().unwrap().contains("openai/whisper-large-v3-turbo"));
    let error = load(folder_of(&case(json!({}))).path()).unwrap_err();
    assert!(error.to_string().ends_with(" has no tokenizer.json"), "{error}");
}

#[test]
fn malformed_parts_are_named() {
    let message = |file: &str, text: &str, config: Value| {
        let config = json!({"model": "qwen2", "files": {"tokenizer_config.json": config}});
        let folder = folder_of(&config);
        if !file.is_empty() {
            std::fs::write(folder.path().join(file), text).unwrap();
        }
        let error = load(folder.path()).unwrap_err();
        assert!(matches!(error, Error::BadTokenizer { .. }), "{error:?}");
        error.to_string()
    };
    let qwen = || json!({"tokenizer_class": "Qwen2Tokenizer"});
    assert!(message("vocab.json", "[]", qwen()).contains("vocab.json is not a usable tokenizer: "));
    assert!(message("vocab.json", r#"{"a": "b"}"#, qwen()).ends_with("the id of `a` is no number of 32 bits"));
    assert!(message("vocab.json", r#"{"a": 18446744073709551615}"#, qwen()).ends_with("no number of 32 bits"));
    assert!(message("merges.txt", "a b c\n", qwen()).contains("vocab.json is not a usable tokenizer: "));
    assert!(
        message("added_tokens.json", r#"{"<a>": "b"}"#, qwen())
            .ends_with("added_tokens.json is not a usable tokenizer: not ids by token")
    );
    assert!(
        message("added_tokens.json", r#"{"<a>": 3}"#, qwen()).ends_with("the id 3 of `<a>` is not the vocabulary's")
    );
    let listed = json!({"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": {"x": {"content": "y"}}});
    assert!(message("", "", listed).ends_with("added_tokens_decoder: not tokens by id"));
    let bert = json!({"tokenizer_class": "BertTokenizer", "cls_token": null});
    assert!(
        message("vocab.txt", "a\nb\n", bert)
            .ends_with("tokenizer_config.json is not a usable tokenizer: cls_token: missing")
    );
}
