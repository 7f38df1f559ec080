//! One file per command. Each turns its arguments into calls of the engine, and the results into text.

pub(crate) mod bench;
pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod describe;
pub(crate) mod eval_demo;
pub(crate) mod eval_parity;
pub(crate) mod list;
pub(crate) mod locate;
pub(crate) mod models;
pub(crate) mod pipe;
pub(crate) mod pull;
pub(crate) mod quantize;
pub(crate) mod rm;
pub(crate) mod run;
pub(crate) mod show;
pub(crate) mod transcribe;
