//! One window of a recording to tokens, at ever higher temperatures until they are believable.

use std::io::Write;

use ocelli_backend::{Cancel, SequenceId};
use ocelli_processors::{LogMel, Tokenizer};

use crate::error::{Error, Result};
use crate::generate::beam::BeamSearch;
use crate::generate::logits::log_softmax;
use crate::generate::rules::{History, TokenRules};
use crate::generate::sampler::Sampler;
use crate::options::{EarlyStopping, GenerateOptions};
use crate::session::{Align, ImageFeatures, LogitRows, Prefill, Session};
use crate::speech::TranscribeOptions;
use crate::speech::rules::SpeechRules;
use crate::speech::tokens::SpeechTokens;
use crate::speech::windows::{Heard, Listen, Window};
use crate::speech::words::{self, Moments};

/// Listens to a recording with a model.
pub(crate) struct Listener<'a> {
    pub(crate) session: &'a mut dyn Session,
    pub(crate) tokens: &'a SpeechTokens,
    pub(crate) tokenizer: &'a Tokenizer,
    pub(crate) options: &'a TranscribeOptions,
    pub(crate) mel: &'a LogMel,
    /// Frames that the model looks at.
    pub(crate) window_frames: usize,
    /// Token of the language, if the model knows several.
    pub(crate) language: Option<u32>,
    /// Features of the window that was heard last, by its first frame.
    pub(crate) features: Option<(usize, ImageFeatures)>,
    pub(crate) cancel: &'a Cancel,
}

/// An answer, the end token included if there is one.
struct Attempt {
    tokens: Vec<u32>,
    avg_log_prob: f32,
}

