//! Every kind of picture file (`tools/make_image_fixture.py`), and every kind of file that is none.

use std::time::{Duration, Instant};

use crate::support::{crc32, fixture, from_hex, integer};
use ocelli_processors::{Error, ImageLimits, decode_image, image_dimensions};
use proptest::prelude::*;

#[test]
fn every_format_decodes_to_the_reference_pixels() {
    for (name, case) in fixture("images.json").as_object().unwrap() {
        let file = from_hex(case["file"].as_str().unwrap());
        let limits = ImageLimits::default();
        let image = decode_image(&file, &limits).unwrap_or_else(|error| panic!("{name}: {error}"));
        let size = (integer(&case["width"]), integer(&case["height"]));
        assert_eq!((image.width, image.height), size, "{name}");
        assert_eq!(image_dimensions(&file, &limits).unwrap(), size, "{name}");
        let expected = from_hex(case["pixels"].as_str().unwrap());
        let worst = image.pixels.iter().zip(&expected).map(|(&a, &b)| a.abs_diff(b)).max().unwrap();
        assert!(u64::from(worst) <= case["tolerance"].as_u64().unwrap(), "{name}: off by {worst}");
    }
}

#[test]
fn a_huge_picture_is_refused_before_it_is_decoded() {
    let bomb = png(40_000, 40_000, 5_000_000);
    let start = Instant::now();
    let error = decode_image(&bomb, &ImageLimits::default()).unwrap_err();
    assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
    let expected = "the image is 40000x40000 pixels, more than the limit of 32768 per side and 178956970 in all";
    assert_eq!(error.to_string(), expected);
    assert_eq!(error.hint().unwrap(), "scale it down, or raise the limit with --max-pixels");
}

#[test]
fn limits_are_on_side_pixels_and_bytes() {
    let file = from_hex(fixture("images.json")["png rgb"]["file"].as_str().unwrap());
    let limits = ImageLimits { max_side: 11, max_pixels: 77, max_bytes: file.len() as u64 };
    assert!(decode_image(&file, &limits).is_ok());
    let too_large =
        |limits| matches!(decode_image(&file, &limits), Err(Error::ImageTooLarge { width: 11, height: 7, .. }));
    assert!(too_large(ImageLimits { max_side: 10, ..limits }));
    assert!(too_large(ImageLimits { max_pixels: 76, ..limits }));
    let small = ImageLimits { max_bytes: file.len() as u64 - 1, ..limits };
    assert!(matches!(decode_image(&file, &small), Err(Error::ImageFileTooLarge { .. })));
}

#[test]
fn truncated_files_are_errors_that_say_so() {
    for (name, case) in fixture("images.json").as_object().unwrap() {
        let file = from_hex(case["file"].as_str().unwrap());
        // Half a file cannot hold the picture, whatever the format; some decoders call it malformed instead.
        let error = decode_image(&file[..file.len() / 2], &ImageLimits::default());
        let error = error.expect_err(name);
        assert!(matches!(error, Error::TruncatedImage { .. } | Error::BadImage { .. }), "{name}: {error}");
        if name.starts_with("jpeg") || name.starts_with("png") {
            assert!(matches!(error, Error::TruncatedImage { .. }), "{name}: {error}");
        }
    }
}

#[test]
fn a_jpeg_without_its_end_is_truncated() {
    let file = from_hex(fixture("images.json")["jpeg"]["file"].as_str().unwrap());
    let error = decode_image(&file[..file.len() - 20], &ImageLimits::default()).unwrap_err();
    assert!(matches!(error, Error::TruncatedImage { format: "JPEG", .. }), "{error}");
    let followed: Vec<u8> = file.iter().copied().chain([0; 100]).collect();
    assert!(decode_image(&followed, &ImageLimits::default()).is_ok());
}

#[test]
fn what_is_no_picture_is_named() {
    let error = |bytes: &[u8]| decode_image(bytes, &ImageLimits::default()).unwrap_err();
    assert_eq!(error(b"").to_string(), "the image is empty (0 bytes)");
    assert_eq!(error(b"%PDF-1.7 ...").to_string(), "PDF files are not supported as images");
    assert_eq!(error(b"%PDF-1.7 ...").hint().unwrap(), "convert it to PNG or JPEG first");
    assert!(error(b"\x01\x02").to_string().contains("01 02 \"\\x01\\x02\""));
    assert!(error(b"\x01\x02").hint().unwrap().contains("WebP"));
    assert!(matches!(error(&png(0, 5, 10)), Error::BadImage { .. } | Error::NoPixels { .. }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn arbitrary_bytes_never_panic(magic in 0..8_usize, bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let starts: [&[u8]; 8] = [
            b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\x01\0\0WEBPVP8", b"GIF89a", b"BM", b"II*\0", b"MM\0*",
        ];
        let file = [starts[magic], &bytes].concat();
        let _ = decode_image(&file, &small_limits());
        let _ = image_dimensions(&file, &small_limits());
    }

    #[test]
    fn damaged_files_never_panic(
        which in any::<prop::sample::Index>(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        end in any::<prop::sample::Index>(),
    ) {
        let cases = FILES.with(Clone::clone);
        let mut file = which.get(&cases).clone();
        for (at, byte) in damage {
            let at = at.index(file.len());
            file[at] = byte;
        }
        // Half of the time the end is missing too.
        if end.index(2) == 0 {
            file.truncate(end.index(file.len()));
        }
        if let Ok(image) = decode_image(&file, &small_limits()) {
            prop_assert_eq!(image.pixels.len(), image.width * image.height * 3);
        }
    }
}

thread_local! {
    static FILES: Vec<Vec<u8>> = {
        let cases = fixture("images.json");
        cases.as_object().unwrap().values().map(|case| from_hex(case["file"].as_str().unwrap())).collect()
    };
}

/// What keeps a damaged header from costing seconds.
fn small_limits() -> ImageLimits {
    ImageLimits { max_side: 4096, max_pixels: 1 << 20, max_bytes: 1 << 20 }
}

/// A PNG whose header claims a size and whose data is junk.
fn png(width: u32, height: u32, data: usize) -> Vec<u8> {
    let chunk = |kind: &[u8; 4], data: &[u8]| {
        let body = [kind, data].concat();
        let checksum = crc32(body.iter().copied()).to_be_bytes();
        [&(data.len() as u32).to_be_bytes(), &body[..], &checksum].concat()
    };
    let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
    [b"\x89PNG\r\n\x1a\n", &chunk(b"IHDR", &header)[..], &chunk(b"IDAT", &vec![0; data]), &chunk(b"IEND", b"")].concat()
}
