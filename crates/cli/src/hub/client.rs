//! Requests to the hub: what a model consists of, and the bytes of its files.

use std::sync::Arc;
use std::time::Duration;

use hf_hub::api::sync::{Api, ApiBuilder};
use hf_hub::{Cache, Repo, RepoType};
use serde::Deserialize;
use ureq::config::RedirectAuthHeaders;
use ureq::http::{HeaderMap, Response};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use super::error::{HubError, Result};
use super::options::{PullOptions, Retry};
use super::select::{HasName, Hash, RemoteFile};

/// What every request has in common, ours and those hf-hub prepares. No content encoding: sizes and ranges are those
/// of the file itself. A macro because the two builders share no trait that can be named.
macro_rules! configure {
    ($config:expr, $retry:expr, $tls:expr) => {
        $config
            .http_status_as_error(false)
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .accept_encoding("identity")
            .user_agent(concat!("ocelli/", env!("CARGO_PKG_VERSION")))
            .tls_config($tls.clone())
            .timeout_connect(Some($retry.stall))
            .timeout_recv_response(Some($retry.stall))
            .timeout_per_read(Some($retry.stall))
            .build()
    };
}

/// A connection to the hub for one model at one revision.
pub(super) struct Client {
    api: Api,
    agent: Agent,
    tls: TlsConfig,
    id: String,
    revision: String,
    endpoint: String,
    token: Option<String>,
    retry: Retry,
}

/// A model at a revision.
pub(super) struct Description {
    /// The commit, under which all files are asked for: a branch that moves meanwhile does not mix two versions.
    pub(super) commit: String,
    /// All files of the repository.
    pub(super) files: Vec<Listed>,
}

/// A file as the description lists it; mirrors may leave out everything but the name.
#[derive(Debug, Deserialize)]
pub(super) struct Listed {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Debug, Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

#[derive(Deserialize)]
struct ModelInfo {
    sha: String,
    siblings: Vec<Listed>,
}

impl HasName for Listed {
    fn name(&self) -> &str {
        &self.rfilename
    }
}

impl Client {
    /// Sets up the connection; nothing is sent yet.
    pub(super) fn new(options: &PullOptions) -> Result<Self> {
        if options.offline {
            return Err(HubError::Offline { id: options.id.clone() });
        }
        let tls = TlsConfig::builder().root_certs(certificates(options)?).build();
        let agent = configure!(Agent::config_builder(), options.retry, tls).into();
        let api = ApiBuilder::from_cache(Cache::new(options.cache.dir().to_path_buf()))
            .with_endpoint(options.endpoint.clone())
            .with_token(options.token.clone())
            .with_user_agent("ocelli", env!("CARGO_PKG_VERSION"))
            .with_progress(false)
            .build()
            .map_err(|error| HubError::Unreachable {
                endpoint: options.endpoint.clone(),
                message: error.to_string(),
            })?;
        Ok(Self {
            api,
            agent,
            tls,
            id: options.id.clone(),
            revision: options.revision().into(),
            endpoint: options.endpoint.clone(),
            token: options.token.clone(),
            retry: options.retry,
        })
    }

    /// Which commit the revision is, and which files it has.
    pub(super) fn describe(&self) -> Result<Description> {
        let repo = Repo::with_revision(self.id.clone(), RepoType::Model, self.revision.clone());
        let url = format!("{}/api/{}", self.endpoint, repo.api_url());
        let repo = self.api.repo(repo);
        let info: ModelInfo = self.patiently(|| {
            let request = repo.info_request().query("blobs", "true");
            let mut response = self.answer(&url, configure!(request.config(), self.retry, self.tls).call())?;
            let read = response.body_mut().with_config().limit(MAX_DESCRIPTION).read_to_string();
            let text = read.map_err(|error| self.unreachable(&error))?;
            let protocol =
                |error: serde_json::Error| HubError::Protocol { url: url.clone(), message: error.to_string() };
            serde_json::from_str(&text).map_err(protocol)
        })?;
        if info.sha.is_empty() || !info.sha.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(HubError::Protocol { url, message: format!("`{}` is not a commit", info.sha) });
        }
        Ok(Description { commit: info.sha, files: info.siblings })
    }

    /// Size and hash of a file: from the description, else by asking for the file's headers.
    pub(super) fn complete(&self, listed: Listed, commit: &str) -> Result<RemoteFile> {
        let lfs_hash = listed.lfs.as_ref().and_then(|lfs| lfs.sha256.as_deref());
        let hash = lfs_hash.or(listed.blob_id.as_deref()).and_then(Hash::from_etag);
        match listed.lfs.as_ref().and_then(|lfs| lfs.size).or(listed.size) {
            Some(size) if hash.is_some() => Ok(RemoteFile { name: listed.rfilename, size, hash }),
            _ => self.patiently(|| self.headers_of(&listed.rfilename, commit)),
        }
    }

    /// The bytes of a file from `start` on.
    pub(super) fn open(&self, name: &str, commit: &str, start: u64) -> Result<Response<Body>> {
        let url = self.url(name, commit);
        let mut request = self.authorised(self.agent.get(&url));
        if start > 0 {
            request = request.header("Range", format!("bytes={start}-"));
        }
        match request.call() {
            // Asked for bytes past the end: the caller finds that the length is wrong.
            Ok(response) if response.status() == 416 => Ok(response),
            result => self.answer(&url, result),
        }
    }

