//! Shared, immutable bytes: what every tensor of a model is a view of.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use crate::error::{Error, Result};
use crate::mapped;

/// Cheaply cloned bytes: a mapped file, a `Vec` or a `&'static [u8]`, and the range of it that is visible.
///
/// Cloning and slicing copy no bytes; the owner lives as long as its last view.
#[derive(Clone)]
pub struct SharedBytes {
    owner: Owner,
    range: Range<usize>,
}

#[derive(Clone)]
enum Owner {
    Static(&'static [u8]),
    Heap(Arc<Vec<u8>>),
    Mapped(Arc<Mmap>),
}

impl SharedBytes {
    /// The bytes of a file: mapped when it is large, read when it is small.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be opened, read or mapped.
    pub fn open(path: &Path) -> Result<Self> {
        let io_error = |source| Error::Io { path: path.to_path_buf(), source };
        let mut file = File::open(path).map_err(io_error)?;
        let length = file.metadata().map_err(io_error)?.len();
        if length < MAP_FROM {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).map_err(io_error)?;
            return Ok(bytes.into());
        }
        let map = mapped::map(&file).map_err(io_error)?;
        Ok(Self { range: 0..map.len(), owner: Owner::Mapped(Arc::new(map)) })
    }

    /// A view of `range` within these bytes; `None` when it is out of bounds or reversed.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        self.as_ref().get(range.clone())?;
        let start = self.range.start;
        Some(Self { owner: self.owner.clone(), range: start + range.start..start + range.end })
    }

    /// Says that these bytes will not be read again soon: of a mapped file, their memory is the system's again. They
    /// stay readable.
    pub fn release(&self) {
        if let Owner::Mapped(map) = &self.owner {
            mapped::release(map, self.range.clone());
        }
    }

    /// Whether the bytes are a view of a file on disk, whose pages the system may drop and read again.
    pub fn is_mapped(&self) -> bool {
        matches!(self.owner, Owner::Mapped(_))
    }
}

impl Deref for SharedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let all: &[u8] = match &self.owner {
            Owner::Static(bytes) => bytes,
            Owner::Heap(bytes) => bytes,
            Owner::Mapped(map) => map,
        };
        // `range` was checked against the owner when the view was made, and owners never change length.
        &all[self.range.clone()]
    }
}

impl AsRef<[u8]> for SharedBytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<Vec<u8>> for SharedBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self { range: 0..bytes.len(), owner: Owner::Heap(Arc::new(bytes)) }
    }
}

impl From<&'static [u8]> for SharedBytes {
    fn from(bytes: &'static [u8]) -> Self {
        Self { range: 0..bytes.len(), owner: Owner::Static(bytes) }
    }
}

impl fmt::Debug for SharedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let owner = match self.owner {
            Owner::Static(_) => "static",
            Owner::Heap(_) => "heap",
            Owner::Mapped(_) => "mapped",
        };
        write!(f, "SharedBytes({owner}, {} bytes)", self.len())
    }
}

/// Smaller files are read: a mapping costs a page fault per 4 KiB and holds the file open on Windows.
const MAP_FROM: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_nest_and_are_bounded() {
        let bytes = SharedBytes::from((0u8..100).collect::<Vec<_>>());
        let inner = bytes.slice(10..20).unwrap();
        let nested = inner.slice(2..5).unwrap();
        assert_eq!(&*nested, &[12, 13, 14]);
        assert!(inner.slice(5..11).is_none());
        assert!(inner.slice(10..10).unwrap().is_empty());
        #[expect(clippy::reversed_empty_ranges, reason = "that is the case under test")]
        let reversed = 5..4;
        assert!(inner.slice(reversed).is_none());
        assert!(inner.slice(usize::MAX - 1..usize::MAX).is_none());
    }

    #[test]
    fn views_outlive_the_first_owner() {
        let view = SharedBytes::from(vec![1, 2, 3]).slice(1..3).unwrap();
        assert_eq!(&*view, &[2, 3]);
        let embedded: &'static [u8] = b"abc";
        assert_eq!(format!("{:?}", SharedBytes::from(embedded)), "SharedBytes(static, 3 bytes)");
    }

    #[test]
    fn large_files_are_mapped_small_ones_read() {
        let folder = tempfile::tempdir().unwrap();
        let small = folder.path().join("small");
        let large = folder.path().join("large");
        std::fs::write(&small, b"tiny").unwrap();
        std::fs::write(&large, vec![7; 64 * 1024]).unwrap();
        let (small, large) = (SharedBytes::open(&small).unwrap(), SharedBytes::open(&large).unwrap());
        assert_eq!((&*small, small.is_mapped()), (&b"tiny"[..], false));
        assert_eq!((large.len(), large[65535], large.is_mapped()), (64 * 1024, 7, true));
        let missing = SharedBytes::open(&folder.path().join("missing")).unwrap_err();
        assert!(matches!(missing, Error::Io { .. }));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn released_bytes_leave_memory_and_read_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        let content: Vec<u8> = (0..32 << 20).map(|i: usize| (i / 5) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let resident = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
        };
        let bytes = SharedBytes::open(&path).unwrap();
        assert!(*bytes == *content);
        let before = resident();
        bytes.slice(4096..bytes.len() - 1).unwrap().release();
        assert!(resident() + (24 << 20) < before, "{} of {before} bytes are left", resident());
        assert!(*bytes == *content);
        SharedBytes::from(vec![1]).release();
    }
}
