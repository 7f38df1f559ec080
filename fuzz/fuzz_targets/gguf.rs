//! GGUF files: as a whole, and as what follows the magic number and the version.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ocelli_formats::Gguf;

fuzz_target!(|bytes: &[u8]| {
    let body = [b"GGUF\x03\0\0\0", bytes, &[0x55; 512]].concat();
    for file in [bytes.to_vec(), body] {
        let Ok(parsed) = Gguf::parse(file.into(), "fuzz") else { continue };
        for name in parsed.names() {
            let stored = parsed.stored(name).expect("a listed tensor is there");
            if let Ok(loaded) = stored.load() {
                assert_eq!(loaded.n_elements(), stored.n_elements());
            }
        }
        // The metadata of a stranger as a model.
        if let Ok(files) = parsed.model_files() {
            let _ = (files.json("tokenizer.json"), ocelli_formats::Config::load(&files));
        }
    }
});
