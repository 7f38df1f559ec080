//! Pulls against a hub on this machine that misbehaves in every way seen in the wild.

use std::path::Path;
use std::time::Duration;

use ocelli_formats::Checkpoint;
use ocelli_formats::hub_cache::HubCache;

use super::options::Retry;
use super::test_server::{COMMIT, FakeHub};
use super::*;

/// A model that opens: one tensor of 300 000 bytes, so that transfers take several reads.
fn hub() -> FakeHub {
    let small = [("config.json", r#"{"model_type":"any"}"#), ("README.md", "not needed"), ("tokenizer.json", "{}")];
    FakeHub::start(&small, &[("model.safetensors", weights()), ("model.gguf", vec![0; 10])])
}

fn weights() -> Vec<u8> {
    let header = r#"{"w":{"dtype":"U8","shape":[300000],"data_offsets":[0,300000]}}"#;
    let data: Vec<u8> = (0..300_000u32).map(|idx| (idx % 251) as u8).collect();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()
}

fn options(hub: &FakeHub, folder: &Path) -> PullOptions {
    PullOptions {
        endpoint: hub.endpoint(),
        cache: HubCache::new(folder),
        show_progress: false,
        retry: Retry { n_attempts: 3, first_wait: Duration::from_millis(1), stall: Duration::from_secs(5) },
        ..PullOptions::from_variables("org/model", None, |_| None)
    }
}

fn error(options: &PullOptions) -> HubError {
    pull(options).expect_err("the hub misbehaves").downcast().expect("pulls fail with a HubError")
}

fn n_files(folder: &Path) -> usize {
    std::fs::read_dir(folder).map_or(0, Iterator::count)
}

#[test]
fn what_a_model_takes_from_another_one_is_pulled_too() {
    let config = ("config.json", r#"{"model_type":"moondream1"}"#);
    let files = [config, ("versions.txt", "2025-06-21"), ("tokenizer.json", "stale")];
    let (hub, folder) = (FakeHub::start(&files, &[("model.safetensors", weights())]), tempfile::tempdir().unwrap());
    let options = options(&hub, folder.path());
    assert!(matches!(error(&options), HubError::NotFound { id, .. } if id == "moondream/starmie-v1"));
    hub.add("moondream/starmie-v1", &[("README.md", "words"), ("tokenizer.json", "right")]);
    let report = pull(&options).unwrap();
    let borrowed = report.borrowed.as_ref().unwrap();
    assert_eq!((report.n_downloaded, borrowed.n_files, borrowed.id.as_str()), (0, 1, "moondream/starmie-v1"));
    let files = options.cache.resolve_model("org/model", None).unwrap();
    assert_eq!(files.text("tokenizer.json").unwrap().unwrap(), "right");
}

#[test]
fn pulls_into_the_shared_layout() {
    let (hub, folder) = (hub(), tempfile::tempdir().unwrap());
    let options = options(&hub, folder.path());
    let report = pull(&options).unwrap();
    let total = weights().len() as u64 + 22;
    assert_eq!((report.n_files, report.n_downloaded), (3, 3));
    assert_eq!((report.total_bytes, report.downloaded_bytes), (total, total));
    assert_eq!((report.commit.as_str(), report.revision.as_str()), (COMMIT, "main"));
    let model = folder.path().join("models--org--model");
    assert_eq!(std::fs::read_to_string(model.join("refs/main")).unwrap(), COMMIT);
    assert_eq!(report.path, model.join("snapshots").join(COMMIT));
    assert_eq!((n_files(&report.path), n_files(&model.join("blobs"))), (3, 3));
    #[cfg(unix)]
    assert!(std::fs::read_link(report.path.join("model.safetensors")).unwrap().starts_with("../../blobs"));

    let files = options.cache.resolve_model("org/model", None).unwrap();
    assert_eq!(Checkpoint::open(&files).unwrap().total_bytes(), 300_000);
    let listing = list(&options.cache).unwrap();
    assert!(listing.models[0].complete);
    assert!(listing.to_string().contains("org/model"), "{listing}");
    assert!(listing.to_string().contains("main (0123456)"), "{listing}");
}

#[test]
fn a_second_pull_fetches_nothing() {
    let (hub, folder) = (hub(), tempfile::tempdir().unwrap());
    let options = options(&hub, folder.path());
    pull(&options).unwrap();
    let before = hub.n_requests("/resolve/");
    let report = pull(&options).unwrap();
    assert_eq!((report.n_downloaded, report.downloaded_bytes), (0, 0));
    assert_eq!(hub.n_requests("/resolve/"), before);
}

#[test]
fn a_cut_connection_resumes_where_it_stopped() {
    let (hub, folder) = (hub(), tempfile::tempdir().unwrap());
    hub.state().cut_after.extend([100_000, 50_000]);
    let report = pull(&options(&hub, folder.path())).unwrap();
    assert_eq!(report.downloaded_bytes, report.total_bytes, "no byte was fetched twice");
    assert_eq!(hub.n_requests("/storage/model.safetensors range=bytes=100000-"), 1);
    assert_eq!(hub.n_requests("/storage/model.safetensors range=bytes=150000-"), 1);
}

#[test]
fn a_later_pull_continues_an_interrupted_one() {
    let (hub, folder) = (hub(), tempfile::tempdir().unwrap());
    let options = options(&hub, folder.path());
    hub.state().cut_after.extend([100_000, 0, 0, 0]);
    let error = error(&options);
    assert!(matches!(&error, HubError::Interrupted { file, .. } if file == "model.safetensors"), "{error}");
    assert!(error.hint().unwrap().contains("continues"));
    assert!(!list(&options.cache).unwrap().models[0].complete);
    assert!(options.cache.resolve("org/model", Some("main")).is_err(), "the branch must not point at half a model");
    hub.state().cut_after.clear();
    let report = pull(&options).unwrap();
    assert_eq!(report.downloaded_bytes, weights().len() as u64 - 100_000);
}

#[test]
fn two_pulls_at_once_share_the_work() {
    let (hub, folder) = (hub(), tempfile::tempdir().unwrap());
    let options = options(&hub, folder.path());
    let reports = std::thread::scope(|scope| {
        let pulls = [scope.spawn(|| pull(&options)), scope.spawn(|| pull(&options))];
        pulls.map(|pull| pull.join().unwrap().unwrap())
    });
    let downloaded: u64 = reports.iter().map(|report| report.downloaded_bytes).sum();
    assert_eq!(downloaded, reports[0].total_bytes, "each file came once");
    assert!(list(&options.cache).unwrap().models[0].complete);
}

#[test]
fn a_server_that_ignores_ranges_starts_over() {
    let (hub, folder) = (hub(), tempfile::tempdir().unwrap());
    hub.state().cut_after.extend([100_000]);
    hub.state().ignore_ranges = true;
    let report = pull(&options(&hub, folder.path())).unwrap();
    assert_eq!(report.downloaded_bytes, report.total_bytes + 100_000);
    assert_eq!(std::fs::read(report.path.join("model.safetensors")).unwrap(), weights());
}

#[test]
fn a_silent_connection_is_dropped_and_resumed() {
    let (hub, folder) = (hub(), tempfile::tempdir().unwrap());
    hub.state().cut_after.extend([100_000]);
    hub.state().stall = true;
    let mut options = options(&hub, folder.path());
    options.retry.stall = Duration::from_millis(300);
    let report = pull(&options).unwrap();
    assert!(report.seconds < 10.0, "{}", report.seconds);
    assert_eq!(report.downloaded_bytes, report.total_bytes);
}

#[test]
fn a_busy_hub_is_asked_again() {
    let (hub, folder) = (hub(), tempfile::tempdir().unwrap());
    hub.state().n_busy = 2;
    pull(&options(&hub, folder.path())).unwrap();
    hub.state().n_busy = 100;
    let error = error(&options(&hub, folder.path()));
    assert!(matches!(error, HubError::Status { status: 503, .. }), "{error}");
    assert!(error.hint().is_some());
}

#[test]
fn a_wrong_checksum_deletes_the_file() {
    for (name, algorithm) in [("config.json", "git sha1"), ("model.safetensors", "sha256")] {
        let (hub, folder) = (hub(), tempfile::tempdir().unwrap());
        let options = options(&hub, folder.path());
        if name == "model.safetensors" {
            pull(&options).unwrap();
            std::fs::remove_dir_all(folder.path().join("models--org--model")).unwrap();
            hub.state().description = Some(
                r#"{"sha":"0123456789abcdef0123456789abcdef01234567","siblings":[{"rfilename":"model.safetensors",
                "size":300071,"lfs":{"sha256":"00000000000000000000000000000000000000000000000000000000000000ff"}}]}"#,
            );
            assert_eq!(weights().len(), 300_071);
        }
        hub.state().wrong_hash = true;
        let error = error(&options);
        let HubError::Checksum { file, algorithm: found, .. } = &error else { panic!("{error}") };
        assert_eq!((file.as_str(), *found), (name, algorithm));
        assert!(error.to_string().starts_with(&format!("{name}: wrong checksum: expected {algorithm}")));
        assert_eq!(n_files(&folder.path().join("models--org--model/blobs")), 0);
    }
}

