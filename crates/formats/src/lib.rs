//! Model files: safetensors, config.json, model folders; bytes in, named views out.
//!
//! What it never holds: arithmetic (beyond widening a number), network, model names outside `canonical`.
//!
//! - [`ModelFiles`]: the files of one model, in a folder or embedded in the binary.
//! - [`Config`]: `config.json` in one canonical form, whatever wrote it.
//! - [`Checkpoint`]: every weight of a model by name, over one or many safetensors files.
//! - [`hub_cache`]: where the Hugging Face tools keep models on this machine.
#![deny(unsafe_code)]

mod bytes;
mod canonical;
mod checkpoint;
mod config;
mod dtype;
mod error;
mod files;
pub mod hub_cache;
mod mapped;
mod quantization;
mod safetensors;
mod tensor;

pub use bytes::SharedBytes;
pub use checkpoint::Checkpoint;
pub use config::{Config, Section};
pub use dtype::Dtype;
pub use error::{Error, Result};
pub use files::ModelFiles;
pub use quantization::{ModuleQuantization, Quantization};
pub use safetensors::Safetensors;
pub use tensor::TensorData;
