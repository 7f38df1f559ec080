//! One file from the hub to the disk: resumed, retried, verified.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;

use ring::digest;

use super::client::{Client, text_header};
use super::error::{HubError, Result};
use super::layout::{Layout, create_folder};
use super::options::Retry;
use super::progress::Progress;
use super::select::{Hash, RemoteFile};

/// Downloads a file into its blob, continuing where an earlier attempt stopped; returns the bytes transferred.
///
/// A failure that may be temporary is retried after a wait that doubles; new bytes reset the count. A content that
/// is not what the hub announced is deleted and reported, never kept.
pub(super) fn fetch(
    client: &Client,
    layout: &Layout,
    file: &RemoteFile,
    commit: &str,
    progress: &Progress,
    retry: &Retry,
) -> Result<u64> {
    let _lock = layout.lock(file)?;
    if layout.has(file, commit) {
        // Another process finished it while this one waited for the lock.
        return Ok(0);
    }
    let partial = layout.partial(file, commit);
    create_folder(partial.parent().unwrap_or(&partial))?;
    let mut download = Download { client, file, commit, partial: &partial, progress, transferred: 0 };
    let mut n_failures = 0;
    loop {
        let start = download.length()?;
        if start == file.size {
            break;
        }
        let Err(error) = download.attempt(start) else { continue };
        if !error.is_transient() {
            return Err(error);
        }
        n_failures = if download.length()? > start { 1 } else { n_failures + 1 };
        if n_failures >= retry.n_attempts {
            return Err(match error {
                HubError::Interrupted { file, message, .. } => {
                    HubError::Interrupted { file, message, n_attempts: n_failures }
                }
                other => other,
            });
        }
        std::thread::sleep(retry.wait(n_failures));
    }
    let transferred = download.transferred;
    progress.verifying(&file.name);
    verify(file, &partial)?;
    let blob = layout.blob(file, commit);
    std::fs::rename(&partial, &blob).map_err(|source| HubError::Io { path: blob, source })?;
    Ok(transferred)
}

struct Download<'a> {
    client: &'a Client,
    file: &'a RemoteFile,
    commit: &'a str,
    partial: &'a Path,
    progress: &'a Progress,
    transferred: u64,
}

impl Download<'_> {
    /// Bytes there are so far; creates the file. More than there should be means that it is some other content.
    fn length(&self) -> Result<u64> {
        let open = OpenOptions::new().create(true).append(true).open(self.partial);
        let length = open.and_then(|file| file.metadata()).map_err(|error| self.io_error(error))?.len();
        if length <= self.file.size {
            return Ok(length);
        }
        std::fs::write(self.partial, []).map_err(|error| self.io_error(error))?;
        self.progress.take_back(self.file.size);
        Ok(0)
    }

    /// Appends what one connection delivers. Success means that every announced byte came.
    fn attempt(&mut self, start: u64) -> Result<()> {
        let response = self.client.open(&self.file.name, self.commit, start)?;
        let begins_at = match response.status().as_u16() {
            206 => self.range_start(text_header(response.headers(), "content-range"))?,
            416 => return Err(self.wrong_size(start)),
            _ => 0,
        };
        if begins_at != start && begins_at != 0 {
            return Err(self.protocol("it sent another range than was asked for"));
        }
        if let Some(length) = response.body().content_length()
            && begins_at + length != self.file.size
        {
            return Err(self.wrong_size(begins_at + length));
        }
        let mut target = OpenOptions::new().append(true).open(self.partial).map_err(|error| self.io_error(error))?;
        if begins_at < start {
            // The server ignores ranges and starts over: so must we.
            target.set_len(0).map_err(|error| self.io_error(error))?;
            self.progress.take_back(start);
        }
        self.copy(response.into_body().into_reader(), &mut target, begins_at)
    }

    fn copy(&mut self, mut body: impl Read, target: &mut File, mut length: u64) -> Result<()> {
        let mut buffer = vec![0; BUFFER];
        loop {
            let n_read = match body.read(&mut buffer) {
                Ok(n_read) => n_read,
                Err(error) => return Err(self.interrupted(&error.to_string())),
            };
            if n_read == 0 {
                break;
            }
            length += n_read as u64;
            if length > self.file.size {
                return Err(self.wrong_size(length));
            }
            target.write_all(&buffer[..n_read]).map_err(|error| self.io_error(error))?;
            self.transferred += n_read as u64;
            self.progress.add(n_read as u64);
        }
        if length < self.file.size { Err(self.interrupted("the connection was closed early")) } else { Ok(()) }
    }

    /// The first position of `bytes 5-9/10`.
    fn range_start(&self, content_range: Option<&str>) -> Result<u64> {
        let start =
            content_range.and_then(|range| range.trim().strip_prefix("bytes ")?.split('-').next()?.parse().ok());
        start.ok_or_else(|| self.protocol("the content range is missing or malformed"))
    }

    fn interrupted(&self, message: &str) -> HubError {
        HubError::Interrupted { file: self.file.name.clone(), n_attempts: 1, message: message.into() }
    }

    fn protocol(&self, message: &str) -> HubError {
        HubError::Protocol { url: self.file.name.clone(), message: message.into() }
    }

    /// Gives up on the content: what is there may be part of something else.
    fn wrong_size(&self, actual: u64) -> HubError {
        drop(std::fs::remove_file(self.partial));
        HubError::Size { file: self.file.name.clone(), expected: self.file.size, actual }
    }

    fn io_error(&self, source: std::io::Error) -> HubError {
        HubError::Io { path: self.partial.into(), source }
    }
}

/// Compares a complete download with its announced hash; deletes it when it differs.
fn verify(file: &RemoteFile, path: &Path) -> Result<()> {
    let (algorithm, name, prefix, expected) = match &file.hash {
        Some(Hash::Sha256(expected)) => (&digest::SHA256, "sha256", String::new(), expected),
        Some(Hash::Git(expected)) => {
            (&digest::SHA1_FOR_LEGACY_USE_ONLY, "git sha1", format!("blob {}\0", file.size), expected)
        }
        Some(Hash::Opaque(_)) | None => return Ok(()),
    };
    let io_error = |source| HubError::Io { path: path.into(), source };
    let mut context = digest::Context::new(algorithm);
    context.update(prefix.as_bytes());
    let mut content = File::open(path).map_err(io_error)?;
    let mut buffer = vec![0; BUFFER];
    loop {
        let n_read = content.read(&mut buffer).map_err(io_error)?;
        if n_read == 0 {
            break;
        }
        context.update(&buffer[..n_read]);
    }
    let actual: String = context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    if actual == *expected {
        return Ok(());
    }
    drop(std::fs::remove_file(path));
    Err(HubError::Checksum { file: file.name.clone(), algorithm: name, expected: expected.clone(), actual })
}

/// Large enough that system calls cost nothing, small enough to stay in the cache.
const BUFFER: usize = 256 * 1024;