#[test]
fn a_wrong_size_deletes_the_file() {
    let (hub, folder) = (hub(), tempfile::tempdir().unwrap());
    hub.state().announce_more = 5;
    let error = error(&options(&hub, folder.path()));
    assert_eq!(error.to_string(), "config.json: 20 bytes arrived, 25 were announced; the file was deleted");
    assert_eq!(n_files(&folder.path().join("models--org--model/blobs")), 0);
}

#[test]
fn a_partial_file_that_is_too_long_is_thrown_away() {
    let (hub, folder) = (hub(), tempfile::tempdir().unwrap());
    let options = options(&hub, folder.path());
    let report = pull(&options).unwrap();
    let blob = report.path.join("model.safetensors").canonicalize().unwrap();
    std::fs::rename(&blob, blob.with_extension("incomplete")).unwrap();
    std::fs::OpenOptions::new().append(true).open(blob.with_extension("incomplete")).unwrap().set_len(400_000).unwrap();
    assert_eq!(pull(&options).unwrap().downloaded_bytes, weights().len() as u64);
}

#[test]
fn a_mirror_that_lists_names_only_is_asked_for_headers() {
    let (hub, folder) = (hub(), tempfile::tempdir().unwrap());
    hub.state().names_only = true;
    let report = pull(&options(&hub, folder.path())).unwrap();
    assert_eq!((report.n_downloaded, hub.n_requests("HEAD ")), (3, 3));
    hub.state().wrong_hash = true;
    std::fs::remove_dir_all(folder.path().join("models--org--model")).unwrap();
    assert!(matches!(error(&options(&hub, folder.path())), HubError::Checksum { .. }), "headers carry the hash");
}

