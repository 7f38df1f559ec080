//! Any picture file to 8-bit RGB.
//!
//! The header is checked against the limits before anything of the picture's size is allocated. What happens to unusual
//! pixels follows transformers and Pillow: EXIF orientation is applied, transparency is composited on white, 16-bit
//! samples keep their high byte (grey ones too, which Pillow clips to white instead), grey is repeated. Colour profiles are ignored, as they are there. Of animations the
//! first frame counts. JPEG decoders differ from each other by a level or two; every other format is exact.

use std::io::Cursor;

use ::image::metadata::Orientation;
use ::image::{DynamicImage, ImageDecoder, ImageError, ImageReader, Limits};

use super::Image;
use super::sniff::{Format, sniff};
use crate::{Error, Result};

/// What a picture may cost at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageLimits {
    /// Longest side, in pixels.
    pub max_side: u32,
    /// Width times height.
    pub max_pixels: u64,
    /// Length of the file.
    pub max_bytes: u64,
}

impl Default for ImageLimits {
    /// Sides of 32768, 178 million pixels (where Pillow gives up too), files of 256 MiB.
    fn default() -> Self {
        Self { max_side: 32_768, max_pixels: 178_956_970, max_bytes: 256 << 20 }
    }
}

impl ImageLimits {
    /// # Errors
    /// [`Error::NoPixels`], [`Error::ImageTooLarge`].
    pub(crate) fn check(&self, width: u32, height: u32) -> Result<()> {
        if width == 0 || height == 0 {
            return Err(Error::NoPixels { width: width as usize, height: height as usize });
        }
        let (width, height) = (u64::from(width), u64::from(height));
        let Self { max_side, max_pixels, .. } = *self;
        if width.max(height) > u64::from(max_side) || width * height > max_pixels {
            return Err(Error::ImageTooLarge { width, height, max_side, max_pixels });
        }
        Ok(())
    }

    /// # Errors
    /// As [`ImageLimits::check`].
    pub(crate) fn check_decoder(&self, decoder: &impl ImageDecoder) -> Result<()> {
        let (width, height) = decoder.dimensions();
        self.check(width, height)
    }

    /// What a decoder may allocate.
    pub(crate) fn decoder(&self) -> Limits {
        let mut limits = Limits::no_limits();
        // The widest sample layout has 8 bytes per pixel, 16 for floats; the rest is room for the decoder's own tables.
        limits.max_alloc = Some(self.max_pixels.saturating_mul(16).saturating_add(DECODER_TABLES));
        limits
    }
}

/// Decodes a JPEG, PNG, WebP, GIF, BMP or TIFF file. Callable on arbitrary bytes.
///
/// # Errors
/// [`Error::EmptyImage`], [`Error::UnknownImageFormat`], [`Error::UnsupportedImageFormat`],
/// [`Error::ImageFileTooLarge`], [`Error::ImageTooLarge`], [`Error::NoPixels`], [`Error::TruncatedImage`],
/// [`Error::BadImage`].
pub fn decode_image(bytes: &[u8], limits: &ImageLimits) -> Result<Image> {
    let (format, mut decoder) = open(bytes, limits)?;
    if format.name == "JPEG" && !has_end_of_image(bytes) {
        // The decoder would fill what is missing with grey.
        return Err(Error::TruncatedImage { format: format.name, message: "no end-of-image marker".into() });
    }
    // A broken EXIF block is no reason to refuse the picture.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut picture = DynamicImage::from_decoder(decoder).map_err(|error| decode_error(format, error))?;
    picture.apply_orientation(orientation);
    Ok(to_rgb(picture))
}

/// Width and height, upright, from the header alone. Callable on arbitrary bytes.
///
/// # Errors
/// As [`decode_image`], except for those about what follows the header.
pub fn image_dimensions(bytes: &[u8], limits: &ImageLimits) -> Result<(usize, usize)> {
    let (_, mut decoder) = open(bytes, limits)?;
    let (width, height) = decoder.dimensions();
    let (width, height) = (width as usize, height as usize);
    Ok(match decoder.orientation().unwrap_or(Orientation::NoTransforms) {
        Orientation::Rotate90 | Orientation::Rotate270 | Orientation::Rotate90FlipH | Orientation::Rotate270FlipH => {
            (height, width)
        }
        _ => (width, height),
    })
}

/// A decoder that has read the header, and found it within the limits.
fn open<'a>(bytes: &'a [u8], limits: &ImageLimits) -> Result<(Format, impl ImageDecoder + 'a)> {
    if bytes.len() as u64 > limits.max_bytes {
        return Err(Error::ImageFileTooLarge { bytes: bytes.len() as u64, limit: limits.max_bytes });
    }
    let format = sniff(bytes)?;
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format.decoder);
    reader.limits(limits.decoder());
    let decoder = reader.into_decoder().map_err(|error| decode_error(format, error))?;
    limits.check_decoder(&decoder)?;
    Ok((format, decoder))
}

/// What a decoder says as an error of this crate.
pub(crate) fn decode_error(format: Format, error: ImageError) -> Error {
    let message = error.to_string();
    let ended = matches!(&error, ImageError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof);
    let format = format.name;
    if ended || ENDED.iter().any(|words| message.contains(words)) {
        Error::TruncatedImage { format, message }
    } else {
        Error::BadImage { format, message }
    }
}

