//! What the tests share: test pictures as `tools/common.py` makes them, and the fixtures.

use std::path::PathBuf;

use ocelli_formats::{Config, ModelFiles};
use ocelli_processors::{Image, Processor};
use serde_json::Value;

/// RGB noise from a linear congruential generator; odd seeds give black and white samples only.
pub(crate) fn noise(seed: u32, width: usize, height: usize) -> Image {
    let mut state = seed;
    let sample = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let byte = (state >> 24) as u8;
        if seed % 2 == 1 { if byte >= 128 { 255 } else { 0 } } else { byte }
    };
    Image::new(width, height, std::iter::repeat_with(sample).take(width * height * 3).collect())
}

/// The checksum of zlib and PNG.
pub(crate) fn crc32(bytes: impl IntoIterator<Item = u8>) -> u32 {
    let table: [u32; 256] = std::array::from_fn(|index| {
        (0..8).fold(index as u32, |value, _| if value & 1 == 1 { 0xedb8_8320 ^ (value >> 1) } else { value >> 1 })
    });
    let step = |value: u32, byte: u8| table[usize::from(value as u8 ^ byte)] ^ (value >> 8);
    !bytes.into_iter().fold(u32::MAX, step)
}

/// A file in this crate's `tests/fixtures`.
pub(crate) fn fixture(name: &str) -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap()
}

/// The folder of a tiny model of a family.
pub(crate) fn family(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name)
}

/// The processor of the model in a folder.
pub(crate) fn processor(folder: impl AsRef<std::path::Path>) -> Processor {
    let files = ModelFiles::open(folder).unwrap();
    Processor::load(&files, &Config::load(&files).unwrap()).unwrap()
}

/// A copy of a tiny model's small files, some of them replaced (or added).
pub(crate) fn variant(name: &str, files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(family(name)).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "json") {
            std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    for (name, content) in files {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    folder
}

pub(crate) fn integer(value: &Value) -> usize {
    usize::try_from(value.as_u64().unwrap()).unwrap()
}

pub(crate) fn pair(value: &Value) -> (usize, usize) {
    (integer(&value[0]), integer(&value[1]))
}

pub(crate) fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

pub(crate) fn from_hex(text: &str) -> Vec<u8> {
    text.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}
