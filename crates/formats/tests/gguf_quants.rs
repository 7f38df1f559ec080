//! Blocks of every GGUF type decode to what the Python package `gguf` decodes them to. Runs where that package is
//! installed; `OCELLI_PYTHON` names the interpreter.

use std::process::Command;

use ocelli_formats::{Gguf, SharedBytes};

#[test]
fn every_type_decodes_as_the_reference_does() {
    let python = std::env::var_os("OCELLI_PYTHON").unwrap_or_else(|| "python3".into());
    let installed = Command::new(&python).args(["-c", "import gguf.quants"]).output();
    if !installed.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIP: the Python package gguf is not installed");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("types.gguf");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tools/gguf_quants.py");
    assert!(Command::new(&python).arg(script).arg(&file).status().unwrap().success());
    let gguf = Gguf::parse(SharedBytes::open(&file).unwrap(), "types.gguf").unwrap();
    let types: Vec<&str> = gguf.names().filter(|name| !name.contains('.')).collect();
    assert_eq!(types.len(), 8);
    for name in types {
        let stored = gguf.stored(name).unwrap();
        assert_eq!(stored.kind(), name);
        let found = stored.load().unwrap().to_f32().unwrap();
        let expected = gguf.stored(&format!("{name}.expected")).unwrap().load().unwrap().to_f32().unwrap();
        // Scales are rounded to f16; groups of 16 are quantised again to 8 bits.
        let tolerance = if name == "Q6_K" { 1.0 / 250.0 } else { 1.0 / 1500.0 };
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.chunks(32).zip(expected.chunks(32)) {
            let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() <= tolerance * largest, "{name}: {found} is not {expected}");
            }
        }
    }
}
