//! Memory-mapped files.
//!
//! A mapping shares its pages with the file. Replacing a model by writing a new file and renaming it (what every
//! download tool, ours included, does) is safe: the mapping keeps the old file alive. Truncating or overwriting a
//! file in place while it is mapped is not: on unix, touching a page past the new end ends the process with SIGBUS,
//! and overwritten weights change under the reader. Windows refuses to truncate a mapped file.

use std::fs::File;
use std::ops::Range;

use memmap2::Mmap;

/// Maps the whole of `file` read-only. An empty file gives an empty mapping.
#[expect(unsafe_code, reason = "mapping a file cannot be expressed safely; see the module documentation")]
pub(crate) fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the mapping is private to this process and read-only, and the bytes are plain u8 with no invalid
    // values, so the only hazard is another process changing the file in place while it is mapped. That cannot be
    // ruled out here; it is documented above, and no tool that manages model files works that way.
    unsafe { Mmap::map(file) }
}

/// Gives the memory of a range back to the system; whoever reads it again finds the file's bytes as before.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "the advice is only safe for mappings of files, which the type does not say")]
pub(crate) fn release(map: &Mmap, range: Range<usize>) {
    if range.is_empty() {
        return;
    }
    // SAFETY: `map` is a shared, read-only mapping of a file (see `map`). On Linux, MADV_DONTNEED drops the pages of
    // such a mapping from this process, and the next access maps the same page of the file again (madvise(2)): no
    // byte that a reference can see changes. Whether the system took the advice does not matter.
    let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len()) };
}

/// Elsewhere the same advice may mean something else; the system drops file pages by itself when memory is short.
#[cfg(not(target_os = "linux"))]
pub(crate) fn release(_map: &Mmap, _range: Range<usize>) {}
