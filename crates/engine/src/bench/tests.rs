//! A measurement from its beginning to its end, of the demo model and of a tiny one that exists nowhere.

use ocelli_formats::Config;
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
        machine: false,
    }
}

/// SmolVLM's family, a few numbers wide: tiles of 17 x 17 pixels (16 of which make patches), 4 tokens each.
fn tiny() -> Config {
    let text = json!({
        "model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 64, "max_position_embeddings": 64,
    });
    let vision = json!({
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 17, "patch_size": 4,
    });
    let config = json!({
        "model_type": "smolvlm", "image_token_id": 60, "scale_factor": 2, "text_config": text, "vision_config": vision,
    });
    Config::parse(config.to_string().as_bytes(), "tiny").unwrap()
}

fn random(options: &BenchOptions) -> Result<Subject> {
    let mut subject = Subject::random("tiny", &tiny(), options)?;
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
    assert!(report.second_load_ms.is_some() && report.utilisation.prompt_flops > 0.0);
    let without = BenchOptions { picture: Picture::None, ..options() };
    let report = run(BenchModel::Files(&files), &without, &mut |_, _| {}).unwrap();
    assert_eq!((report.prompt_tokens, report.runs[0].vision_ms), (5, 0.0));
}

#[test]
fn random_weights_make_a_model_that_answers() {
    let mut subject = random(&options()).unwrap();
    let ids = subject.prompt(5);
    assert_eq!(ids.len(), 4 + 5);
    let first = measure(&mut subject, &ids, 6).unwrap();
    assert_eq!(measure(&mut subject, &ids, 6).unwrap().output_hash, first.output_hash);
    assert_eq!(measure(&mut random(&options()).unwrap(), &ids, 6).unwrap().output_hash, first.output_hash);
    assert!(subject.session.is_empty());
}

#[test]
fn a_large_picture_is_tiles_and_a_global_view() {
    let large = BenchOptions { picture: Picture::Size(40, 17), ..options() };
    let subject = random(&large).unwrap();
    assert_eq!(subject.shape.as_ref().unwrap().n_tiles, 4);
    assert_eq!(subject.prompt(5).len(), 4 * 4 + 5);
    let low = BenchOptions { detail: Detail::Low, ..large };
    assert_eq!(random(&low).unwrap().shape.unwrap().n_tiles, 1);
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
    let error = run(BenchModel::Random("nothing"), &options(), &mut |_, _| {}).unwrap_err();
    assert!(error.to_string().starts_with("random_weights is nothing"), "{error}");
}

#[test]
fn hashes_tell_answers_apart() {
    assert_eq!(hash(&[1, 2]), hash(&[1, 2]));
    assert_ne!(hash(&[1, 2]), hash(&[2, 1]));
    assert_eq!(hash(&[]).len(), 16);
}

#[test]
fn runs_that_differ_are_a_bug_to_report() {
    let error = Error::Unrepeatable { run: 2, expected: "a".into(), got: "b".into() };
    assert_eq!(error.to_string(), "run 2 gave other tokens than the first one (hash b, expected a)");
    assert!(error.hint().unwrap().contains("report"));
}
