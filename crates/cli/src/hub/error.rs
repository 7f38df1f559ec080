//! What can go wrong with the hub, in the words of somebody who wants a model.

use std::path::PathBuf;

use indicatif::DecimalBytes;

/// Shorthand for this module.
pub(super) type Result<T, E = HubError> = std::result::Result<T, E>;

/// A pull that failed. [`HubError::hint`] says what to do about it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HubError {
    /// Not `name` or `org/name`.
    #[error("`{id}` is not a model id such as `org/name`")]
    BadModelId { id: String },
    /// A revision that cannot be one.
    #[error("`{revision}` is not a branch, tag or commit")]
    BadRevision { revision: String },
    /// `HF_HUB_OFFLINE` is set.
    #[error("cannot download {id}: HF_HUB_OFFLINE is set")]
    Offline { id: String },
    /// No connection to the hub.
    #[error("cannot reach {endpoint}: {message}")]
    Unreachable { endpoint: String, message: String },
    /// A certificate file of the user that cannot be used.
    #[error("{}: no certificates could be read: {message}", path.display())]
    Certificates { path: PathBuf, message: String },
    /// No such model, or one that is not shown to this user.
    #[error("{id} does not exist on {endpoint}, or it is private")]
    NotFound { id: String, endpoint: String, has_token: bool },
    /// The model has no such revision.
    #[error("{id} has no revision `{revision}`")]
    NoRevision { id: String, revision: String },
    /// A model whose conditions must be accepted first.
    #[error("{id} is gated: its authors ask you to accept their conditions first")]
    Gated { id: String, endpoint: String, has_token: bool },
    /// The token is wrong or expired.
    #[error("{endpoint} does not accept your token")]
    TokenRefused { endpoint: String },
    /// Any other 403.
    #[error("{endpoint} denies access to {id}: {message}")]
    Denied { id: String, endpoint: String, message: String },
    /// Any other unexpected status.
    #[error("{url} answered {status}{}", detail(message))]
    Status { url: String, status: u16, message: String },
    /// An answer that is not what the hub's protocol promises.
    #[error("{url} gave an unexpected answer: {message}")]
    Protocol { url: String, message: String },
    /// Only weights that ocelli does not read.
    #[error("{id} has no safetensors weights{}", detail(&found.join(", ")))]
    NoWeights { id: String, found: Vec<String> },
    /// A file that another model takes from this one.
    #[error("{id} has no file {file}")]
    NoFile { id: String, file: String },
    /// Not enough free space.
    #[error(
        "not enough disk space at {}: {} needed, {} free",
        path.display(), DecimalBytes(*needed), DecimalBytes(*free)
    )]
    NoSpace { path: PathBuf, needed: u64, free: u64 },
    /// The content is not what the hub announced.
    #[error("{file}: wrong checksum: expected {algorithm} {expected}, got {actual}; the file was deleted")]
    Checksum { file: String, algorithm: &'static str, expected: String, actual: String },
    /// The length is not what the hub announced.
    #[error("{file}: {actual} bytes arrived, {expected} were announced; the file was deleted")]
    Size { file: String, expected: u64, actual: u64 },
    /// The connection kept breaking.
    #[error("{file}: the download broke off after {n_attempts} attempts: {message}")]
    Interrupted { file: String, n_attempts: u32, message: String },
    /// The cache could not be written.
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
}

impl HubError {
    /// What the user can do about it, if there is something.
    pub(crate) fn hint(&self) -> Option<String> {
        const NEW_TOKEN: &str = "create a token there under settings/tokens and set HF_TOKEN to it";
        let hint = match self {
            Self::BadModelId { .. } => "ids look like `HuggingFaceTB/SmolVLM-256M-Instruct`".into(),
            Self::Offline { .. } => "unset HF_HUB_OFFLINE to download".into(),
            Self::Unreachable { .. } => {
                "check the network, the proxy (HTTPS_PROXY, SSL_CERT_FILE) and HF_ENDPOINT".into()
            }
            Self::NotFound { has_token: false, .. } => {
                "check the spelling; for a private model set HF_TOKEN to a token of yours".into()
            }
            Self::NotFound { .. } => "check the spelling, and that your token may read this model".into(),
            Self::NoRevision { id, .. } => format!("without --revision, `ocelli pull {id}` takes the main branch"),
            Self::Gated { id, endpoint, has_token: false } => {
                format!("accept them at {endpoint}/{id}, then {NEW_TOKEN}")
            }
            Self::Gated { id, endpoint, .. } => {
                format!("accept them at {endpoint}/{id} with the account that HF_TOKEN belongs to")
            }
            Self::TokenRefused { .. } => format!("it is wrong or has expired: {NEW_TOKEN}"),
            Self::NoWeights { .. } => {
                "look for the original (not GGUF, ONNX, .npz or PyTorch .bin) version of the model".into()
            }
            Self::NoSpace { .. } => MORE_SPACE.into(),
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => MORE_SPACE.into(),
            Self::Checksum { .. } | Self::Size { .. } => "run the command again".into(),
            Self::Interrupted { .. } => "run the command again: it continues where it stopped".into(),
            Self::Status { status: 429, .. } => "wait a few minutes; with HF_TOKEN set the limits are higher".into(),
            Self::Status { status: 500.., .. } => "the hub has a problem; try again later".into(),
            _ => return None,
        };
        Some(hint)
    }

    /// Whether trying the same request again may help.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Interrupted { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500..),
            _ => false,
        }
    }
}

fn detail(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

const MORE_SPACE: &str = "delete models with `ocelli rm`, or set HF_HUB_CACHE to a folder on another disk";
