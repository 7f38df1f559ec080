//! The tokens that Whisper's decoder is spoken to with, and what `generation_config.json` says of them.

use ocelli_formats::ModelFiles;
use ocelli_processors::Tokenizer;
use serde::Deserialize;

use crate::error::{Error, Result};

/// Ids of the special tokens.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SpeechTokens {
    /// `<|endoftext|>`; text tokens are below it.
    pub(crate) end: u32,
    /// `<|startoftranscript|>`.
    pub(crate) start: u32,
    pub(crate) transcribe: u32,
    translate: Option<u32>,
    /// `<|startofprev|>`, before what was said before.
    pub(crate) previous: Option<u32>,
    /// `<|nospeech|>`.
    pub(crate) no_speech: Option<u32>,
    pub(crate) no_timestamps: u32,
    /// `<|0.00|>`; every next token is 0.02 seconds later.
    pub(crate) first_timestamp: u32,
    /// Codes such as `en`; empty for a model that knows only English.
    languages: Vec<(String, u32)>,
    pub(crate) suppressed: Vec<u32>,
    pub(crate) suppressed_at_begin: Vec<u32>,
    /// The first timestamp is at most so many steps in.
    pub(crate) max_initial_timestamp: Option<u32>,
    /// Layers and heads whose attention follows the speech.
    pub(crate) alignment_heads: Vec<[usize; 2]>,
}

/// `generation_config.json`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Settings {
    suppress_tokens: Option<Vec<i64>>,
    begin_suppress_tokens: Option<Vec<i64>>,
    max_initial_timestamp_index: Option<u32>,
    alignment_heads: Option<Vec<[usize; 2]>>,
    is_multilingual: Option<bool>,
}

impl SpeechTokens {
    /// # Errors
    /// [`ocelli_processors::Error::MissingToken`] without the tokens that nothing works without;
    /// [`ocelli_processors::Error::Value`] for a generation config that cannot be read.
    pub(crate) fn read(files: &ModelFiles, tokenizer: &Tokenizer) -> Result<Self> {
        const FILE: &str = "generation_config.json";
        let settings: Settings = match files.json(FILE)? {
            None => Settings::default(),
            Some(value) => serde_json::from_value(value).map_err(|error| ocelli_processors::Error::Value {
                file: files.label_of(FILE),
                key: "(root)".to_owned(),
                message: error.to_string(),
            })?,
        };
        let required = |token: &str| {
            tokenizer.token_to_id(token).ok_or_else(|| ocelli_processors::Error::MissingToken {
                file: tokenizer.file().to_owned(),
                token: token.to_owned(),
            })
        };
        let start = required("<|startoftranscript|>")?;
        let no_timestamps = required("<|notimestamps|>")?;
        let is_multilingual = settings.is_multilingual != Some(false);
        let listed = |ids: Option<Vec<i64>>| -> Vec<u32> {
            ids.unwrap_or_default().into_iter().filter_map(|id| u32::try_from(id).ok()).collect()
        };
        let no_speech = ["<|nospeech|>", "<|nocaptions|>"].into_iter().find_map(|name| tokenizer.token_to_id(name));
        Ok(Self {
            end: required("<|endoftext|>")?,
            start,
            transcribe: required("<|transcribe|>")?,
            translate: tokenizer.token_to_id("<|translate|>").filter(|_| is_multilingual),
            previous: tokenizer.token_to_id("<|startofprev|>"),
            no_speech,
            no_timestamps,
            first_timestamp: no_timestamps + 1,
            languages: if is_multilingual { languages(tokenizer, start) } else { Vec::new() },
            suppressed: listed(settings.suppress_tokens),
            suppressed_at_begin: listed(settings.begin_suppress_tokens),
            max_initial_timestamp: settings.max_initial_timestamp_index,
            alignment_heads: settings.alignment_heads.unwrap_or_default(),
        })
    }

    /// All languages, with their tokens.
    pub(crate) fn languages(&self) -> &[(String, u32)] {
        &self.languages
    }

    /// The token of a language that a user names.
    ///
    /// # Errors
    /// [`Error::InvalidOption`].
    pub(crate) fn language(&self, code: &str) -> Result<u32> {
        let found = self.languages.iter().find(|(known, _)| known.eq_ignore_ascii_case(code.trim()));
        found.map(|&(_, id)| id).ok_or_else(|| Error::InvalidOption {
            name: "language",
            value: code.to_owned(),
            expected: if self.languages.is_empty() {
                "none, as the model knows only English"
            } else {
                "a code that the model knows, such as en or de"
            },
        })
    }

    /// # Errors
    /// [`Error::InvalidOption`] for a translation by a model that knows only English.
    pub(crate) fn task(&self, translate: bool) -> Result<u32> {
        let unable = || Error::InvalidOption {
            name: "task",
            value: "translate".to_owned(),
            expected: "transcribe, as the model knows only English",
        };
        if translate { self.translate.ok_or_else(unable) } else { Ok(self.transcribe) }
    }

    pub(crate) fn is_timestamp(&self, id: u32) -> bool {
        id >= self.first_timestamp
    }
}

/// Languages follow the start token, up to the first token that is none.
fn languages(tokenizer: &Tokenizer, start: u32) -> Vec<(String, u32)> {
    let code = |id: u32| {
        let token = tokenizer.id_to_token(id)?;
        let code = token.strip_prefix("<|")?.strip_suffix("|>")?;
        (2..=3).contains(&code.len()).then(|| (code.to_owned(), id))
    };
    (start + 1..).map_while(code).collect()
}
