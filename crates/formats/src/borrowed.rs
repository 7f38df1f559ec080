//! Files that a published model takes from another one: its repository lacks them, or holds ones that it was not trained
//! with.

use crate::config::Config;
use crate::files::ModelFiles;

/// What a model of the hub takes from another one. The other's files go before its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Borrowed {
    /// The other model's id.
    pub from: &'static str,
    /// Names of the files.
    pub files: &'static [&'static str],
}

impl Borrowed {
    /// What these files need; nothing where they cannot be read, which loading them will say.
    pub fn by(files: &ModelFiles) -> Option<Self> {
        let config = Config::load(files).ok()?;
        match config.model_type() {
            "moondream1" => moondream(files),
            "whisper" => whisper(files, &config),
            _ => None,
        }
    }
}

/// Revisions since June 2025 were trained with a tokenizer of their own, but their repository still holds GPT-2's.
fn moondream(files: &ModelFiles) -> Option<Borrowed> {
    let versions = files.text("versions.txt").ok()??;
    let revision = versions.split_whitespace().filter(|word| word.starts_with("20")).max()?;
    (revision >= FIRST_NEWER_MOONDREAM).then_some(Borrowed { from: "moondream/starmie-v1", files: &["tokenizer.json"] })
}

/// MLX publishes weights and sizes only.
fn whisper(files: &ModelFiles, config: &Config) -> Option<Borrowed> {
    let has = |name| matches!(files.bytes(name), Ok(Some(_)));
    if has("tokenizer.json") || has("vocab.json") {
        return None;
    }
    let size = |key| config.root().get(key)?.as_u64();
    let sizes = [size("d_model")?, size("decoder_layers")?, size("vocab_size")?];
    let (_, from) = WHISPER.iter().find(|(known, _)| *known == sizes)?;
    Some(Borrowed { from, files: &["tokenizer.json", "tokenizer_config.json", "generation_config.json"] })
}

/// Moondream 2's first revision with a tokenizer of its own.
const FIRST_NEWER_MOONDREAM: &str = "2025-06";

/// Width, decoder layers and vocabulary of the published models (openai/whisper, `whisper/__init__.py` and its
/// checkpoints' dimensions): English only, 99 languages, 100 languages. The first two large models are alike.
const WHISPER: [([u64; 3], &str); 12] = [
    ([384, 4, 51_864], "openai/whisper-tiny.en"),
    ([384, 4, 51_865], "openai/whisper-tiny"),
    ([512, 6, 51_864], "openai/whisper-base.en"),
    ([512, 6, 51_865], "openai/whisper-base"),
    ([768, 12, 51_864], "openai/whisper-small.en"),
    ([768, 12, 51_865], "openai/whisper-small"),
    ([1024, 24, 51_864], "openai/whisper-medium.en"),
    ([1024, 24, 51_865], "openai/whisper-medium"),
    ([1280, 32, 51_865], "openai/whisper-large-v2"),
    ([1280, 32, 51_866], "openai/whisper-large-v3"),
    ([1280, 4, 51_866], "openai/whisper-large-v3-turbo"),
    ([1280, 2, 51_866], "distil-whisper/distil-large-v3"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn borrowed(files: &[(&str, &str)]) -> Option<&'static str> {
        let files = files.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec())).collect();
        Borrowed::by(&ModelFiles::in_memory("mine", files)).map(|borrowed| borrowed.from)
    }

    #[test]
    fn moondream_takes_the_tokenizer_of_its_revision() {
        let config = ("config.json", r#"{"architectures":["HfMoondream"],"model_type":"moondream1","config":{}}"#);
        assert_eq!(borrowed(&[config]), None);
        assert_eq!(borrowed(&[config, ("versions.txt", "2024-08-26\n2025-04-14\n")]), None);
        let newer = ("versions.txt", "2025-04-14\n2025-06-21\n");
        assert_eq!(borrowed(&[config, newer]), Some("moondream/starmie-v1"));
        assert_eq!(borrowed(&[("config.json", r#"{"model_type":"llama"}"#), newer]), None);
        assert_eq!(borrowed(&[("config.json", "{"), newer]), None);
    }

    #[test]
    fn whisper_of_mlx_takes_the_tokenizer_of_what_it_was_made_of() {
        let config = |layers: u32, vocabulary: u32| {
            format!(
                r#"{{"n_mels":128,"n_audio_ctx":1500,"n_audio_state":1280,"n_audio_head":20,"n_audio_layer":32,
                    "n_vocab":{vocabulary},"n_text_ctx":448,"n_text_state":1280,"n_text_head":20,"n_text_layer":{layers},
                    "model_type":"whisper"}}"#
            )
        };
        let turbo = config(4, 51_866);
        assert_eq!(borrowed(&[("config.json", &turbo)]), Some("openai/whisper-large-v3-turbo"));
        assert_eq!(borrowed(&[("config.json", &config(32, 51_865))]), Some("openai/whisper-large-v2"));
        assert_eq!(borrowed(&[("config.json", &config(5, 51_866))]), None);
        assert_eq!(borrowed(&[("config.json", &turbo), ("tokenizer.json", "{}")]), None);
    }
}
