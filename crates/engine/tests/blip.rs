//! BLIP's own ways: captions without a prompt, the end of an answer, configs of another era.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::path::{Path, PathBuf};

use ocelli_engine::{
    Engine, EngineOptions, Error, FinishDetail, GenerateOptions, LoadedModel, ModelInfo, Request, TranscribeOptions,
    parity,
};
use ocelli_formats::{ModelFiles, Safetensors};

fn folder(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(family)
}

fn copy(family: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for name in ModelFiles::open(folder(family)).unwrap().names().unwrap() {
        let path = copy.path().join(&name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::copy(folder(family).join(&name), path).unwrap();
    }
    copy
}

fn end_ids(family: &str) -> Vec<u32> {
    let files = ModelFiles::open(folder(family)).expect("a fixture");
    LoadedModel::load(&files, &EngineOptions::new()).expect("a fixture loads").end_ids
}

#[test]
fn a_caption_without_a_prompt_equals_the_reference() {
    let files = ModelFiles::open(folder("blip_caption")).unwrap();
    let reference = files.bytes("reference.safetensors").unwrap().unwrap();
    let reference = Safetensors::parse(reference, "the reference").unwrap();
    let engine = Engine::load(&files, &EngineOptions::new()).unwrap();
    let image = engine.processor().decode_image(&std::fs::read(folder("blip_caption").join("image0.png")).unwrap());
    let image = image.unwrap();
    for (name, num_beams) in [("out.uncond_greedy_ids", 1), ("out.uncond_beam3_ids", 3)] {
        let expected = reference.tensor(name).unwrap().to_i64().unwrap();
        let options = GenerateOptions { num_beams, max_tokens: Some(expected.len() - 1), ..GenerateOptions::greedy() };
        for request in [
            Request::question("", vec![image.clone()], options.clone()),
            Request::raw("", vec![image.clone()], options),
        ] {
            let answer = engine.answer(request).unwrap();
            // The reference begins with [DEC].
            assert!(answer.token_ids.iter().map(|&id| i64::from(id)).eq(expected[1..].iter().copied()), "{name}");
        }
    }
}

#[test]
fn answers_end_as_the_reference_ends_them() {
    // [SEP], which no generation config names.
    assert_eq!([end_ids("blip_caption"), end_ids("blip_vqa")], [[3], [3]]);
    assert_eq!(end_ids("blip2_opt"), [421]);
    assert_eq!(end_ids("instructblip"), [1, 2]);
}

#[test]
fn a_recommended_length_counts_what_the_decoder_begins_with() {
    let copy = copy("blip_caption");
    std::fs::write(copy.path().join("generation_config.json"), r#"{"max_length": 6}"#).unwrap();
    let engine = Engine::load(&ModelFiles::open(copy.path()).unwrap(), &EngineOptions::new()).unwrap();
    let image = std::fs::read(copy.path().join("image0.png")).unwrap();
    let image = engine.processor().decode_image(&image).unwrap();
    let options = GenerateOptions { min_tokens: 5, ..GenerateOptions::greedy() };
    let options = options.with_defaults_of(&engine.info().generation_defaults);
    let answer = engine.answer(Request::question("", vec![image], options)).unwrap();
    // [DEC] and five more.
    assert_eq!((answer.token_ids.len(), answer.finish_detail), (5, FinishDetail::MaxTokens));
}

#[test]
fn what_is_looked_at_is_counted_before_memory_is_spent() {
    let files = ModelFiles::open(folder("blip_caption")).unwrap();
    let info = ModelInfo::read(&files).unwrap();
    let image = std::fs::read(folder("blip_caption").join("image0.png")).unwrap();
    let ask = |cached_tokens: usize| {
        let limit = info.weight_bytes + cached_tokens as u64 * info.kv_bytes_per_token as u64;
        let options = EngineOptions { memory_limit: Some(limit), ..EngineOptions::new() };
        let engine = Engine::load(&files, &options).unwrap();
        let image = engine.processor().decode_image(&image).unwrap();
        let options = GenerateOptions { max_tokens: Some(4), ..GenerateOptions::greedy() };
        engine.answer(Request::question("", vec![image], options))
    };
    // [DEC], four tokens, and nine patches with the picture's own state.
    assert!(matches!(ask(14), Err(Error::OutOfMemory { .. })));
    assert!(ask(15).is_ok());

    let files = ModelFiles::open(folder("whisper")).unwrap();
    let info = ModelInfo::read(&files).unwrap();
    let limit = info.weight_bytes + info.context_length as u64 * info.kv_bytes_per_token as u64;
    let options = EngineOptions { memory_limit: Some(limit), ..EngineOptions::new() };
    let engine = Engine::load(&files, &options).unwrap();
    let options = TranscribeOptions { num_beams: 1, ..TranscribeOptions::default() };
    let error = engine.transcribe(vec![0.0; 1600], options).find_map(Result::err).unwrap();
    assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
}

#[test]
fn a_config_without_an_image_token_equals_the_reference() {
    for family in ["blip2_opt", "instructblip"] {
        let copy = copy(family);
        let path = copy.path().join("config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config.as_object_mut().unwrap().remove("image_token_index").unwrap();
        std::fs::write(&path, config.to_string()).unwrap();
        let report = parity::check(copy.path()).unwrap();
        assert!(report.passed(), "{report}");
    }
}
