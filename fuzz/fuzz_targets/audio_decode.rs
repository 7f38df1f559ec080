//! Audio files of every format.
#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use ocelli_processors::{AudioLimits, decode_audio};

fuzz_target!(
    // Panics of the decoding library become errors; the fuzzer's own hook would end at each. What escapes still ends
    // it.
    init: drop(std::panic::take_hook()),
    |bytes: &[u8]| {
        let limits = AudioLimits { max_seconds: 60, max_bytes: 1 << 20 };
        if let Ok(audio) = decode_audio(Cursor::new(bytes), 16_000, &limits) {
            assert!(!audio.samples.is_empty() && audio.samples.len() <= 60 * 16_000);
            assert!(audio.samples.iter().all(|sample| sample.is_finite()));
        }
    }
);