    /// Repeats a small request while its failure may be temporary.
    fn patiently<T>(&self, request: impl Fn() -> Result<T>) -> Result<T> {
        let mut attempt = 1;
        loop {
            match request() {
                Err(error) if error.is_transient() && attempt < self.retry.n_attempts.min(MAX_SMALL_ATTEMPTS) => {
                    std::thread::sleep(self.retry.wait(attempt));
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    /// Asks for a file's headers without following it to the storage server: the hub's own answer has the hash.
    fn headers_of(&self, name: &str, commit: &str) -> Result<RemoteFile> {
        let mut url = self.url(name, commit);
        for _ in 0..MAX_REDIRECTS {
            let request = self.authorised(self.agent.head(&url)).config().max_redirects(0);
            let response = self.answer(&url, request.max_redirects_will_error(false).build().call())?;
            let header = |key: &str| text_header(response.headers(), key);
            if let Some(location) = header("location").filter(|location| location.starts_with('/')) {
                // A renamed repository.
                url = format!("{}{location}", self.endpoint);
                continue;
            }
            let size = header("x-linked-size").or_else(|| header("content-length"));
            let Some(size) = size.and_then(|size| size.parse().ok()) else {
                return Err(HubError::Protocol { url, message: "the size is missing".into() });
            };
            let etag = header("x-linked-etag").or_else(|| header("etag"));
            return Ok(RemoteFile { name: name.into(), size, hash: etag.and_then(Hash::from_etag) });
        }
        Err(HubError::Protocol { url, message: "too many redirects".into() })
    }

    fn url(&self, name: &str, commit: &str) -> String {
        format!("{}/{}/resolve/{commit}/{}", self.endpoint, self.id, percent_encoded(name))
    }

    /// Adds the token; `ureq` does not pass it on when the hub redirects to a storage server.
    fn authorised<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.token {
            Some(token) => request.header("Authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    /// Turns a failed request, or a status that is no success, into the error to show.
    fn answer(&self, url: &str, result: Result<Response<Body>, ureq::Error>) -> Result<Response<Body>> {
        let mut response = result.map_err(|error| self.unreachable(&error))?;
        let status = response.status().as_u16();
        if status < 400 {
            return Ok(response);
        }
        let header = |key: &str| text_header(response.headers(), key).unwrap_or_default().to_string();
        let (code, mut message) = (header("x-error-code"), header("x-error-message"));
        if message.is_empty() {
            message = response.body_mut().with_config().limit(MAX_MESSAGE).read_to_string().unwrap_or_default();
            message = message.lines().next().unwrap_or_default().to_string();
        }
        let (id, endpoint, has_token) = (self.id.clone(), self.endpoint.clone(), self.token.is_some());
        Err(match (status, code.as_str()) {
            (_, "GatedRepo") => HubError::Gated { id, endpoint, has_token },
            (_, "RevisionNotFound") => HubError::NoRevision { id, revision: self.revision.clone() },
            (401, "") | (401, "InvalidToken") if has_token => HubError::TokenRefused { endpoint },
            (_, "RepoNotFound") | (401, _) => HubError::NotFound { id, endpoint, has_token },
            (404, "") if url.contains("/api/") => HubError::NotFound { id, endpoint, has_token },
            (403, _) => HubError::Denied { id, endpoint, message },
            _ => HubError::Status { url: url.into(), status, message },
        })
    }

    fn unreachable(&self, error: &ureq::Error) -> HubError {
        HubError::Unreachable { endpoint: self.endpoint.clone(), message: error.to_string() }
    }
}

impl Retry {
    /// How long to wait after the n-th failure in a row, counted from 1.
    pub(super) fn wait(&self, n_failures: u32) -> Duration {
        self.first_wait.saturating_mul(1 << n_failures.saturating_sub(1).min(10)).min(Duration::from_secs(30))
    }
}

/// The authorities of the user's network, or the public ones.
fn certificates(options: &PullOptions) -> Result<RootCerts> {
    let Some(path) = &options.certificates else { return Ok(RootCerts::WebPki) };
    let error = |message: String| HubError::Certificates { path: path.clone(), message };
    let pem = std::fs::read(path).map_err(|source| error(source.to_string()))?;
    let certificates: Vec<_> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        return Err(error("it holds none in PEM form".into()));
    }
    Ok(RootCerts::Specific(Arc::new(certificates)))
}

/// A header's value, when it is text.
pub(super) fn text_header<'a>(headers: &'a HeaderMap, key: &str) -> Option<&'a str> {
    headers.get(key).and_then(|value| value.to_str().ok())
}

/// Escapes what may not stand in the path of a URL; slashes stay.
fn percent_encoded(name: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte);
    name.bytes()
        .map(|byte| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// The largest descriptions seen have some thousand files.
const MAX_DESCRIPTION: u64 = 64 * 1024 * 1024;
const MAX_MESSAGE: u64 = 4096;
const MAX_REDIRECTS: usize = 4;
/// Descriptions are small: when three attempts fail, somebody is waiting in vain.
const MAX_SMALL_ATTEMPTS: u32 = 3;
