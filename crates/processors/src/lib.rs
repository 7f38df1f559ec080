//! User content to token ids and plain arrays: images, audio, tokenizers, chat templates.
//!
//! What it never holds: tensors, devices, the model itself.
//!
//! - [`decode_image`] and [`resize`]: any picture file to RGB, and Pillow's resampler to the last bit.
//! - [`VideoSource`]: the frames of animations, folders and, with `ffmpeg`, any video file.
//! - [`decode_audio`] and [`MelExtractor`]: any audio file to samples of one rate, and those to a spectrogram.
//! - [`Processor`]: one per loaded model; messages and pictures in, a [`Prompt`] (ids and pixel arrays) out.
//! - [`Tokenizer`], [`TokenStream`], [`ChatTemplate`]: its parts, for callers that need only one of them.
//!
//! A model family is one row in `families.rs` and one file beside it, implementing [`ImageProcessor`].
#![forbid(unsafe_code)]

mod audio;
mod error;
mod families;
mod image;
mod processor;
mod settings;
mod text;
mod video;

pub use audio::{Audio, AudioLimits, LogMel, MelExtractor, decode_audio};
pub use error::{Error, Result};
pub use families::{
    ImagePlace, ImageProcessor, VideoProcessor, families, image_processor, mel_extractor, video_families,
};
pub use image::{Detail, Image, ImageLimits, PreparedImage, ResampleFilter, decode_image, image_dimensions, resize};
pub use processor::{Processor, Prompt, Visuals};
pub use text::{ChatOptions, ChatTemplate, Clock, Content, ContentForm, Message, TokenStream, Tokenizer};
pub use video::{Video, VideoInfo, VideoOptions, VideoSource, has_ffmpeg, is_animated};
