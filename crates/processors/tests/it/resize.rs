//! The resampler against Pillow's (`tools/make_resize_fixture.py`), to the last bit.

use crate::support::{crc32, fixture, integer, noise, pair};
use ocelli_processors::{ResampleFilter, resize};

#[test]
fn every_filter_equals_pillow_at_every_size() {
    let cases = fixture("resize.json");
    let cases = cases.as_array().unwrap();
    assert!(cases.len() >= 240);
    for case in cases {
        let (from, to) = (pair(&case["from"]), pair(&case["to"]));
        let filter = ResampleFilter::from_pillow(case["filter"].as_u64().unwrap()).unwrap();
        let image = noise(integer(&case["seed"]) as u32, from.0, from.1);
        let resized = resize(&image, to.0, to.1, filter);
        if let Some(expected) = case["pixels"].as_str() {
            let pixels: String = resized.pixels.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(pixels, expected, "{filter:?} {from:?} -> {to:?}");
        }
        assert_eq!(u64::from(crc32(resized.pixels)), case["crc32"].as_u64().unwrap(), "{filter:?} {from:?} -> {to:?}");
    }
}
