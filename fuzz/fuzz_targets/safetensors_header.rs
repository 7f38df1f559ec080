//! Weights files: as a whole, and as a header in front of some data so that the length field need not be guessed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ocelli_formats::Safetensors;

fuzz_target!(|bytes: &[u8]| {
    let header = [&(bytes.len() as u64).to_le_bytes(), bytes, &[0x55; 96]].concat();
    for file in [bytes.to_vec(), header] {
        let Ok(parsed) = Safetensors::parse(file.into(), "fuzz") else { continue };
        for name in parsed.names() {
            let tensor = parsed.tensor(name).expect("a listed tensor is there");
            let _ = (tensor.to_f32(), tensor.to_i64());
        }
    }
});
