//! Audio: any file to samples of one rate, and those to what a model hears.

mod decode;
mod mel;
mod resample;

pub use decode::{Audio, AudioLimits, decode_audio};
pub use mel::{LogMel, MelExtractor};
