//! Animated pictures of every format.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ocelli_processors::{ImageLimits, VideoSource, is_animated};

fuzz_target!(|bytes: &[u8]| {
    let limits = ImageLimits { max_side: 256, max_pixels: 1 << 14, max_bytes: 1 << 16 };
    let moves = is_animated(bytes, &limits);
    if let Ok(source) = VideoSource::animation(bytes.to_vec(), &limits) {
        let info = source.info();
        assert!(info.frames > 0 && info.fps.is_some_and(|fps| fps > 0.0 && fps.is_finite()));
        assert!(!moves || info.frames > 1);
    }
});
