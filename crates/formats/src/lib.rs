//! Model files: safetensors, config.json, model folders; bytes in, named views out.
//!
//! What it never holds: a model's arithmetic (numbers are only converted from one format to another), network, model
//! names outside `borrowed`, `canonical`, `gguf` and `mlx`.
//!
//! - [`ModelFiles`]: the files of one model, in a folder or embedded in the binary.
//! - [`Config`]: `config.json` in one canonical form, whatever wrote it.
//! - [`Borrowed`]: what a published model takes from another one.
//! - [`ByteLevel`]: a `tokenizer.json` from the parts of a byte-level tokenizer.
//! - [`Checkpoint`]: every weight of a model by name, over one or many safetensors files or in a GGUF file.
//! - [`WeightData`]: a matrix as floats or, whatever format it was quantised in, as a [`GroupedTensor`].
//! - [`CheckpointWriter`], [`MlxNames`]: the way back, for quantised checkpoints.
//! - [`hub_cache`]: where the Hugging Face tools keep models on this machine.
#![deny(unsafe_code)]

mod affine;
mod borrowed;
mod byte_level;
mod bytes;
mod canonical;
mod checkpoint;
mod config;
mod dtype;
mod error;
mod files;
mod gguf;
mod grouped;
pub mod hub_cache;
mod mapped;
mod mlx;
mod quantization;
mod quantize;
mod safetensors;
mod stored;
mod tensor;
mod writer;

pub use borrowed::Borrowed;
pub use byte_level::{AddedToken, ByteLevel, Cut};
pub use bytes::SharedBytes;
pub use checkpoint::Checkpoint;
pub use config::{Config, Section};
pub use dtype::Dtype;
pub use error::{Error, Result};
pub use files::{ModelFiles, PARTS};
pub use gguf::{Gguf, GgufValue};
pub use grouped::{CodeBits, GroupedLayout, GroupedTensor, WeightData};
pub use mlx::{MlxName, MlxNames};
pub use quantization::{ModuleQuantization, Quantization};
pub use safetensors::Safetensors;
pub use stored::StoredTensor;
pub use tensor::TensorData;
pub use writer::CheckpointWriter;
