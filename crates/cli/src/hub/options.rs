//! What to pull, from where, to where; read from the environment the way the other tools of the family do.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use ocelli_formats::hub_cache::HubCache;

/// Everything a pull depends on.
#[derive(Clone, Debug)]
pub(crate) struct PullOptions {
    /// The model id, such as `org/name`.
    pub(crate) id: String,
    /// A branch, tag or commit; `main` when not given.
    pub(crate) revision: Option<String>,
    /// Only these files, rather than all that a model needs.
    pub(crate) only: Option<&'static [&'static str]>,
    /// The hub, without a slash at the end.
    pub(crate) endpoint: String,
    /// Where the files go.
    pub(crate) cache: HubCache,
    /// The user's token, for private and gated models.
    pub(crate) token: Option<String>,
    /// PEM file of certificate authorities to trust instead of the built-in ones.
    pub(crate) certificates: Option<PathBuf>,
    /// Refuse to use the network.
    pub(crate) offline: bool,
    /// Draw a progress bar (only ever on a terminal).
    pub(crate) show_progress: bool,
    /// How patient to be.
    pub(crate) retry: Retry,
}

/// How often and how fast to try again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Retry {
    /// Attempts in a row that may pass without a single new byte.
    pub(crate) n_attempts: u32,
    /// Wait before the second attempt; doubles with every further one, up to 30 s.
    pub(crate) first_wait: Duration,
    /// A connection that is silent for this long is dropped.
    pub(crate) stall: Duration,
}

impl PullOptions {
    /// Options from this process's environment.
    pub(crate) fn from_env(id: &str, revision: Option<&str>) -> Self {
        Self::from_variables(id, revision, |name| std::env::var_os(name))
    }

    /// Options from an environment: `HF_ENDPOINT`, `HF_TOKEN` (else the token file of `hf auth login`), the cache's
    /// variables, `HF_HUB_OFFLINE`, and `SSL_CERT_FILE` for networks with an authority of their own.
    pub(crate) fn from_variables(
        id: &str,
        revision: Option<&str>,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let text = |name: &str| set(name).and_then(|value| value.into_string().ok());
        let cache = HubCache::locate(&variable);
        let token_file = set("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| token_file(&set));
        let from_file = || Some(std::fs::read_to_string(token_file.as_ref()?).ok()?.trim().to_string());
        let token = text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN")).or_else(from_file);
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let offline = text("HF_HUB_OFFLINE")
            .is_some_and(|value| ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str()));
        Self {
            id: id.into(),
            revision: revision.map(Into::into),
            only: None,
            endpoint: endpoint.trim_end_matches('/').into(),
            cache,
            token: token.map(|token| token.trim().to_string()).filter(|token| !token.is_empty()),
            certificates: set("SSL_CERT_FILE").or_else(|| set("REQUESTS_CA_BUNDLE")).map(PathBuf::from),
            offline,
            show_progress: true,
            retry: Retry { n_attempts: 6, first_wait: Duration::from_millis(500), stall: Duration::from_secs(30) },
        }
    }

    /// The revision, `main` by default.
    pub(super) fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }
}

/// Where `hf auth login` keeps the token: beside the default cache, also when `HF_HUB_CACHE` moves the models.
fn token_file(set: &impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let without_cache = |name: &str| if name.ends_with("_HUB_CACHE") { None } else { set(name) };
    Some(HubCache::locate(without_cache).dir().parent()?.join("token"))
}
