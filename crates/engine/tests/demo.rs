//! The built-in model answers questions about scenes that it has never seen.

use ocelli_engine::{Engine, EngineOptions, GenerateOptions, ModelInfo, demo};

#[test]
fn the_built_in_model_is_mostly_right() {
    let engine = Engine::load(&demo::files(), &EngineOptions::new()).unwrap();
    let mut seen = Vec::new();
    let options = GenerateOptions { max_tokens: Some(48), ..GenerateOptions::greedy() };
    let accuracy = demo::evaluate(&engine, &options, Some(4), &mut |done, of| seen.push((done, of))).unwrap();
    println!("{accuracy}{:#?}", accuracy.mistakes);
    assert_eq!(seen, [(1, 4), (2, 4), (3, 4), (4, 4)]);
    assert!(accuracy.total.share() > 0.7, "{accuracy}{:#?}", accuracy.mistakes);
}

#[test]
fn the_built_in_model_describes_itself_without_being_loaded() {
    let info = ModelInfo::read(&demo::files()).unwrap();
    assert!(info.sees_images && info.parameters > 1_000_000, "{info:?}");
    assert_eq!((info.label.as_str(), info.dtype.as_str()), ("demo", "bf16"));
    // Matrices in bfloat16, the few other numbers in float32.
    let values = info.weight_bytes - 2 * info.parameters;
    assert!(values > 0 && values < info.parameters / 10, "{info:?}");
}
