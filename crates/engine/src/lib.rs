//! Loads models and generates: sampling, beams, streaming, timings.
//!
//! - [`Engine`]: a loaded model behind a queue; [`Engine::submit`] a [`Request`], read [`Event`]s from the
//!   [`Generation`], end with an [`Answer`].
//! - [`Engine::transcribe`]: recordings to text, as [`TranscribeEvent`]s and a [`Transcript`].
//! - [`Engine::locate`]: where something is in a picture.
//! - [`Session`]: the model itself, as an object without a backend's type, for those who write their own loops.
//! - [`parity`] and [`metamorphic`]: is the model what the reference is, and does it keep its promises?
//! - [`demo`]: the small model that is built in, and how often it is right.
//! - [`mod@bench`]: how fast a model runs, stage by stage.
//! - [`ModelInfo`]: what a model is, without loading it.
//!
//! What it never holds: HTTP, wire types, command-line arguments, model architectures.
//!
//! ```no_run
//! use ocelli_engine::{Engine, EngineOptions, Event, GenerateOptions, Request};
//! use ocelli_formats::ModelFiles;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let engine = Engine::load(&ModelFiles::open("path/to/model")?, &EngineOptions::new())?;
//! let picture = engine.processor().decode_image(&std::fs::read("picture.png")?)?;
//! let question = Request::question("What is this?", vec![picture], GenerateOptions::greedy());
//! for event in engine.submit(question) {
//!     match event? {
//!         Event::Text { piece, .. } => print!("{piece}"),
//!         Event::Done(answer) => println!(" ({:.0} tokens/s)", answer.timings.tokens_per_second),
//!         Event::Started { .. } | Event::Reasoning { .. } => {}
//!     }
//! }
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod answer;
pub mod bench;
mod catalog;
mod compare;
pub mod demo;
mod engine;
mod error;
mod generate;
mod info;
mod loaded;
mod locate;
mod memory;
pub mod metamorphic;
mod options;
mod pack_cache;
pub mod parity;
mod plan;
mod quantize;
mod reasoning;
mod request;
mod serve;
mod session;
mod speech;
mod vision_cache;

pub use answer::{Answer, FinishDetail, FinishReason, ImageUse, Timings};
pub use catalog::{Family, PublishedModel, Task, catalog};
pub use engine::Engine;
pub use error::{Error, Result};
pub use info::ModelInfo;
pub use loaded::{LoadProgress, LoadedModel};
pub use locate::{LocateRequest, Located, Region};
pub use memory::available as available_memory;
pub use ocelli_backend::{Cancel, Held, Part, Quant, Role, SequenceId};
pub use ocelli_backend_cpu::KvPrecision;
pub use options::{EarlyStopping, EngineOptions, GenerateOptions, GenerationDefaults};
pub use pack_cache::PackCache;
pub use quantize::{QuantizeReport, QuantizedKind, quantize};
pub use request::{Event, Generation, Input, Request};
pub use session::{Align, ImageFeatures, LogitRows, Looked, Prefill, Session};
pub use speech::{Segment, TranscribeEvent, TranscribeOptions, Transcript, Transcription, Word};
