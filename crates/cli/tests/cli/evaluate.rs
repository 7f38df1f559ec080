//! `ocelli eval`.

use std::path::Path;

use crate::support::{Scratch, repository};

#[test]
fn the_demo_models_table() {
    let scratch = Scratch::new();
    let ran = scratch.run(["eval", "demo", "--limit", "2"]);
    let lines: Vec<&str> = ran.ok().lines().collect();
    assert!(lines[0].starts_with("kind ") && lines[0].ends_with("exact"), "{ran:?}");
    assert!(lines.iter().any(|line| line.starts_with("describe ")), "{ran:?}");
    assert!(lines[lines.len() - 1].starts_with("all ") && lines[lines.len() - 1].ends_with('%'), "{ran:?}");
    let ran = scratch.run(["eval", "demo", "--limit", "1", "--json"]);
    ran.ok();
    assert!(ran.objects()[0]["all"]["questions"].as_u64() > Some(0));
}

#[test]
fn parity_holds_on_every_fixture() {
    let scratch = Scratch::new();
    let folders = ["idefics3", "llama3", "qwen2", "smolvlm"].map(|family| repository("fixtures").join(family));
    let ran = scratch.run(["eval".into(), "parity".into()].into_iter().chain(folders));
    assert!(ran.ok().ends_with("4 of 4 passed\n"), "{ran:?}");
    assert!(!ran.stdout.contains("FAIL"), "{ran:?}");
}

/// Where this fails, the README's table is to be replaced by what the command prints.
#[test]
fn the_readme_has_the_table_that_the_command_prints() {
    let scratch = Scratch::new();
    let ran = scratch.run(["eval".into(), "parity".into(), repository("fixtures"), "--md".into()]);
    let names = |text: &str| -> Vec<Vec<String>> {
        let cells = |line: &str| line.split(" | ").map(|cell| cell.trim_matches(['|', ' ']).to_owned()).collect();
        let lines = text.lines().skip_while(|line| !line.starts_with("| family | `model_type` |"));
        let rows: Vec<Vec<String>> = lines.take_while(|line| line.starts_with('|')).map(cells).collect();
        // All but the difference, which is another one on every machine.
        let names = |row: Vec<String>| row.into_iter().enumerate().filter(|(column, _)| *column != 4);
        rows.into_iter().map(|row| names(row).map(|(_, cell)| cell).collect()).collect()
    };
    let readme = std::fs::read_to_string(repository("README.md")).unwrap();
    assert_eq!(names(&readme), names(ran.ok()), "run `ocelli eval parity fixtures --md`");
}

#[test]
fn a_tensor_that_diverges_is_named_and_the_other_folders_still_run() {
    let scratch = Scratch::new();
    let folder = scratch.copy_fixture("smolvlm");
    tamper(&folder.join("reference.safetensors"), "out.image_features.0");
    scratch.copy_fixture("qwen2");
    let ran = scratch.run(["eval", "parity", "smolvlm", "gone", "qwen2"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stdout.contains("FAIL: the first tensor that diverges is out.image_features.0\n"), "{ran:?}");
    assert!(ran.stdout.contains("gone\n  FAIL: "), "{ran:?}");
    assert!(ran.stdout.ends_with("1 of 3 passed\n"), "{ran:?}");

    let ran = scratch.run(["eval", "parity", "--json", "smolvlm", "gone"]);
    assert_eq!(ran.code, 1);
    let results: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(results[0]["first_divergence"], "out.image_features.0");
    assert_eq!(results[0]["pass"], false);
    assert!(results[1]["error"].is_string());
}

/// Changes the first number of a tensor.
fn tamper(file: &Path, tensor: &str) {
    let mut bytes = std::fs::read(file).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let begin = 8 + length + header[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[begin..begin + 4].copy_from_slice(&1000.0_f32.to_le_bytes());
    std::fs::write(file, bytes).unwrap();
}