/// Whether a JPEG's data ends with the marker that ends it (padding, previews or a film may follow).
fn has_end_of_image(bytes: &[u8]) -> bool {
    // Up to the scan, walk from segment to segment: the EXIF one may hold a whole JPEG with an end of its own.
    let mut at = 2;
    while let Some(&[0xff, marker, high, low]) = bytes.get(at..at + 4) {
        at += match marker {
            // Inside the scan 0xff is always followed by 0 or a restart marker, so the pair is the end.
            0xda => return bytes[at..].windows(2).any(|pair| pair == [0xff, 0xd9]),
            0xff => 1,
            0x01 | 0xd0..=0xd9 => 2,
            _ => 2 + usize::from(u16::from_be_bytes([high, low])),
        };
    }
    // No scan in sight: the decoder has more to say about that.
    true
}

/// Any samples as 8-bit RGB.
pub(crate) fn to_rgb(picture: DynamicImage) -> Image {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let pixels = match picture {
        DynamicImage::ImageRgb8(buffer) => buffer.into_raw(),
        DynamicImage::ImageLuma8(buffer) => grey_to_rgb(buffer.as_raw()),
        DynamicImage::ImageLumaA8(buffer) => on_white::<2>(buffer.as_raw(), |pixel| [pixel[0]; 3]),
        DynamicImage::ImageRgba8(buffer) => on_white::<4>(buffer.as_raw(), |pixel| [pixel[0], pixel[1], pixel[2]]),
        DynamicImage::ImageLuma16(buffer) => grey_to_rgb(&high_bytes(buffer.as_raw())),
        DynamicImage::ImageLumaA16(buffer) => on_white::<2>(&high_bytes(buffer.as_raw()), |pixel| [pixel[0]; 3]),
        DynamicImage::ImageRgb16(buffer) => high_bytes(buffer.as_raw()),
        DynamicImage::ImageRgba16(buffer) => {
            on_white::<4>(&high_bytes(buffer.as_raw()), |pixel| [pixel[0], pixel[1], pixel[2]])
        }
        // Float samples: 0..1 becomes 0..255.
        other => on_white::<4>(other.to_rgba8().as_raw(), |pixel| [pixel[0], pixel[1], pixel[2]]),
    };
    Image::new(width, height, pixels)
}

fn grey_to_rgb(samples: &[u8]) -> Vec<u8> {
    samples.iter().flat_map(|&grey| [grey; 3]).collect()
}

fn high_bytes(samples: &[u16]) -> Vec<u8> {
    samples.iter().map(|&sample| (sample >> 8) as u8).collect()
}

/// Composites pixels whose last sample is their opacity.
fn on_white<const SAMPLES: usize>(samples: &[u8], colour: impl Fn(&[u8]) -> [u8; 3]) -> Vec<u8> {
    samples
        .chunks_exact(SAMPLES)
        .flat_map(|pixel| {
            let opacity = u32::from(pixel[SAMPLES - 1]);
            colour(pixel).map(|sample| over_white(u32::from(sample), opacity))
        })
        .collect()
}

/// `(sample * opacity + 255 * (255 - opacity)) / 255`, rounded as Pillow's `alpha_composite` does.
fn over_white(sample: u32, opacity: u32) -> u8 {
    let rounded = sample * opacity + 255 * (255 - opacity) + 128;
    ((rounded + (rounded >> 8)) >> 8) as u8
}

/// What the decoders say, in other forms than an I/O error, when the data ends too early.
const ENDED: [&str; 8] = [
    "unexpected end",
    "end of file",
    "Unexpected EOF",
    "failed to fill",
    "Not enough bytes",
    "No more bytes",
    "Exhausted data",
    "Premature end",
];

const DECODER_TABLES: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_checked_before_the_product_can_overflow() {
        let limits = ImageLimits::default();
        assert!(limits.check(1, 1).is_ok());
        assert!(limits.check(32_768, 5461).is_ok());
        assert!(matches!(limits.check(32_768, 5462), Err(Error::ImageTooLarge { .. })));
        assert!(matches!(limits.check(u32::MAX, u32::MAX), Err(Error::ImageTooLarge { .. })));
        assert!(matches!(limits.check(0, 1), Err(Error::NoPixels { .. })));
    }

    #[test]
    fn compositing_rounds_to_nearest() {
        for sample in 0..=255 {
            for opacity in 0..=255 {
                let exact = f64::from(sample * opacity + 255 * (255 - opacity)) / 255.0;
                assert_eq!(f64::from(over_white(sample, opacity)), exact.round(), "{sample} at {opacity}");
            }
        }
    }

    #[test]
    fn a_preview_does_not_end_the_picture() {
        let preview = [0xff, 0xe1, 0, 6, 1, 2, 0xff, 0xd9];
        let scan = [0xff, 0xda, 0, 2, 7, 7];
        let jpeg = |parts: &[&[u8]]| [&[0xff, 0xd8], parts.concat().as_slice()].concat();
        assert!(!has_end_of_image(&jpeg(&[&preview, &scan])));
        assert!(has_end_of_image(&jpeg(&[&preview, &scan, &[0xff, 0xd9], b"a film \xff\xda"])));
        assert!(has_end_of_image(b"\xff\xd8\xff"));
    }

    #[test]
    fn sixteen_bits_keep_the_high_byte() {
        assert_eq!(high_bytes(&[0, 255, 256, 0x7fff, 0xffff]), [0, 0, 1, 127, 255]);
    }
}
