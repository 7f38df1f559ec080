//! Checkpoints with quantised modules: a configuration in one line, and a safetensors header in front of some data.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ocelli_formats::{Checkpoint, Safetensors};

fuzz_target!(|bytes: &[u8]| {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return };
    let (config, header) = (&bytes[..end], &bytes[end + 1..]);
    let file = [&(header.len() as u64).to_le_bytes(), header, &[0x55; 256]].concat();
    let Ok(parsed) = Safetensors::parse(file.into(), "fuzz") else { return };
    let Ok(checkpoint) = Checkpoint::from_safetensors(parsed, config) else { return };
    for name in checkpoint.names() {
        let stored = checkpoint.stored(name).expect("a listed tensor is there");
        let loaded = checkpoint.matrix(name).expect("what was opened can be read").expect("it is there");
        assert_eq!(loaded.n_elements(), stored.n_elements());
        let _ = loaded.to_f32();
    }
});
