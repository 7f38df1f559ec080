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