impl Listener<'_> {
    /// The likeliest language of the first window.
    ///
    /// # Errors
    /// Those of [`Session::prefill`].
    pub(crate) fn detect_language(&mut self) -> Result<Option<u32>> {
        if self.tokens.languages().is_empty() {
            return Ok(None);
        }
        let features = self.features(0)?;
        let sequence = self.session.start();
        let logits = self.prefill(sequence, &[self.tokens.start], &[features]);
        self.session.end(sequence);
        let logits = logits?;
        let likelihood = |id: u32| logits.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
        let ids = self.tokens.languages().iter().map(|&(_, id)| id);
        Ok(ids.max_by(|&a, &b| likelihood(a).total_cmp(&likelihood(b)).then(b.cmp(&a))))
    }

    fn features(&mut self, start: usize) -> Result<ImageFeatures> {
        if let Some((known, features)) = &self.features
            && *known == start
        {
            return Ok(features.clone());
        }
        let features = self.session.encode_audio(&self.mel.window(start, self.window_frames), self.cancel)?;
        self.features = Some((start, features.clone()));
        Ok(features)
    }

    fn prefill(&mut self, sequence: SequenceId, ids: &[u32], images: &[ImageFeatures]) -> Result<Vec<f32>> {
        self.session.prefill(sequence, Prefill { ids, images, rows: LogitRows::Last, cancel: self.cancel })
    }

    /// The tokens that say what is to be done.
    fn task(&self) -> Result<Vec<u32>> {
        let mut ids = vec![self.tokens.start];
        if let Some(language) = self.language {
            ids.extend([language, self.tokens.task(self.options.translate)?]);
        }
        Ok(ids)
    }

    /// Tries the temperatures one after another.
    fn attempts(&mut self, base: SequenceId, prompt: &[u32], logits: &[f32], no_speech_prob: f32) -> Result<Heard> {
        let mut heard = Heard { no_speech_prob, ..Heard::default() };
        for &temperature in &self.options.temperatures {
            let sequence = self.session.fork(base);
            let attempt = if temperature == 0.0 && self.options.num_beams > 1 {
                self.search(sequence, prompt, logits.to_vec())?
            } else {
                let attempt = self.draw(sequence, prompt, logits.to_vec(), temperature);
                self.session.end(sequence);
                attempt?
            };
            let Attempt { mut tokens, avg_log_prob } = attempt;
            tokens.pop_if(|last| *last == self.tokens.end);
            let text: Vec<u32> = tokens.iter().copied().filter(|&id| id < self.tokens.end).collect();
            let compression_ratio = compression_ratio(&self.tokenizer.decode(&text, true)?);
            let is_doubtful = self.options.log_prob_threshold.is_some_and(|least| avg_log_prob < least);
            let is_silence = is_doubtful && self.options.no_speech_threshold.is_some_and(|most| no_speech_prob > most);
            let repeats = self.options.compression_ratio_threshold.is_some_and(|most| compression_ratio > most);
            heard = Heard { tokens, avg_log_prob, compression_ratio, temperature, is_silence, ..heard };
            if is_silence || !(is_doubtful || repeats) {
                break;
            }
        }
        Ok(heard)
    }

    /// Most tokens of an answer.
    fn limit(&self, prompt: &[u32]) -> usize {
        let room = self.session.context_length().saturating_sub(prompt.len());
        self.options.max_tokens.map_or(room, |most| most.min(room))
    }

    /// The likeliest answer of several beams; ends the sequence.
    fn search(&mut self, sequence: SequenceId, prompt: &[u32], logits: Vec<f32>) -> Result<Attempt> {
        let rules = SpeechRules { tokens: self.tokens };
        let search = BeamSearch {
            prompt,
            rules: &rules,
            end_ids: &[self.tokens.end],
            limit: self.limit(prompt),
            num_beams: self.options.num_beams,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::False,
            ends_in_stop: &|_| false,
            cancel: self.cancel,
        };
        let best = search.run(self.session, sequence, logits)?;
        if best.cancelled {
            return Err(Error::Cancelled);
        }
        Ok(Attempt { tokens: best.tokens, avg_log_prob: best.score })
    }

    /// One token after the other: the likeliest ones at temperature 0.
    fn draw(
        &mut self,
        sequence: SequenceId,
        prompt: &[u32],
        mut logits: Vec<f32>,
        temperature: f32,
    ) -> Result<Attempt> {
        let rules = SpeechRules { tokens: self.tokens };
        let options = GenerateOptions { temperature: Some(temperature), ..GenerateOptions::greedy() };
        let seed = self.options.seed.wrapping_add(self.features.as_ref().map_or(0, |(start, _)| *start as u64));
        let mut sampler = Sampler::new(&options, seed);
        let (mut generated, mut sum) = (Vec::new(), 0.0);
        while generated.len() < self.limit(prompt) {
            rules.apply(&mut logits, History { prompt, generated: &generated });
            let not_finite = Error::NotFinite { tokens: prompt.len() + generated.len() };
            let Some(token) = sampler.choose(&logits) else { return Err(not_finite) };
            log_softmax(&mut logits);
            sum += logits[token as usize];
            generated.push(token);
            if token == self.tokens.end || generated.len() == self.limit(prompt) {
                break;
            }
            if self.cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            logits = self.session.decode(&[(sequence, token)]);
        }
        let avg_log_prob = sum / generated.len().max(1) as f32;
        Ok(Attempt { tokens: generated, avg_log_prob })
    }
}

impl Listen for Listener<'_> {
    fn listen(&mut self, window: Window, previous: &[u32]) -> Result<Heard> {
        let features = self.features(window.start)?;
        let mut prompt = Vec::new();
        if let Some(marker) = self.tokens.previous.filter(|_| !previous.is_empty()) {
            prompt.push(marker);
            prompt.extend(previous);
        }
        let begin = prompt.len() + 1;
        prompt.extend(self.task()?);
        let base = self.session.start();
        let heard = self.prefill(base, &prompt[..begin], &[features]).and_then(|at_start| {
            let no_speech_prob = self.tokens.no_speech.map_or(0.0, |id| probability(&at_start, id));
            let rest = &prompt[begin..];
            let logits = if rest.is_empty() { at_start } else { self.prefill(base, rest, &[])? };
            self.attempts(base, &prompt, &logits, no_speech_prob)
        });
        self.session.end(base);
        heard
    }

    fn moments(&mut self, window: Window, text: &[u32]) -> Result<Moments> {
        let features = self.features(window.start)?;
        let mut ids = self.task()?;
        let first_row = ids.len();
        ids.push(self.tokens.no_timestamps);
        ids.extend(text);
        ids.push(self.tokens.end);
        let (heads, columns) = (&self.tokens.alignment_heads[..], window.frames / 2);
        let align = Align { ids: &ids, audio: &features, heads, columns, cancel: self.cancel };
        let (alignment, logits) = self.session.align(align)?;
        let rows = logits.chunks_exact(self.session.vocab_size()).skip(first_row);
        let of_text = |logits: &[f32]| logits[..(self.tokens.end as usize).min(logits.len())].to_vec();
        let probabilities = rows.zip(text).map(|(logits, &id)| probability(&of_text(logits), id)).collect();
        Ok(Moments { columns: words::token_columns(&alignment, first_row), probabilities })
    }
}