#[test]
fn the_token_goes_to_the_hub_and_nowhere_else() {
    let (hub, folder) = (hub(), tempfile::tempdir().unwrap());
    let options = PullOptions { token: Some("secret".into()), ..options(&hub, folder.path()) };
    pull(&options).unwrap();
    assert_eq!((hub.n_requests("/api/"), hub.n_requests("/resolve/")), (1, 3));
    assert_eq!(hub.n_requests("token=secret"), 4);
    assert_eq!(hub.n_requests("/storage/model.safetensors token="), 0);
}

#[test]
fn revisions_are_pinned() {
    let (hub, folder) = (hub(), tempfile::tempdir().unwrap());
    for revision in ["refs/pr/1", "v1.0", COMMIT] {
        let options = PullOptions { revision: Some(revision.into()), ..options(&hub, folder.path()) };
        assert_eq!(pull(&options).unwrap().revision, revision);
        assert!(options.cache.resolve("org/model", Some(revision)).is_ok());
    }
    assert_eq!(hub.n_requests("/revision/refs%2Fpr%2F1"), 1);
    let refs = folder.path().join("models--org--model/refs");
    assert!(refs.join("refs/pr/1").is_file() && refs.join("v1.0").is_file() && !refs.join(COMMIT).exists());
}

#[test]
fn names_with_spaces_are_escaped() {
    let hub = FakeHub::start(&[("my notes.txt", "x"), ("config.json", "{}")], &[("model.safetensors", weights())]);
    let folder = tempfile::tempdir().unwrap();
    let report = pull(&options(&hub, folder.path())).unwrap();
    assert!(report.path.join("my notes.txt").is_file());
}

#[test]
fn refusals_say_what_to_do() {
    let cases = [
        (("/api/", 401, "RepoNotFound"), None, "does not exist on", "set HF_TOKEN"),
        (("/api/", 404, "RepoNotFound"), Some("t"), "does not exist on", "your token may read"),
        (("/api/", 404, ""), None, "does not exist on", "spelling"),
        (("/api/", 404, "RevisionNotFound"), None, "org/model has no revision `main`", "--revision"),
        (("/api/", 401, ""), Some("t"), "does not accept your token", "expired"),
        (("/resolve/", 401, "GatedRepo"), None, "org/model is gated", "/org/model, then create a token"),
        (("/resolve/", 403, "GatedRepo"), Some("t"), "org/model is gated", "with the account"),
        (("/resolve/", 403, ""), None, "denies access to org/model: no", ""),
        (("/resolve/", 404, "EntryNotFound"), None, "answered 404: no", ""),
        (("/api/", 429, ""), None, "answered 429: no", "HF_TOKEN"),
    ];
    for (refuse, token, message, hint) in cases {
        let (hub, folder) = (hub(), tempfile::tempdir().unwrap());
        hub.state().refuse = Some(refuse);
        let options = PullOptions { token: token.map(Into::into), ..options(&hub, folder.path()) };
        let error = error(&options);
        assert!(error.to_string().contains(message), "{refuse:?}: {error}");
        assert!(error.hint().unwrap_or_default().contains(hint), "{refuse:?}: {:?}", error.hint());
    }
}

