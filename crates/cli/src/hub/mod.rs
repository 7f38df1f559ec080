//! Models from the Hugging Face hub: `ocelli pull`, `list` and `rm`.
//!
//! Files go into the cache that every tool of that family shares (see `ocelli_formats::hub_cache`). `hf-hub` makes
//! the authenticated requests for a model's description and names the cache's files; the transfers are done here on
//! `ureq`, because hf-hub 0.5 appends blindly when a server ignores a range request, waits forever on a stalled
//! connection and checks no checksum. A pull
//! 1. asks which commit the revision is and which files it has (`client`), and chooses what a model needs (`select`);
//! 2. checks the free disk space;
//! 3. downloads each file into `blobs/<hash>.incomplete`, resuming and retrying, verifies it, renames it (`transfer`);
//! 4. links it into the snapshot, and only when all are there lets the branch point at it (`layout`).
//!
//! Some models take files from another one ([`Borrowed`]), which are pulled after them.
//!
//! Interrupted at any moment, the next pull continues; a pull that finishes never leaves a wrong file behind.

mod client;
mod error;
mod layout;
mod options;
mod progress;
mod select;
#[cfg(test)]
mod test_server;
#[cfg(test)]
mod tests;
mod transfer;

use std::fmt;
use std::path::PathBuf;
use std::time::Instant;

use indicatif::DecimalBytes;
use ocelli_formats::hub_cache::{CachedModel, HubCache};
use ocelli_formats::{Borrowed, ModelFiles};
use serde::Serialize;

pub(crate) use error::HubError;
pub(crate) use options::PullOptions;

use client::Client;
use layout::Layout;
use progress::Progress;

/// What a pull did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct PullReport {
    /// The model id.
    pub(crate) id: String,
    /// The branch, tag or commit asked for.
    pub(crate) revision: String,
    /// The commit it is.
    pub(crate) commit: String,
    /// The snapshot folder, ready to be opened.
    pub(crate) path: PathBuf,
    /// Files of the model.
    pub(crate) n_files: usize,
    /// Files that had to be fetched.
    pub(crate) n_downloaded: usize,
    /// Bytes of all files.
    pub(crate) total_bytes: u64,
    /// Bytes that came over the network.
    pub(crate) downloaded_bytes: u64,
    /// How long it took.
    pub(crate) seconds: f64,
    /// What was fetched of another model, which this one takes files from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) borrowed: Option<Box<PullReport>>,
}

/// Downloads a model, or what is missing of it, into the cache, and what it takes from another model.
///
/// # Errors
/// [`HubError`], whose `hint` says what the user can do.
pub(crate) fn pull(options: &PullOptions) -> anyhow::Result<PullReport> {
    let mut report = pull_one(options)?;
    // A model that cannot be opened says so when it is used.
    if let Some(borrowed) = ModelFiles::open(&report.path).ok().and_then(|files| Borrowed::by(&files)) {
        let (id, only) = (borrowed.from.to_owned(), Some(borrowed.files));
        report.borrowed = Some(Box::new(pull_one(&PullOptions { id, revision: None, only, ..options.clone() })?));
    }
    Ok(report)
}

fn pull_one(options: &PullOptions) -> anyhow::Result<PullReport> {
    let started = Instant::now();
    let layout = Layout::new(options)?;
    let client = Client::new(options)?;
    let description = client.describe()?;
    let files = match options.only {
        Some(names) => select::only(&options.id, description.files, names)?,
        None => select::needed(&options.id, description.files)?,
    };
    let files =
        files.into_iter().map(|file| client.complete(file, &description.commit)).collect::<Result<Vec<_>, _>>()?;
    layout.check_space(&files, &description.commit)?;

    let progress = Progress::start(&layout, &files, &description.commit, options.show_progress);
    let (mut n_downloaded, mut downloaded_bytes) = (0, 0);
    for file in &files {
        if layout.has(file, &description.commit) {
            layout.link(file, &description.commit)?;
            continue;
        }
        progress.file(&file.name);
        downloaded_bytes += transfer::fetch(&client, &layout, file, &description.commit, &progress, &options.retry)?;
        n_downloaded += 1;
        layout.link(file, &description.commit)?;
    }
    layout.point_ref(&description.commit)?;
    progress.finish();
    Ok(PullReport {
        id: options.id.clone(),
        revision: options.revision().into(),
        path: layout.snapshot(&description.commit),
        commit: description.commit,
        n_files: files.len(),
        n_downloaded,
        total_bytes: files.iter().map(|file| file.size).sum(),
        downloaded_bytes,
        seconds: started.elapsed().as_secs_f64(),
        borrowed: None,
    })
}

/// What is in the cache, for `ocelli list`.
///
/// # Errors
/// When the cache cannot be read.
pub(crate) fn list(cache: &HubCache) -> anyhow::Result<Listing> {
    Ok(Listing { models: cache.list()? })
}

/// Deletes a model from the cache, for `ocelli rm`, and returns the bytes freed.
///
/// # Errors
/// When the model is not in the cache or cannot be deleted.
pub(crate) fn remove(cache: &HubCache, id: &str) -> anyhow::Result<u64> {
    Ok(cache.remove(id)?)
}

/// The models in the cache: a table when printed, an array in JSON.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub(crate) struct Listing {
    pub(crate) models: Vec<CachedModel>,
}

impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.models.iter().map(|model| model.id.len()).max().unwrap_or_default().max("MODEL".len());
        writeln!(f, "{:width$}  {:>10}  {:14}  REVISION", "MODEL", "SIZE", "STATE")?;
        for model in &self.models {
            let size = DecimalBytes(model.size_bytes).to_string();
            let state = model.problem.as_deref().unwrap_or("complete");
            let revisions: Vec<String> = model.revisions.iter().map(short_revision).collect();
            writeln!(f, "{:width$}  {size:>10}  {state:14}  {}", model.id, revisions.join(", "))?;
        }
        Ok(())
    }
}

/// `main (0123456)`, or just the commit when no branch points at it.
fn short_revision(revision: &ocelli_formats::hub_cache::CachedRevision) -> String {
    let commit: String = revision.commit.chars().take(7).collect();
    if revision.refs.is_empty() { commit } else { format!("{} ({commit})", revision.refs.join(" ")) }
}
