//! Frames of animated GIF, WebP and PNG files.
//!
//! Frames may last differently long; they count as equally long ones, as they do for the libraries that the reference
//! reads videos with. A frame without a duration lasts a tenth of a second, as in browsers.

use std::fs::File;
use std::io::{Cursor, ErrorKind, Read};
use std::path::Path;

use ::image::codecs::gif::GifDecoder;
use ::image::codecs::png::PngDecoder;
use ::image::codecs::webp::WebPDecoder;
use ::image::{AnimationDecoder, DynamicImage, ImageDecoder, ImageFormat};

use super::VideoInfo;
use crate::image::{Format, Image, ImageLimits, decode_error, decode_image, sniff, to_rgb};
use crate::{Error, Result};

/// The content of a file that is a picture in a format that may move; `None` for others.
pub(super) fn read(path: &Path, limits: &ImageLimits) -> Result<Option<Vec<u8>>> {
    let io = |error: std::io::Error| Error::VideoIo { message: plain(&error) };
    let mut file = File::open(path).map_err(io)?;
    let mut bytes = Vec::new();
    file.by_ref().take(HEADER).read_to_end(&mut bytes).map_err(io)?;
    if bytes.is_empty() {
        return Err(Error::NoFrames);
    }
    if !sniff(&bytes).is_ok_and(|format| MOVING.contains(&format.decoder)) {
        return Ok(None);
    }
    // One byte more than allowed is enough for the error.
    file.take(limits.max_bytes).read_to_end(&mut bytes).map_err(io)?;
    Ok(Some(bytes))
}

/// The system's error without its number.
pub(super) fn plain(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => "no such file".into(),
        ErrorKind::PermissionDenied => "permission denied".into(),
        _ => error.to_string(),
    }
}

pub(super) fn is_animated(bytes: &[u8], limits: &ImageLimits) -> bool {
    let Ok((_, frames)) = open(bytes, limits) else { return false };
    frames.is_some_and(|frames| frames.take(2).filter(Result::is_ok).count() == 2)
}

/// Counts the frames and adds up how long they last.
pub(super) fn scan(bytes: &[u8], limits: &ImageLimits) -> Result<VideoInfo> {
    let (_, Some(frames)) = open(bytes, limits)? else { return Ok(VideoInfo { frames: 1, fps: Some(1.0) }) };
    let (mut count, mut milliseconds, mut pixels) = (0, 0.0, 0);
    for frame in frames {
        let frame = frame?;
        (count, milliseconds) = (count + 1, milliseconds + frame.milliseconds);
        pixels += frame.image.pixels.len() as u64 / 3;
        if pixels > MOST_PIXELS {
            return Err(Error::VideoTooLong { limit: MOST_PIXELS });
        }
    }
    if count == 0 {
        return Err(Error::NoFrames);
    }
    Ok(VideoInfo { frames: count, fps: Some(count as f64 * 1e3 / milliseconds) })
}

/// Decodes up to the last frame that is wanted.
pub(super) fn frames(
    bytes: &[u8],
    limits: &ImageLimits,
    wanted: &[usize],
    take: &mut dyn FnMut(Image) -> Result<()>,
) -> Result<()> {
    let (_, Some(frames)) = open(bytes, limits)? else { return take(decode_image(bytes, limits)?) };
    let mut wanted = wanted.iter().peekable();
    for (number, frame) in frames.enumerate() {
        if wanted.peek().is_none() {
            break;
        }
        let frame = frame?;
        if wanted.next_if(|&&next| next == number).is_some() {
            take(frame.image)?;
        }
    }
    Ok(())
}

/// A frame, and how long it lasts.
struct Frame {
    image: Image,
    milliseconds: f64,
}

type FrameIterator<'a> = Box<dyn Iterator<Item = Result<Frame>> + 'a>;

/// The frames of a file within the limits; `None` for a picture that is still.
fn open<'a>(bytes: &'a [u8], limits: &ImageLimits) -> Result<(Format, Option<FrameIterator<'a>>)> {
    if bytes.len() as u64 > limits.max_bytes {
        return Err(Error::ImageFileTooLarge { bytes: bytes.len() as u64, limit: limits.max_bytes });
    }
    let format = sniff(bytes)?;
    let error = move |source| decode_error(format, source);
    let (data, memory) = (Cursor::new(bytes), limits.decoder());
    let frames = match format.decoder {
        ImageFormat::Gif => {
            let mut decoder = GifDecoder::new(data).map_err(error)?;
            limits.check_decoder(&decoder)?;
            decoder.set_limits(memory).map_err(error)?;
            Some(decoder.into_frames())
        }
        ImageFormat::Png => {
            let decoder = PngDecoder::with_limits(data, memory).map_err(error)?;
            limits.check_decoder(&decoder)?;
            let moves = decoder.is_apng().map_err(error)?;
            if moves { Some(decoder.apng().map_err(error)?.into_frames()) } else { None }
        }
        ImageFormat::WebP => {
            let decoder = WebPDecoder::new(data).map_err(error)?;
            limits.check_decoder(&decoder)?;
            decoder.has_animation().then(|| decoder.into_frames())
        }
        _ => None,
    };
    let frame = move |frame: ::image::Frame| {
        let (numerator, denominator) = frame.delay().numer_denom_ms();
        let milliseconds = f64::from(numerator) / f64::from(denominator.max(1));
        let image = to_rgb(DynamicImage::ImageRgba8(frame.into_buffer()));
        Frame { image, milliseconds: if milliseconds > 0.0 { milliseconds } else { UNTIMED } }
    };
    let frames =
        frames.map(|frames| -> FrameIterator<'a> { Box::new(frames.map(move |next| next.map(frame).map_err(error))) });
    Ok((format, frames))
}

/// Enough to tell a format.
const HEADER: u64 = 512;
const MOVING: [ImageFormat; 3] = [ImageFormat::Gif, ImageFormat::Png, ImageFormat::WebP];
/// Milliseconds that a frame without a duration lasts.
const UNTIMED: f64 = 100.0;
/// Most pixels of all frames together: a minute of large ones, half an hour of small ones. Each is decoded twice.
const MOST_PIXELS: u64 = 4_000_000_000;