/// The share of a token.
fn probability(logits: &[f32], id: u32) -> f32 {
    let mut shares = logits.to_vec();
    if log_softmax(&mut shares) { shares.get(id as usize).map_or(0.0, |share| share.exp()) } else { 0.0 }
}

/// Length of a text over that of its compressed form.
fn compression_ratio(text: &str) -> f32 {
    let mut compressed = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    // Writing to memory cannot fail.
    let written = compressed.write_all(text.as_bytes()).and_then(|()| compressed.finish());
    written.map_or(0.0, |compressed| text.len() as f32 / compressed.len().max(1) as f32)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde::Deserialize;

    use super::*;
    use crate::{EngineOptions, LoadedModel};

    #[derive(Deserialize)]
    struct Reference {
        alignment: Aligned,
    }

    #[derive(Deserialize)]
    struct Aligned {
        seconds: usize,
        text: Vec<u32>,
        times: Vec<f64>,
        probabilities: Vec<f32>,
    }

    /// The recording of `tests/tools/make_whisper_long.py`.
    fn recording(seconds: usize) -> Vec<f32> {
        let mut state = 11u32;
        let sample = |at: i64| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let noise = f64::from(state >> 24) - 128.0;
            let block = at / 4000;
            let tone = if at / (20 + block * 37 % 90) % 2 == 1 { 40 } else { -40 } * (block * 53 % 7);
            ((noise * (block * 29 % 5) as f64 / 4.0 + tone as f64) / 1024.0) as f32
        };
        (0..seconds as i64 * 16_000).map(sample).collect()
    }

    #[test]
    fn words_begin_when_openai_says() {
        let json = include_str!("../../tests/data/whisper_long/reference.json");
        let Reference { alignment } = serde_json::from_str(json).unwrap();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/whisper_long");
        let files = ocelli_formats::ModelFiles::open(folder).unwrap();
        let mut model = LoadedModel::load(&files, &EngineOptions::new()).unwrap();
        let mel = model.processor.mel_extractor().unwrap().one_window(&recording(alignment.seconds));
        let tokens = model.speech.unwrap();
        let mut listener = Listener {
            session: model.session.as_mut(),
            tokens: &tokens,
            tokenizer: model.processor.tokenizer(),
            options: &TranscribeOptions::default(),
            mel: &mel,
            window_frames: 3000,
            language: Some(tokens.language("en").unwrap()),
            features: None,
            cancel: &Cancel::new(),
        };
        let window = Window { start: 0, frames: alignment.seconds * 100 };
        let moments = listener.moments(window, &alignment.text).unwrap();
        assert_eq!(moments.columns.iter().map(|&at| at as f64 / 50.0).collect::<Vec<_>>(), alignment.times);
        let mut pairs = moments.probabilities.iter().zip(&alignment.probabilities);
        assert!(pairs.all(|(a, b)| (a - b).abs() < 1e-5), "{:?}", moments.probabilities);
        assert_eq!(moments.probabilities.len(), alignment.text.len());
    }

    #[test]
    fn repetition_compresses_well() {
        assert!(compression_ratio("and so on, and so on, ".repeat(8).as_str()) > 2.4);
        assert!(compression_ratio("The quick brown fox jumps over the lazy dog.") < 1.0);
        assert_eq!(compression_ratio(""), 0.0);
    }

    #[test]
    fn probabilities_are_shares() {
        assert_eq!(probability(&[0.0, f32::NEG_INFINITY, 0.0], 2), 0.5);
        assert_eq!(probability(&[f32::NAN], 0), 0.0);
        assert_eq!(probability(&[0.0], 7), 0.0);
    }
}
