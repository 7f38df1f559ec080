//! The real program, driven as a user or a script drives it. The answers themselves are checked elsewhere.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

mod bench;
mod chat;
mod describe;
mod errors;
mod evaluate;
mod help;
#[cfg(unix)]
mod interrupt;
mod locate;
mod models;
mod out;
mod pipe;
mod run;
mod support;
mod transcribe;
