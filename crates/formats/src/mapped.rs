//! Memory-mapped files. The only unsafe code of this crate.
//!
//! A mapping shares its pages with the file. Replacing a model by writing a new file and renaming it (what every
//! download tool, ours included, does) is safe: the mapping keeps the old file alive. Truncating or overwriting a
//! file in place while it is mapped is not: on unix, touching a page past the new end ends the process with SIGBUS,
//! and overwritten weights change under the reader. Windows refuses to truncate a mapped file.

use std::fs::File;

use memmap2::Mmap;

/// Maps the whole of `file` read-only. An empty file gives an empty mapping.
#[expect(unsafe_code, reason = "mapping a file cannot be expressed safely; see the module documentation")]
pub(crate) fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the mapping is private to this process and read-only, and the bytes are plain u8 with no invalid
    // values, so the only hazard is another process changing the file in place while it is mapped. That cannot be
    // ruled out here; it is documented above, and no tool that manages model files works that way.
    unsafe { Mmap::map(file) }
}
