//! Models in the layouts of those who publish them, as whole folders, against what the references computed.

#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

use std::path::{Path, PathBuf};

use ocelli_engine::{EngineOptions, LoadedModel, parity};
use ocelli_formats::{Checkpoint, ModelFiles};
use ocelli_testkit::write_mlx_whisper;
use serde_json::{Value, json};

fn fixture(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(family)
}

fn read(path: impl AsRef<Path>) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// FastVLM as Apple publishes it: its own names, nothing about pictures, a vocabulary and merges for a tokenizer.
#[test]
fn apple_s_fast_vlm() {
    let folder = tempfile::tempdir().unwrap();
    let copy = |from: &Path, names: &[&str]| {
        for name in names {
            std::fs::copy(from.join(name), folder.path().join(name)).unwrap();
        }
    };
    let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
    let apple = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/data/fast_vlm_apple");
    copy(&apple, &["config.json", "model.safetensors"]);
    copy(&fixture("fast_vlm"), &["reference.json", "reference.safetensors", "image0.png", "generation_config.json"]);
    let tokenizer = read(fixture("fast_vlm").join("tokenizer.json"));
    let merge = |pair: &Value| format!("{} {}\n", pair[0].as_str().unwrap(), pair[1].as_str().unwrap());
    let merges: String = tokenizer["model"]["merges"].as_array().unwrap().iter().map(merge).collect();
    write("vocab.json", tokenizer["model"]["vocab"].to_string());
    write("merges.txt", format!("#version: 0.2\n{merges}"));
    let added = tokenizer["added_tokens"].as_array().unwrap().iter().filter(|token| token["content"] != "<image>");
    let added: Value = added.map(|token| (token["id"].to_string(), token.clone())).collect();
    let config = json!({
        "tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": added, "bos_token": null,
        "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
    });
    write("tokenizer_config.json", config.to_string());
    let report = parity::check(folder.path()).unwrap();
    assert!(report.passed(), "{report}");
    assert!(report.rows.iter().any(|row| row.name == "out.greedy_ids"), "{report}");
}

/// Whisper as MLX publishes it, with the tokenizer that its folders lack: nothing about spectrograms either.
#[test]
fn mlx_s_whisper() {
    let folder = tempfile::tempdir().unwrap();
    let source = fixture("whisper");
    write_mlx_whisper(&Checkpoint::open(&ModelFiles::open(&source).unwrap()).unwrap(), folder.path(), None);
    let error = LoadedModel::load(&ModelFiles::open(folder.path()).unwrap(), &EngineOptions::new()).err().unwrap();
    assert!(error.to_string().ends_with(" has no tokenizer.json: MLX's folders of Whisper leave it out"), "{error}");
    assert!(error.hint().unwrap().contains("openai/whisper"), "{error}");
    for name in
        ["reference.json", "reference.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
    {
        std::fs::copy(source.join(name), folder.path().join(name)).unwrap();
    }
    let report = parity::check(folder.path()).unwrap();
    assert!(report.passed(), "{report}");
    for name in ["in.input_features", "out.audio_features", "out.greedy_ids"] {
        assert!(report.rows.iter().any(|row| row.name == name), "{name}: {report}");
    }
}
