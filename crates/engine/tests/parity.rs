//! Every family's fixture, stage by stage, against what the reference implementation saved.

use std::path::Path;

use ocelli_engine::parity;

mod fixtures;

#[test]
fn every_family_equals_its_reference() {
    fixtures::for_each(|family, folder| {
        let report = parity::check(folder).unwrap_or_else(|error| panic!("{family}: {error}"));
        assert!(report.passed(), "{report}");
        let names: Vec<&str> = report.rows.iter().map(|row| row.name.as_str()).collect();
        for name in ["in.input_ids", "out.logits", "out.greedy_ids", "out.beam3_ids", "out.beam3_scores"] {
            assert!(names.contains(&name), "{family}: {name} was not compared");
        }
        let sees = folder.join("image0.png").exists() || folder.join("video0.gif").exists();
        assert!(!sees || names.contains(&"in.pixel_values"), "{family}: pictures were not compared");
        let hears = family == "whisper";
        assert!(!hears || names.contains(&"out.audio_features"), "{family}: recordings were not compared");
    });
}

/// A folder with the files of a fixture, but for its transformers-5 config.
fn copy_of(family: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(family);
    for entry in std::fs::read_dir(fixture).expect("a fixture") {
        let entry = entry.expect("a file");
        if entry.file_name() != "config.tf5.json" {
            std::fs::copy(entry.path(), folder.path().join(entry.file_name())).expect("a copy");
        }
    }
    folder
}

#[test]
fn the_first_tensor_that_diverges_is_named() {
    let folder = copy_of("llama3");
    let path = folder.path().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["rms_norm_eps"] = 0.1.into();
    std::fs::write(&path, config.to_string()).unwrap();
    let report = parity::check(folder.path()).unwrap();
    assert!(!report.passed());
    assert_eq!(report.first_divergence().unwrap().name, "out.logits");
    assert!(report.to_string().contains("the first tensor that diverges is out.logits (config.json)"), "{report}");
}

#[test]
fn a_folder_without_references_is_an_error() {
    let folder = copy_of("qwen2");
    std::fs::write(folder.path().join("reference.json"), "{}").unwrap();
    let error = parity::check(folder.path()).unwrap_err();
    assert!(error.to_string().ends_with("reference.json: it has no text `prompt`"), "{error}");
    std::fs::remove_file(folder.path().join("reference.json")).unwrap();
    let error = parity::check(folder.path()).unwrap_err();
    assert!(error.to_string().ends_with("reference.json: there is no such file"), "{error}");
}
