//! Published models as their `config.json` and `preprocessor_config.json` have them: enough to build them with random
//! weights and to give them pictures. One file per model: the files it stands for, by name; `about.json` says where the
//! model was published and under which licence.

use ocelli_formats::ModelFiles;
use serde_json::{Map, Value};

use crate::error::{Error, Result};

macro_rules! published {
    ($($name:literal,)*) => {
        /// Names of all models that can be built with random weights.
        pub const PUBLISHED: &[&str] = &[$($name),*];

        const FILES: &[&str] = &[$(include_str!(concat!("published/", $name, ".json"))),*];
    };
}

published! {
    "blip-base",
    "blip-vqa-base",
    "blip2-opt-2.7b",
    "deepseek-vl2-small",
    "deepseek-vl2-tiny",
    "fastvlm-0.5b",
    "fastvlm-1.5b",
    "fastvlm-7b",
    "instructblip-vicuna-7b",
    "llama-3.1-8b",
    "llama-3.2-1b",
    "llama-3.2-3b",
    "llava-1.5-7b",
    "moondream2",
    "qwen2-vl-2b",
    "qwen2-vl-7b",
    "qwen2.5-0.5b",
    "qwen2.5-1.5b",
    "qwen2.5-7b",
    "qwen2.5-vl-3b",
    "qwen2.5-vl-7b",
    "qwen3-0.6b",
    "qwen3-1.7b",
    "qwen3-4b",
    "qwen3-8b",
    "qwen3-vl-2b",
    "qwen3-vl-4b",
    "qwen3-vl-8b",
    "r1-distill-qwen-1.5b",
    "r1-distill-qwen-7b",
    "smolvlm-256m",
    "smolvlm-500m",
    "smolvlm-2.2b",
    "smolvlm2-256m",
    "smolvlm2-500m",
    "smolvlm2-2.2b",
    "whisper-tiny",
    "whisper-base",
    "whisper-small",
    "whisper-medium",
    "whisper-large-v3",
    "whisper-large-v3-turbo",
}

/// The files of a model in [`PUBLISHED`], without its tokenizer and its weights.
///
/// # Errors
/// [`Error::InvalidOption`] for any other name.
pub(crate) fn files(name: &str) -> Result<ModelFiles> {
    let place = PUBLISHED.iter().position(|known| *known == name).ok_or_else(|| Error::InvalidOption {
        name: "random_weights",
        value: name.to_owned(),
        expected: "one of the published models' names",
    })?;
    let files: Map<String, Value> = serde_json::from_str(FILES[place]).expect("a test reads all of them");
    let files = files.into_iter().map(|(name, content)| (name, content.to_string().into_bytes()));
    Ok(ModelFiles::in_memory(name, files.collect()))
}

#[cfg(test)]
mod tests {
    use ocelli_formats::Config;

    use super::*;

    #[test]
    fn every_name_has_the_files_of_a_supported_family() {
        for name in PUBLISHED {
            let files = files(name).unwrap();
            let config = Config::load(&files).unwrap();
            let family = ocelli_models::architecture(config.model_type()).unwrap();
            let images = ocelli_processors::image_processor(&files, &config).unwrap();
            assert_eq!(images.is_some(), family.sees_images, "{name}");
        }
        let error = files("gpt-5").unwrap_err();
        assert_eq!(error.to_string(), "random_weights is gpt-5, expected one of the published models' names");
    }
}
