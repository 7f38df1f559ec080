//! Test helpers, never part of a program: the reference backend, the conformance table that every
//! backend passes, and a writer of GGUF files.
#![forbid(unsafe_code)]

mod conformance;
mod gguf;
mod random;
mod reference;

pub use conformance::conformance;
pub use gguf::{GgufWriter, gguf_type};
pub use random::Random;
pub use reference::ReferenceBackend;