#[test]
fn nonsense_from_the_hub_is_an_error() {
    let (hub, folder) = (hub(), tempfile::tempdir().unwrap());
    for description in ["", "[]", r#"{"sha":"../x","siblings":[]}"#, r#"{"siblings":[]}"#] {
        hub.state().description = Some(description);
        assert!(matches!(error(&options(&hub, folder.path())), HubError::Protocol { .. }), "{description}");
    }
    hub.state().description = Some(r#"{"sha":"abc","siblings":[{"rfilename":"model.gguf","size":1}]}"#);
    assert!(matches!(error(&options(&hub, folder.path())), HubError::NoWeights { .. }));
    hub.state().description = Some(
        r#"{"sha":"abc","siblings":[{"rfilename":"model.safetensors","size":4611686018427387904,
        "blobId":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}]}"#,
    );
    let error = error(&options(&hub, folder.path()));
    assert!(matches!(error, HubError::NoSpace { needed: 4_611_686_018_427_387_904, .. }), "{error}");
}

#[test]
fn what_fails_before_any_request() {
    let (hub, folder) = (hub(), tempfile::tempdir().unwrap());
    let base = || options(&hub, folder.path());
    assert!(matches!(error(&PullOptions { id: "a/b/c".into(), ..base() }), HubError::BadModelId { .. }));
    for revision in ["../x", "a//b", "", "a b", "a?b"] {
        let options = PullOptions { revision: Some(revision.into()), ..base() };
        assert!(matches!(error(&options), HubError::BadRevision { .. }), "{revision}");
    }
    assert!(matches!(error(&PullOptions { offline: true, ..base() }), HubError::Offline { .. }));
    let certificates = folder.path().join("certificates.pem");
    std::fs::write(&certificates, "nothing").unwrap();
    let options = PullOptions { certificates: Some(certificates.clone()), ..base() };
    assert!(matches!(error(&options), HubError::Certificates { .. }));
    assert!(hub.state().requests.is_empty());

    let unreachable = error(&PullOptions { endpoint: "http://127.0.0.1:1".into(), ..base() });
    assert!(matches!(unreachable, HubError::Unreachable { .. }), "{unreachable}");
    let blocked = PullOptions { cache: HubCache::new(&certificates), ..base() };
    assert!(matches!(error(&blocked), HubError::Io { .. }));
    let full = HubError::Io { path: "blob".into(), source: std::io::ErrorKind::StorageFull.into() };
    assert!(full.hint().unwrap().contains("ocelli rm"));
}

#[test]
fn removing_frees_the_space() {
    let (hub, folder) = (hub(), tempfile::tempdir().unwrap());
    let options = options(&hub, folder.path());
    let report = pull(&options).unwrap();
    assert_eq!(remove(&options.cache, "org/model").unwrap(), report.total_bytes + COMMIT.len() as u64);
    assert!(remove(&options.cache, "org/model").is_err());
    assert!(list(&options.cache).unwrap().models.is_empty());
}

#[test]
fn options_come_from_the_environment() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("token"), "from-file\n").unwrap();
    let home = folder.path().to_str().unwrap().to_string();
    let read = |set: &[(&str, &str)]| {
        let find = |name: &str| set.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        PullOptions::from_variables("org/model", Some("v1"), find)
    };
    let options = read(&[("HF_HOME", &home), ("HF_ENDPOINT", "https://mirror/"), ("HF_HUB_OFFLINE", "1")]);
    assert_eq!((options.token.as_deref(), options.endpoint.as_str()), (Some("from-file"), "https://mirror"));
    assert!(options.offline && options.revision() == "v1");
    assert_eq!(options.cache.dir(), folder.path().join("hub"));
    let moved = read(&[("HF_HOME", &home), ("HF_HUB_CACHE", "/elsewhere"), ("SSL_CERT_FILE", "/c.pem")]);
    assert_eq!((moved.token.as_deref(), moved.cache.dir()), (Some("from-file"), Path::new("/elsewhere")));
    assert_eq!(moved.certificates.as_deref(), Some(Path::new("/c.pem")));
    assert_eq!(read(&[("HF_HOME", &home), ("HF_TOKEN", " env ")]).token.as_deref(), Some("env"));
    let token_path = folder.path().join("token");
    let elsewhere = read(&[("HF_TOKEN_PATH", token_path.to_str().unwrap())]);
    assert_eq!(elsewhere.token.as_deref(), Some("from-file"));
    assert!(!elsewhere.offline && elsewhere.endpoint == "https://huggingface.co");
}
