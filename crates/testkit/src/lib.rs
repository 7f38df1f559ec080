//! Test helpers, never part of a program: the reference backend, the conformance table that every
//! backend passes, and writers of GGUF files and of MLX's Whisper.
#![forbid(unsafe_code)]

mod conformance;
mod gguf;
mod mlx_whisper;
mod random;
mod reference;

pub use conformance::conformance;
pub use gguf::{GgufWriter, gguf_type};
pub use mlx_whisper::write_mlx_whisper;
pub use random::Random;
pub use reference::ReferenceBackend;
