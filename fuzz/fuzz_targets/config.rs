//! `config.json` of a stranger.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ocelli_formats::Config;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(config) = Config::parse(bytes, "fuzz") {
        let again = serde_json::to_vec(config.root().value()).expect("JSON can be written");
        let twice = Config::parse(&again, "fuzz").expect("what is canonical is accepted again");
        assert_eq!(config.model_type(), twice.model_type());
        assert_eq!(config.quantization().is_some(), twice.quantization().is_some());
    }
});
