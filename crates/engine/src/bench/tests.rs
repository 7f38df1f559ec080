//! A measurement from its beginning to its end, of the demo model and of a tiny one that exists nowhere.

use ocelli_formats::ModelFiles;
use serde_json::json;

use super::*;
use crate::demo;

fn options() -> BenchOptions {
    BenchOptions {
        engine: EngineOptions { threads: Some(2), ..EngineOptions::new() },
        picture: Picture::Auto,
        detail: Detail::Auto,
        prompt_tokens: 5,
        max_tokens: 4,
        runs: 2,
        warmup: 1,
        beams: 1,
        batch: 1,
        products: false,
    }
}

/// SmolVLM's family, a few numbers wide: tiles of 16 x 16 pixels, 4 tokens each.
fn tiny() -> ModelFiles {
    let text = json!({
        "model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 64, "max_position_embeddings": 64,
    });
    let vision = json!({
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 16, "patch_size": 4,
    });
    let config = json!({
        "model_type": "smolvlm", "image_token_id": 60, "scale_factor": 2, "text_config": text, "vision_config": vision,
    });
    let settings = json!({ "size": { "longest_edge": 48 }, "max_image_size": { "longest_edge": 16 }, "resample": 1 });
    let files = [("config.json", config), ("preprocessor_config.json", settings)];
    let files = files.map(|(name, content)| (name.to_owned(), content.to_string().into_bytes()));
    ModelFiles::in_memory("tiny", files.into())
}

fn random(options: &BenchOptions) -> Result<Subject> {
    let mut subject = Subject::random(&tiny(), options)?;
    subject.shape = subject.prepare()?;
    Ok(subject)
}

#[test]
fn the_demo_model_is_measured() {
    let files = demo::files();
    let mut heard = Vec::new();
    let report = run(BenchModel::Files(&files), &options(), &mut |done, of| heard.push((done, of))).unwrap();
    assert_eq!(heard, [(0, 3), (1, 3), (2, 3), (3, 3)]);
    assert_eq!((report.runs.len(), report.prompt_tokens - report.vision_tokens), (2, 5));
    assert!(report.vision_tokens > 0 && report.runs.iter().all(|run| run.output_hash == report.output_hash));
    assert!(report.summary.values().all(|spread| spread.min > 0.0 && spread.median <= spread.max));
    assert!(report.loads.warm_ready_ms > report.loads.warm_load_ms && report.loads.cold_load_ms.is_none());
    let work = report.utilisation;
    assert!(work.vision.unwrap().per_second > 0.0 && work.prefill.share.share > 0.0 && work.decode.is_some());
    assert!(report.memory.activation_bytes > 0 && report.memory.picture_bytes > 0, "{:?}", report.memory);
    let without = BenchOptions { picture: Picture::None, ..options() };
    let report = run(BenchModel::Files(&files), &without, &mut |_, _| {}).unwrap();
    assert_eq!((report.prompt_tokens, report.runs[0].vision_ms), (5, None));
    assert!(report.utilisation.vision.is_none() && !report.summary.contains_key("preprocess_ms"));
}

#[test]
fn random_weights_make_a_model_that_answers() {
    let mut subject = random(&options()).unwrap();
    let ids = subject.prompt(5);
    assert_eq!(ids.len(), 4 + 5);
    let first = measure(&mut subject, &ids, &options()).unwrap();
    assert_eq!(measure(&mut subject, &ids, &options()).unwrap().output_hash, first.output_hash);
    assert_eq!(measure(&mut random(&options()).unwrap(), &ids, &options()).unwrap().output_hash, first.output_hash);
    assert!(subject.session.is_empty());
    assert!(first.narration_ms.is_none() && first.beam_tokens_per_second.is_none());
}

#[test]
fn beams_and_batches_and_narrations_are_measured_when_asked_for() {
    let options = BenchOptions { beams: 3, batch: 2, max_tokens: 20, ..options() };
    let mut subject = random(&options).unwrap();
    let ids = subject.prompt(5);
    let run = measure(&mut subject, &ids, &options).unwrap();
    assert!(run.beam_tokens_per_second > Some(0.0) && run.batch_tokens_per_second > Some(0.0), "{run:?}");
    assert!(run.narration_ms > Some(run.ttft_ms), "{run:?}");
    assert!(subject.session.is_empty());
    let one = BenchOptions { max_tokens: 1, ..options };
    let run = measure(&mut subject, &ids, &one).unwrap();
    assert_eq!((run.decode_ms, run.tokens_per_second, run.batch_tokens_per_second), (None, None, None));
    assert!(subject.session.is_empty());
}

