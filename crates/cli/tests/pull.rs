//! `ocelli pull`, `list` and `rm` as a user runs them, against a hub on this machine.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use test_server::{COMMIT, FakeHub};

#[path = "../src/hub/test_server.rs"]
mod test_server;

fn hub() -> FakeHub {
    let header = r#"{"w":{"dtype":"U8","shape":[300000],"data_offsets":[0,300000]}}"#;
    let weights = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[7; 300_000]].concat();
    FakeHub::start(&[("config.json", r#"{"model_type":"any"}"#)], &[("model.safetensors", weights)])
}

fn ocelli(hub: &FakeHub, cache: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ocelli"));
    for name in ["HF_HOME", "HF_TOKEN", "HF_HUB_OFFLINE", "HUGGING_FACE_HUB_TOKEN", "SSL_CERT_FILE", "HTTP_PROXY"] {
        command.env_remove(name);
    }
    command.env_remove("http_proxy").env_remove("ALL_PROXY").env_remove("all_proxy");
    command.env("HF_ENDPOINT", hub.endpoint()).env("HF_HUB_CACHE", cache).env("HF_TOKEN_PATH", cache.join("no-token"));
    command.args(arguments).output().expect("the program was built")
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", stderr(output));
    serde_json::from_slice(&output.stdout).expect("the output is JSON")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn pull_then_list_then_rm() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    hub.state().cut_after.push_back(100_000);
    let report = json(&ocelli(&hub, cache.path(), &["pull", "org/model", "--json"]));
    assert_eq!((&report["commit"], &report["n_files"]), (&COMMIT.into(), &2.into()));
    assert_eq!(report["downloaded_bytes"], report["total_bytes"]);
    assert_eq!(hub.n_requests("/storage/model.safetensors range=bytes=100000-"), 1, "a cut connection resumes");

    let again = ocelli(&hub, cache.path(), &["pull", "org/model"]);
    assert!(again.status.success(), "{}", stderr(&again));

    let listed = json(&ocelli(&hub, cache.path(), &["list", "--json"]));
    assert_eq!((&listed[0]["id"], &listed[0]["complete"]), (&"org/model".into(), &true.into()));
    let table = ocelli(&hub, cache.path(), &["list"]);
    assert!(String::from_utf8_lossy(&table.stdout).contains("org/model"));

    assert!(ocelli(&hub, cache.path(), &["rm", "org/model"]).status.success());
    assert_eq!(json(&ocelli(&hub, cache.path(), &["list", "--json"])), Value::Array(Vec::new()));
    assert!(!ocelli(&hub, cache.path(), &["rm", "org/model"]).status.success());
}

/// Moondream 2 of today: its repository holds GPT-2's tokenizer, which it was not trained with.
#[test]
fn a_model_answers_with_what_was_pulled_of_another_one() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/moondream2");
    let text = |name: &str| std::fs::read_to_string(fixture.join(name)).unwrap();
    let (config, tokenizer) = (text("config.json"), text("tokenizer.json"));
    let small = [("config.json", config.as_str()), ("versions.txt", "2025-06-21"), ("tokenizer.json", "{}")];
    let weights = std::fs::read(fixture.join("model.safetensors")).unwrap();
    let (hub, cache) = (FakeHub::start(&small, &[("model.safetensors", weights)]), tempfile::tempdir().unwrap());
    hub.add("moondream/starmie-v1", &[("tokenizer.json", &tokenizer)]);
    let pulled = ocelli(&hub, cache.path(), &["pull", "org/model"]);
    assert!(stderr(&pulled).contains("moondream/starmie-v1 at 0123456789ab: 1 file,"), "{}", stderr(&pulled));
    let image = fixture.join("image0.png");
    let arguments = ["describe", image.to_str().unwrap(), "--model", "org/model", "--max-tokens", "3"];
    let answered = ocelli(&hub, cache.path(), &arguments);
    assert!(answered.status.success(), "{}", stderr(&answered));
}

#[test]
fn failures_come_with_advice_and_an_exit_code() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    hub.state().refuse = Some(("/api/", 401, "RepoNotFound"));
    let private = ocelli(&hub, cache.path(), &["pull", "org/model"]);
    assert!(!private.status.success());
    assert!(stderr(&private).contains("org/model does not exist on"), "{}", stderr(&private));
    assert!(stderr(&private).contains("hint: check the spelling; for a private model set HF_TOKEN"));

    hub.state().refuse = None;
    hub.state().wrong_hash = true;
    let wrong = ocelli(&hub, cache.path(), &["pull", "org/model"]);
    assert!(!wrong.status.success());
    assert!(stderr(&wrong).contains("config.json: wrong checksum"), "{}", stderr(&wrong));
}
