//! Where a model's files lie in the shared cache.
//!
//! `blobs/<hash>` holds a content once, `snapshots/<commit>/<name>` links to it, `refs/<revision>` names a commit.
//! `blobs/<hash>.incomplete` and the lock files are those of the Python tools, so both may resume each other's
//! downloads and neither starts one that the other has under way.

use std::fs::File;
use std::path::{Path, PathBuf};

use hf_hub::{Cache, Repo, RepoType};

use super::error::{HubError, Result};
use super::options::PullOptions;
use super::select::RemoteFile;

/// One model's folder in the cache.
pub(super) struct Layout {
    cache: Cache,
    repo: Repo,
    root: PathBuf,
}

impl Layout {
    /// Checks the id and the revision, which become paths.
    pub(super) fn new(options: &PullOptions) -> Result<Self> {
        let bad_id = |_| HubError::BadModelId { id: options.id.clone() };
        let root = options.cache.model_dir(&options.id).map_err(bad_id)?;
        let revision = options.revision();
        let is_part = |part: &str| {
            let legal = part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.+@".contains(&byte));
            !part.is_empty() && legal && !part.contains("..") && part != "."
        };
        if !revision.split('/').all(is_part) {
            return Err(HubError::BadRevision { revision: revision.into() });
        }
        let repo = Repo::with_revision(options.id.clone(), RepoType::Model, revision.into());
        Ok(Self { cache: Cache::new(options.cache.dir().to_path_buf()), repo, root })
    }

    /// The folder of a commit's files.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.cache.repo(self.repo.clone()).pointer_path(commit)
    }

    /// Where a content lies once it is complete.
    pub(super) fn blob(&self, file: &RemoteFile, commit: &str) -> PathBuf {
        match &file.hash {
            Some(hash) => self.cache.repo(self.repo.clone()).blob_path(hash.name()),
            // Without a name for the content there is nothing to share it by.
            None => self.snapshot(commit).join(&file.name),
        }
    }

    /// Where a content lies until then.
    pub(super) fn partial(&self, file: &RemoteFile, commit: &str) -> PathBuf {
        let mut path = self.blob(file, commit).into_os_string();
        path.push(".incomplete");
        path.into()
    }

    /// Whether a file is complete: in the snapshot, or as a blob that a link is missing to.
    pub(super) fn has(&self, file: &RemoteFile, commit: &str) -> bool {
        let is_whole = |path: PathBuf| path.metadata().is_ok_and(|about| about.is_file() && about.len() == file.size);
        is_whole(self.blob(file, commit)) || is_whole(self.snapshot(commit).join(&file.name))
    }

    /// Bytes of a file that are there already, complete or not.
    pub(super) fn bytes_present(&self, file: &RemoteFile, commit: &str) -> u64 {
        if self.has(file, commit) {
            return file.size;
        }
        self.partial(file, commit).metadata().map_or(0, |about| about.len().min(file.size))
    }

    /// Fails early when the rest of the download will not fit on the disk.
    pub(super) fn check_space(&self, files: &[RemoteFile], commit: &str) -> Result<()> {
        let needed: u64 = files.iter().map(|file| file.size - self.bytes_present(file, commit)).sum();
        create_folder(&self.root)?;
        match fs4::available_space(&self.root) {
            Ok(free) if needed > 0 && free < needed.saturating_add(SPARE) => {
                Err(HubError::NoSpace { path: self.root.clone(), needed, free })
            }
            // Some network file systems cannot say; the download will find out.
            _ => Ok(()),
        }
    }

    /// Waits until no other process downloads this content, and keeps it so until the lock is dropped.
    pub(super) fn lock(&self, file: &RemoteFile) -> Result<Option<File>> {
        let Some(hash) = &file.hash else { return Ok(None) };
        let folder = self.cache.path().join(".locks").join(self.repo.folder_name());
        create_folder(&folder)?;
        let path = folder.join(format!("{}.lock", hash.name()));
        let lock = File::create(&path).map_err(|source| HubError::Io { path: path.clone(), source })?;
        // File systems without locks: the worst case is the same bytes written twice.
        drop(lock.lock());
        Ok(Some(lock))
    }

    /// Links a complete blob into the snapshot; where links cannot be made, moves it.
    pub(super) fn link(&self, file: &RemoteFile, commit: &str) -> Result<()> {
        let (blob, pointer) = (self.blob(file, commit), self.snapshot(commit).join(&file.name));
        if blob == pointer || (pointer.exists() && same_file(&pointer, &blob)) {
            return Ok(());
        }
        let io_error = |source| HubError::Io { path: pointer.clone(), source };
        create_folder(pointer.parent().unwrap_or(&self.root))?;
        if pointer.symlink_metadata().is_ok() {
            std::fs::remove_file(&pointer).map_err(io_error)?;
        }
        let mut target = PathBuf::from_iter(["..", ".."]);
        target.extend(file.name.split('/').skip(1).map(|_| ".."));
        target.push("blobs");
        target.push(blob.file_name().unwrap_or_default());
        if symlink(&target, &pointer).is_err() {
            std::fs::rename(&blob, &pointer).map_err(io_error)?;
        }
        Ok(())
    }

    /// Lets the branch or tag point at the commit; a commit needs no pointer.
    pub(super) fn point_ref(&self, commit: &str) -> Result<()> {
        if self.repo.revision() == commit {
            return Ok(());
        }
        let path = self.root.join("refs").join(self.repo.revision());
        self.cache.repo(self.repo.clone()).create_ref(commit).map_err(|source| HubError::Io { path, source })
    }
}

/// Creates a folder and those above it.
pub(super) fn create_folder(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(|source| HubError::Io { path: path.into(), source })
}

fn same_file(pointer: &Path, blob: &Path) -> bool {
    match (pointer.canonicalize(), blob.canonicalize()) {
        (Ok(pointer), Ok(blob)) => pointer == blob,
        // The blob was moved to the pointer, on a system without links.
        (Ok(_), Err(_)) => true,
        _ => false,
    }
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_target: &Path, _link: &Path) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

/// Left free besides the model: a full disk breaks more than the download.
const SPARE: u64 = 64 * 1024 * 1024;
