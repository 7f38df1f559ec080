//! Picture files of every format.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ocelli_processors::{ImageLimits, decode_image, image_dimensions};

fuzz_target!(|bytes: &[u8]| {
    let limits = ImageLimits { max_side: 2048, max_pixels: 1 << 20, max_bytes: 1 << 20 };
    if let Ok(image) = decode_image(bytes, &limits) {
        assert!(image.width > 0 && image.height > 0 && image.width * image.height <= 1 << 20);
        assert_eq!(image.pixels.len(), image.width * image.height * 3);
        assert_eq!(image_dimensions(bytes, &limits).ok(), Some((image.width, image.height)));
    }
});
