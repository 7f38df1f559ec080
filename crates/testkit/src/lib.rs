//! Test helpers, never part of a program: the reference backend and the conformance table that every backend passes.
#![forbid(unsafe_code)]

mod conformance;
mod random;
mod reference;

pub use conformance::conformance;
pub use random::Random;
pub use reference::ReferenceBackend;
