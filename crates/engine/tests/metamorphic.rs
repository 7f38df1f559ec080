//! What must hold for every family whatever its weights say.

use std::path::Path;

use ocelli_engine::{EngineOptions, parity};

fn check(family: &str, facts: usize) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(family);
    let report = parity::check_promises(&folder, &EngineOptions::new()).expect("the fixture runs");
    assert!(report.passed(), "{report}");
    assert_eq!(report.facts.len(), facts, "{report}");
}

#[test]
fn idefics3() {
    check("idefics3", 8);
}

#[test]
fn smolvlm() {
    check("smolvlm", 8);
}

#[test]
fn llama3() {
    check("llama3", 6);
}

#[test]
fn qwen2() {
    check("qwen2", 6);
}
