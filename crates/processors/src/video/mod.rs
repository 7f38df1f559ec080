//! Videos: where their frames come from, and those of them that a model looks at.
//!
//! Frames are numbered and equally far apart in time, as in what the reference's readers tell of a video. A model's
//! family chooses some by their numbers ([`VideoProcessor::sample`]); only these are kept, each brought to the size at
//! which the model looks at it as soon as it is decoded, so that the length of a video costs time but no memory.
//!
//! [`VideoProcessor::sample`]: crate::VideoProcessor::sample

mod animation;
mod ffmpeg;
mod folder;

use std::path::{Path, PathBuf};

pub use ffmpeg::has_ffmpeg;

use crate::image::{Detail, Image, ImageLimits, first_128_bits};
use crate::{Error, Result};

/// Something that frames can be read from: an animated GIF, WebP or PNG, a folder of pictures, or any other video file,
/// for which the program `ffmpeg` is asked.
#[derive(Clone, Debug)]
pub struct VideoSource {
    info: VideoInfo,
    limits: ImageLimits,
    frames: Frames,
}

/// What is known of a video before its frames are read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VideoInfo {
    /// How many there are, at least one.
    pub frames: usize,
    /// Frames per second; `None` for frames that somebody has chosen already, which do not tell.
    pub fps: Option<f64>,
}

/// How to look at a video.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct VideoOptions {
    /// Frames per second that are looked at (of a folder: that it holds); `None`: as the model's configuration says.
    pub fps: Option<f64>,
    /// Most frames that are looked at, if less than the model's configuration says.
    pub max_frames: Option<usize>,
    /// How closely to look at each frame.
    pub detail: Detail,
}

/// Frames that one model looks at: chosen from a [`VideoSource`] and brought to size by its processor.
#[derive(Clone, Debug, PartialEq)]
pub struct Video {
    /// All of one size.
    pub frames: Vec<Image>,
    /// Their numbers in the source.
    pub indices: Vec<usize>,
    /// Frames per second of the source.
    pub fps: f64,
    /// Frames of the source.
    pub source_frames: usize,
    /// Seconds that the source takes, where it tells.
    pub duration: Option<f64>,
    /// `(width, height)` of the source's frames.
    pub source_size: (usize, usize),
}

#[derive(Clone, Debug)]
enum Frames {
    Animation(Vec<u8>),
    Folder(Vec<PathBuf>),
    Ffmpeg(PathBuf),
}

impl VideoSource {
    /// Looks at a folder of frames, sorted by name, or at a file, without keeping any frame.
    ///
    /// # Errors
    /// [`Error::VideoIo`], [`Error::NoFrames`], [`Error::VideoTooLong`]; for animations those of
    /// [`crate::decode_image`], for other files [`Error::NoFfmpeg`], [`Error::BadVideo`], [`Error::NoVideoStream`].
    pub fn open(path: &Path, limits: &ImageLimits) -> Result<Self> {
        if path.is_dir() {
            let files = folder::pictures(path)?;
            let info = VideoInfo { frames: files.len(), fps: None };
            return Ok(Self { info, limits: *limits, frames: Frames::Folder(files) });
        }
        if let Some(bytes) = animation::read(path, limits)? {
            return Self::animation(bytes, limits);
        }
        let info = ffmpeg::probe(path)?;
        Ok(Self { info, limits: *limits, frames: Frames::Ffmpeg(path.to_path_buf()) })
    }

    /// An animated GIF, WebP or PNG; a still one is a video of one frame.
    ///
    /// # Errors
    /// [`Error::VideoTooLong`]; those of [`crate::decode_image`].
    pub fn animation(bytes: Vec<u8>, limits: &ImageLimits) -> Result<Self> {
        let info = animation::scan(&bytes, limits)?;
        Ok(Self { info, limits: *limits, frames: Frames::Animation(bytes) })
    }

    /// What is known of the video.
    pub fn info(&self) -> &VideoInfo {
        &self.info
    }

    /// Hands on the frames with these numbers (ascending) in order.
    pub(crate) fn read(&self, wanted: &[usize], take: &mut dyn FnMut(Image) -> Result<()>) -> Result<()> {
        match &self.frames {
            Frames::Animation(bytes) => animation::frames(bytes, &self.limits, wanted, take),
            Frames::Folder(files) => folder::frames(files, &self.limits, wanted, take),
            Frames::Ffmpeg(path) => ffmpeg::frames(path, &self.limits, wanted, take),
        }
    }
}

/// Whether a picture file moves: an animated GIF, WebP or PNG of two frames or more. What cannot be read does not.
pub fn is_animated(bytes: &[u8], limits: &ImageLimits) -> bool {
    animation::is_animated(bytes, limits)
}

impl VideoInfo {
    /// Seconds that it takes, if it tells.
    pub fn duration(&self) -> Option<f64> {
        self.fps.map(|fps| self.frames as f64 / fps)
    }
}

impl Video {
    /// When frame `idx` of these was taken, in seconds.
    pub fn seconds(&self, idx: usize) -> f64 {
        self.indices.get(idx).or(self.indices.last()).map_or(0.0, |&number| number as f64 / self.fps)
    }

    /// Frames per second of those that are looked at.
    pub fn sampled_fps(&self) -> f64 {
        self.indices.len() as f64 / self.source_frames.max(1) as f64 * self.fps
    }

    /// Width and height of the frames.
    ///
    /// # Errors
    /// [`Error::NoFrames`]; [`Error::FrameSize`] when they differ.
    pub(crate) fn size(&self) -> Result<(usize, usize)> {
        let first = self.frames.first().ok_or(Error::NoFrames)?;
        let size = (first.width, first.height);
        let other = self.frames.iter().position(|frame| (frame.width, frame.height) != size);
        match other {
            Some(idx) => Err(frame_size(idx, &self.frames[idx], size)),
            None if size.0 == 0 || size.1 == 0 => Err(Error::NoPixels { width: size.0, height: size.1 }),
            None => Ok(size),
        }
    }

    /// A hash of the frames, their times, and `settings`: all that is done to them.
    pub(crate) fn hash(&self, settings: &str) -> u128 {
        let mut hasher = blake3::Hasher::new();
        for frame in &self.frames {
            hasher.update(&frame.content_hash().to_le_bytes());
        }
        let Self { indices, fps, source_frames, duration, .. } = self;
        hasher.update(format!("video {indices:?} {fps:?} {source_frames} {duration:?} {settings}").as_bytes());
        first_128_bits(&hasher)
    }
}

/// The error of a frame that is not as large as the first one.
pub(crate) fn frame_size(idx: usize, frame: &Image, (width, height): (usize, usize)) -> Error {
    Error::FrameSize { frame: idx + 1, size: (frame.width, frame.height), first: (width, height) }
}
