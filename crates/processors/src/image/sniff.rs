//! What kind of file some bytes are, from their beginning; file names and content types lie.

use ::image::ImageFormat;

use crate::{Error, Result};

/// A format we decode, and its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Format {
    pub(crate) name: &'static str,
    pub(crate) decoder: ImageFormat,
}

/// The format of a picture.
///
/// # Errors
/// [`Error::EmptyImage`], [`Error::UnsupportedImageFormat`], [`Error::UnknownImageFormat`].
pub(crate) fn sniff(bytes: &[u8]) -> Result<Format> {
    if bytes.is_empty() {
        return Err(Error::EmptyImage);
    }
    let starts = |magic: &[u8]| bytes.starts_with(magic);
    let (name, decoder) = if starts(b"\xff\xd8\xff") {
        ("JPEG", ImageFormat::Jpeg)
    } else if starts(b"\x89PNG\r\n\x1a\n") {
        ("PNG", ImageFormat::Png)
    } else if starts(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
        ("WebP", ImageFormat::WebP)
    } else if starts(b"GIF87a") || starts(b"GIF89a") {
        ("GIF", ImageFormat::Gif)
    } else if starts(b"BM") {
        ("BMP", ImageFormat::Bmp)
    } else if starts(b"II*\0") || starts(b"MM\0*") || starts(b"II+\0") || starts(b"MM\0+") {
        ("TIFF", ImageFormat::Tiff)
    } else {
        return Err(not_decoded(bytes));
    };
    Ok(Format { name, decoder })
}

/// The error for anything else: by name when we recognise it, otherwise with its first bytes.
fn not_decoded(bytes: &[u8]) -> Error {
    let starts = |magic: &[u8]| bytes.starts_with(magic);
    let brand = bytes.get(4..12).and_then(|bytes| bytes.strip_prefix(b"ftyp"));
    let text_start = String::from_utf8_lossy(&bytes[..bytes.len().min(512)]).trim_start().to_ascii_lowercase();
    let format = match brand {
        Some(b"avif" | b"avis") => "AVIF",
        Some(b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" | b"mif1" | b"msf1") => "HEIC",
        Some(_) => "MP4 or QuickTime video",
        None if starts(b"%PDF") => "PDF",
        None if starts(b"\0\0\0\x0cJXL ") || starts(b"\xff\x0a") => "JPEG XL",
        None if starts(b"\0\0\0\x0cjP  ") || starts(b"\xff\x4f\xff\x51") => "JPEG 2000",
        None if starts(b"8BPS") => "Photoshop",
        None if starts(b"\0\0\x01\0") => "ICO",
        None if starts(b"\x1a\x45\xdf\xa3") => "Matroska or WebM video",
        None if starts(b"qoif") => "QOI",
        None if starts(b"PK\x03\x04") => "ZIP",
        None if text_start.contains("<svg") => "SVG",
        None if text_start.starts_with("<!doctype html") || text_start.starts_with("<html") => "HTML",
        None => return Error::UnknownImageFormat { first_bytes: shown(bytes) },
    };
    Error::UnsupportedImageFormat { format }
}

/// `89 50 4e 47 "\x89PNG"`: the first bytes for a message.
pub(crate) fn shown(bytes: &[u8]) -> String {
    let first = &bytes[..bytes.len().min(8)];
    let hex: Vec<String> = first.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{} \"{}\"", hex.join(" "), first.escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_told_by_their_first_bytes() {
        assert_eq!(sniff(b"\xff\xd8\xff\xe0").unwrap().name, "JPEG");
        assert_eq!(sniff(b"RIFF\0\0\0\0WEBPVP8 ").unwrap().name, "WebP");
        assert_eq!(sniff(b"GIF89a").unwrap().name, "GIF");
        assert_eq!(sniff(b"MM\0*").unwrap().name, "TIFF");
    }

    #[test]
    fn known_strangers_are_named() {
        let name = |bytes: &[u8]| match sniff(bytes) {
            Err(Error::UnsupportedImageFormat { format }) => format,
            other => panic!("{other:?}"),
        };
        assert_eq!(name(b"\0\0\0\x20ftypheic"), "HEIC");
        assert_eq!(name(b"\0\0\0\x20ftypavif"), "AVIF");
        assert_eq!(name(b"\0\0\0\x20ftypisom"), "MP4 or QuickTime video");
        assert_eq!(name(b"%PDF-1.7"), "PDF");
        assert_eq!(name(b"<?xml version=\"1.0\"?>\n<svg xmlns"), "SVG");
        assert_eq!(name(b"\n<!DOCTYPE html><html>"), "HTML");
    }

    #[test]
    fn unknown_bytes_are_shown() {
        let message = sniff(b"hello").unwrap_err().to_string();
        assert_eq!(message, "not an image in a known format (it starts with 68 65 6c 6c 6f \"hello\")");
        assert!(matches!(sniff(b""), Err(Error::EmptyImage)));
        assert!(matches!(sniff(b"RIFF\0\0\0\0WAVE"), Err(Error::UnknownImageFormat { .. })));
    }
}
