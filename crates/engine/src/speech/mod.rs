//! Recordings to text, as openai/whisper and transformers' `generate` of Whisper do it.
//!
//! A recording is heard in windows of 30 seconds ([`windows`]). What was said before is shown to the decoder, which
//! answers with text between timestamps ([`rules`]); an answer that repeats itself or that the model does not believe
//! in is drawn again at a higher temperature ([`decode`]). The last complete timestamp says where the next window
//! begins. Words get times of their own from what the decoder looked at ([`words`]).

mod decode;
mod job;
mod rules;
mod tokens;
mod windows;
mod words;

use serde::Serialize;

use crate::error::{Error, Result};

pub(crate) use job::{Speech, TranscribeJob};
pub use job::{TranscribeEvent, Transcription};
pub(crate) use tokens::SpeechTokens;

/// How a recording is transcribed.
#[derive(Clone, Debug, PartialEq)]
pub struct TranscribeOptions {
    /// A language as the model writes it, such as `en`; detected from the first window without one.
    pub language: Option<String>,
    /// Whether to translate into English.
    pub translate: bool,
    /// Whether every word gets times of its own.
    pub words: bool,
    /// Text that the recording may be thought to follow: names, spellings, style.
    pub prompt: Option<String>,
    /// Whether a window is shown what was said before it.
    pub condition_on_previous_text: bool,
    /// Beams at temperature 0.
    pub num_beams: usize,
    /// What is tried one after another, until an answer is believable.
    pub temperatures: Vec<f32>,
    /// An answer whose text is compressed better than this repeats itself.
    pub compression_ratio_threshold: Option<f32>,
    /// An answer whose tokens have a mean log-probability below this is not believable.
    pub log_prob_threshold: Option<f32>,
    /// Above this probability of silence, an answer that is not believable is left out.
    pub no_speech_threshold: Option<f32>,
    /// Most tokens per window; as many as fit without it.
    pub max_tokens: Option<usize>,
    /// Of temperatures above 0.
    pub seed: u64,
}

impl Default for TranscribeOptions {
    /// The settings of openai/whisper's command line.
    fn default() -> Self {
        Self {
            language: None,
            translate: false,
            words: false,
            prompt: None,
            condition_on_previous_text: true,
            num_beams: 5,
            temperatures: vec![0.0, 0.2, 0.4, 0.6, 0.8, 1.0],
            compression_ratio_threshold: Some(2.4),
            log_prob_threshold: Some(-1.0),
            no_speech_threshold: Some(0.6),
            max_tokens: None,
            seed: 0,
        }
    }
}

impl TranscribeOptions {
    /// Refuses values that mean nothing.
    ///
    /// # Errors
    /// [`Error::InvalidOption`].
    pub fn validate(&self) -> Result<()> {
        let invalid = |name, value: String, expected| Err(Error::InvalidOption { name, value, expected });
        if !(1..=64).contains(&self.num_beams) {
            return invalid("num_beams", self.num_beams.to_string(), "1 to 64");
        }
        let meaningful = |&temperature: &f32| (0.0..=100.0).contains(&temperature);
        if self.temperatures.is_empty() || !self.temperatures.iter().all(meaningful) {
            return invalid("temperatures", format!("{:?}", self.temperatures), "some numbers from 0 to 100");
        }
        for (name, value, meaningful, expected) in [
            ("compression_ratio_threshold", self.compression_ratio_threshold, 0.0..=f32::MAX, "a number from 0"),
            ("log_prob_threshold", self.log_prob_threshold, f32::MIN..=0.0, "a number up to 0"),
            ("no_speech_threshold", self.no_speech_threshold, 0.0..=1.0, "a probability, from 0 to 1"),
        ] {
            if let Some(value) = value.filter(|value| !meaningful.contains(value)) {
                return invalid(name, value.to_string(), expected);
            }
        }
        if self.max_tokens == Some(0) {
            return invalid("max_tokens", "0".to_owned(), "at least 1");
        }
        Ok(())
    }
}

/// What was said.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Transcript {
    /// All of it.
    pub text: String,
    /// The recording's language, as the model writes it; `None` for a model that knows only English.
    pub language: Option<String>,
    /// Seconds of the recording.
    pub duration: f64,
    /// Its parts.
    pub segments: Vec<Segment>,
}

/// A part of a transcript.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Segment {
    /// Seconds from the beginning of the recording.
    pub start: f64,
    /// Seconds from the beginning of the recording.
    pub end: f64,
    /// What was said, usually with a space before it.
    pub text: String,
    /// The tokens, timestamps included.
    pub tokens: Vec<u32>,
    /// Mean log-probability of the window's tokens.
    pub avg_log_prob: f32,
    /// Length of the window's text over that of its compressed form.
    pub compression_ratio: f32,
    /// How likely nobody speaks in the window.
    pub no_speech_prob: f32,
    /// Temperature that the window's tokens were drawn at.
    pub temperature: f32,
    /// With times of their own, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub words: Option<Vec<Word>>,
}

/// A word of a segment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Word {
    /// Seconds from the beginning of the recording.
    pub start: f64,
    /// Seconds from the beginning of the recording.
    pub end: f64,
    /// The word with the space before it and the punctuation around it.
    pub word: String,
    /// Mean probability of its tokens.
    pub probability: f32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_mean_nothing_are_named() {
        let default = TranscribeOptions::default;
        default().validate().unwrap();
        for (options, name) in [
            (TranscribeOptions { num_beams: 0, ..default() }, "num_beams is 0"),
            (TranscribeOptions { temperatures: Vec::new(), ..default() }, "temperatures is []"),
            (TranscribeOptions { temperatures: vec![0.0, f32::NAN], ..default() }, "temperatures is [0.0, NaN]"),
            (
                TranscribeOptions { compression_ratio_threshold: Some(-1.0), ..default() },
                "compression_ratio_threshold is -1, expected a number from 0",
            ),
            (
                TranscribeOptions { log_prob_threshold: Some(0.5), ..default() },
                "log_prob_threshold is 0.5, expected a number up to 0",
            ),
            (
                TranscribeOptions { no_speech_threshold: Some(f32::NAN), ..default() },
                "no_speech_threshold is NaN, expected a probability, from 0 to 1",
            ),
            (TranscribeOptions { max_tokens: Some(0), ..default() }, "max_tokens is 0"),
        ] {
            let error = options.validate().unwrap_err().to_string();
            assert!(error.starts_with(name), "{error}");
        }
    }
}