#[test]
fn a_model_on_a_disk_is_loaded_cold_and_warm() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/qwen2");
    let files = ModelFiles::open(folder).unwrap();
    let report = run(BenchModel::Files(&files), &options(), &mut |_, _| {}).unwrap();
    let Loads { load_ms, cold_load_ms, cold_ready_ms, warm_load_ms, warm_ready_ms } = report.loads;
    assert!(load_ms > 0.0 && warm_load_ms > Some(0.0) && warm_ready_ms > warm_load_ms, "{:?}", report.loads);
    assert_eq!(cold_load_ms.is_some(), cfg!(target_os = "linux"));
    assert_eq!(cold_ready_ms > cold_load_ms, cfg!(target_os = "linux"), "{:?}", report.loads);
}

#[test]
fn a_model_that_hears_is_measured_with_noise() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/whisper");
    let files = ModelFiles::open(folder).unwrap();
    let report = run(BenchModel::Files(&files), &BenchOptions { beams: 2, batch: 2, ..options() }, &mut |_, _| {});
    let report = report.unwrap();
    assert!(["vision_ms", "preprocess_ms", "decode_ms"].iter().all(|name| report.summary.contains_key(name)));
    assert_eq!((report.vision_tokens, report.prompt_tokens), (0, 5));
}

#[test]
fn a_large_picture_is_tiles_and_a_global_view() {
    let large = BenchOptions { picture: Picture::Size(40, 13), ..options() };
    let subject = random(&large).unwrap();
    assert_eq!(subject.shape.as_ref().unwrap().grid, [1, 1, 3]);
    assert_eq!(subject.prompt(5).len(), 4 * 4 + 5);
    let low = BenchOptions { detail: Detail::Low, ..large };
    assert_eq!(random(&low).unwrap().shape.unwrap().shape[0], 1);
    let few = BenchOptions { detail: Detail::AtMost(3), ..low };
    assert_eq!(random(&few).unwrap().prompt(5).len(), 1 + 5);
    let none = BenchOptions { detail: Detail::AtMost(0), ..few };
    let error = random(&none).err().unwrap();
    assert!(error.to_string().starts_with("this model takes at least 1 token(s)"), "{error}");
}

#[test]
fn what_does_not_fit_is_refused_before_it_runs() {
    let small = EngineOptions { memory_limit: Some(1000), ..EngineOptions::new() };
    let error = random(&BenchOptions { engine: small, ..options() }).err().unwrap();
    assert!(error.to_string().starts_with("the random weights of tiny need "), "{error}");
    let long = BenchOptions { max_tokens: 60, ..options() };
    let error = check_room(&random(&long).unwrap(), &long, 9).unwrap_err();
    assert!(matches!(error, Error::PromptTooLong { prompt_tokens: 69, context_length: 64 }), "{error}");
}

#[test]
fn options_that_measure_nothing_are_errors() {
    let none = BenchOptions { runs: 0, ..options() };
    let error = run(BenchModel::Random("smolvlm-256m"), &none, &mut |_, _| {}).unwrap_err();
    assert_eq!(error.to_string(), "runs is 0, expected at least 1");
    let none = BenchOptions { beams: 0, ..options() };
    let error = run(BenchModel::Random("smolvlm-256m"), &none, &mut |_, _| {}).unwrap_err();
    assert_eq!(error.to_string(), "beams is 0, expected at least 1");
    let error = run(BenchModel::Random("nothing"), &options(), &mut |_, _| {}).unwrap_err();
    assert!(error.to_string().starts_with("random_weights is nothing"), "{error}");
}

#[test]
fn runs_that_differ_are_a_bug_to_report() {
    let error = Error::Unrepeatable { run: 2, expected: "a".into(), got: "b".into() };
    assert_eq!(error.to_string(), "run 2 gave other tokens than the first one (hash b, expected a)");
    assert!(error.hint().unwrap().contains("report"));
    let error = Error::BatchDiffers { sequence: 2, batch: 4, expected: "a".into(), got: "b".into() };
    let message = "sequence 2 of 4 decoded together gave other tokens than alone (hash b, expected a)";
    assert_eq!(error.to_string(), message);
    assert!(error.hint().unwrap().contains("report"));
}
