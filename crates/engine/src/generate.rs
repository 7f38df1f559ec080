//! From a prompt to an answer: prefill, then one token (or one token of every beam) after the other.
//!
//! Invariant: whatever happens, every sequence that was started here is ended here.

pub(crate) mod beam;
pub(crate) mod logits;
mod random;
pub(crate) mod rules;
pub(crate) mod sampler;
mod stop;

use std::time::{Duration, Instant};

use ocelli_backend::{Cancel, SequenceId};
use ocelli_processors::{TokenStream, Tokenizer};

use crate::answer::FinishDetail;
use crate::error::{Error, Result};
use crate::options::GenerateOptions;
use crate::session::{ImageFeatures, LogitRows, Prefill, Session};
use beam::BeamSearch;
pub(crate) use logits::argmax;
pub(crate) use random::Random;
use rules::{History, LogitRules, TokenRules};
use sampler::Sampler;
pub(crate) use stop::overlap;
use stop::{StopMatcher, Stopped};

/// A prompt and how to answer it; the options are already validated.
pub(crate) struct Task<'a> {
    pub(crate) ids: &'a [u32],
    /// Features of the prompt's pictures, in order.
    pub(crate) images: &'a [ImageFeatures],
    pub(crate) options: &'a GenerateOptions,
    /// Used when sampling.
    pub(crate) seed: u64,
    /// The model's end tokens.
    pub(crate) end_ids: &'a [u32],
    pub(crate) tokenizer: &'a Tokenizer,
    pub(crate) cancel: &'a Cancel,
}

/// What came out.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) text: String,
    pub(crate) token_ids: Vec<u32>,
    pub(crate) detail: FinishDetail,
    pub(crate) stop_string: Option<String>,
    pub(crate) score: Option<f32>,
    pub(crate) prefill: Duration,
    pub(crate) decode: Duration,
    /// When the first token was there (for beams: the first row of logits).
    pub(crate) first_token: Option<Instant>,
}

/// Text that is certain, and the tokens that became certain with it.
pub(crate) type Emit<'a> = dyn FnMut(String, Vec<u32>) + 'a;

/// Answers a prompt; `emit` gets the text as it becomes certain.
///
/// # Errors
/// Those of [`Session::prefill`] but for [`Error::Cancelled`], which is an outcome here; [`Error::NotFinite`].
pub(crate) fn generate(session: &mut dyn Session, task: &Task<'_>, emit: &mut Emit<'_>) -> Result<Outcome> {
    let held_ids = session.decoder_ids(task.ids);
    let prompt_tokens = task.ids.len();
    let context_length = session.context_length();
    if prompt_tokens.max(held_ids.len()) >= context_length {
        return Err(Error::PromptTooLong { prompt_tokens, context_length });
    }
    let start = Instant::now();
    let sequence = session.start();
    let prefill = Prefill { ids: task.ids, images: task.images, rows: LogitRows::Last, cancel: task.cancel };
    let logits = match session.prefill(sequence, prefill) {
        Ok(logits) => logits,
        Err(error) => {
            session.end(sequence);
            let cancelled = matches!(error, Error::Cancelled);
            return if cancelled { Ok(Outcome::cancelled(start.elapsed())) } else { Err(error) };
        }
    };
    let prefilled = Instant::now();
    // What the answer continues is what the decoder holds.
    let task = Task { ids: &held_ids, ..*task };
    let mut answer = Writer::new(session, &task);
    let outcome = if task.options.num_beams > 1 {
        answer.search(session, sequence, logits, emit)
    } else {
        let outcome = answer.decode(session, sequence, logits, emit);
        session.end(sequence);
        outcome
    };
    Ok(Outcome { prefill: prefilled - start, decode: prefilled.elapsed(), ..outcome? })
}

impl Outcome {
    /// Nothing came out, after this much work on the prompt.
    pub(crate) fn cancelled(prefill: Duration) -> Self {
        Self {
            text: String::new(),
            token_ids: Vec::new(),
            detail: FinishDetail::Cancelled,
            stop_string: None,
            score: None,
            prefill,
            decode: Duration::ZERO,
            first_token: None,
        }
    }
}

/// An answer being written.
struct Writer<'a> {
    task: &'a Task<'a>,
    rules: LogitRules,
    /// The model's end tokens, and the stop strings that are special tokens and so never become text.
    end_ids: Vec<u32>,
    /// Most tokens there is room for.
    limit: usize,
    stream: Option<TokenStream>,
    stops: StopMatcher,
    text: String,
    token_ids: Vec<u32>,
    /// Tokens whose text is not given out yet.
    waiting: Vec<u32>,
}

impl<'a> Writer<'a> {
    fn new(session: &dyn Session, task: &'a Task<'a>) -> Self {
        let special_stops = task.options.stop.iter().filter_map(|stop| special_id(task.tokenizer, stop));
        let end_ids: Vec<u32> = task.end_ids.iter().copied().chain(special_stops).collect();
        Self {
            task,
            rules: LogitRules::new(task.options, &end_ids),
            end_ids,
            limit: task.options.max_tokens_after(task.ids.len()).min(session.context_length() - task.ids.len()),
            stream: Some(task.tokenizer.stream(true)),
            stops: StopMatcher::new(&task.options.stop),
            text: String::new(),
            token_ids: Vec::new(),
            waiting: Vec::new(),
        }
    }

    /// One sequence: greedy or sampling.
    fn decode(
        &mut self,
        session: &mut dyn Session,
        sequence: SequenceId,
        mut logits: Vec<f32>,
        emit: &mut Emit<'_>,
    ) -> Result<Outcome> {
        let mut sampler = Sampler::new(self.task.options, self.task.seed);
        let mut first_token = None;
        let (detail, stop_string) = loop {
            self.rules.apply(&mut logits, History { prompt: self.task.ids, generated: &self.token_ids });
            let tokens = self.task.ids.len() + self.token_ids.len();
            let token = sampler.choose(&logits).ok_or(Error::NotFinite { tokens })?;
            first_token.get_or_insert_with(Instant::now);
            if let Some(end) = self.write(token, emit)? {
                break end;
            }
            if self.task.cancel.is_cancelled() {
                break (FinishDetail::Cancelled, None);
            }
            logits = session.decode(&[(sequence, token)]);
        };
        self.finish(stop_string.is_none(), emit)?;
        Ok(self.outcome(detail, stop_string, first_token))
    }

    /// Several beams; the text is only known at the end.
    fn search(
        &mut self,
        session: &mut dyn Session,
        sequence: SequenceId,
        logits: Vec<f32>,
        emit: &mut Emit<'_>,
    ) -> Result<Outcome> {
        let first_token = Some(Instant::now());
        let task = self.task;
        let ends_in_stop = |token_ids: &[u32]| {
            let text = || task.tokenizer.decode(token_ids, true).unwrap_or_default();
            !task.options.stop.is_empty() && StopMatcher::new(&task.options.stop).completes(&text())
        };
        let rules = (&self.rules as &dyn TokenRules, &self.end_ids[..]);
        let search = BeamSearch::new(task.options, self.limit, task.ids, rules, &ends_in_stop, task.cancel);
        let best = search.run(session, sequence, logits)?;
        let mut end = None;
        for token in best.tokens {
            end = self.write(token, emit)?;
        }
        let (detail, stop_string) = match end {
            _ if best.cancelled => (FinishDetail::Cancelled, None),
            Some(end) => end,
            None => (self.out_of_room(), None),
        };
        self.finish(stop_string.is_none(), emit)?;
        Ok(Outcome { score: Some(best.score), ..self.outcome(detail, stop_string, first_token) })
    }

    /// Takes the next token; says why the answer ends, if it does.
    fn write(&mut self, token: u32, emit: &mut Emit<'_>) -> Result<Option<(FinishDetail, Option<String>)>> {
        self.token_ids.push(token);
        self.waiting.push(token);
        if self.task.end_ids.contains(&token) {
            return Ok(Some((FinishDetail::EndOfText, None)));
        }
        if self.end_ids.contains(&token) {
            return Ok(Some((FinishDetail::StopString, self.task.tokenizer.id_to_token(token))));
        }
        let piece = self.stream.as_mut().map(|stream| stream.push(token)).transpose()?.flatten();
        if let Some(stop) = self.give_out(&piece.unwrap_or_default(), emit) {
            return Ok(Some((FinishDetail::StopString, Some(stop))));
        }
        Ok((self.token_ids.len() >= self.limit).then(|| (self.out_of_room(), None)))
    }

    /// Gives out the rest; without it where a stop string has cut it off.
    fn finish(&mut self, with_rest: bool, emit: &mut Emit<'_>) -> Result<()> {
        let rest = self.stream.take().map(TokenStream::finish).transpose()?.unwrap_or_default();
        if with_rest {
            // Half a character is all that can be left: it completes no stop string.
            self.give_out(&rest, emit);
            let held = self.stops.finish();
            self.emit(held, emit);
        }
        if !self.waiting.is_empty() {
            emit(String::new(), std::mem::take(&mut self.waiting));
        }
        Ok(())
    }

    /// Passes text on as far as it is certain; returns the stop string that it ran into.
    fn give_out(&mut self, piece: &str, emit: &mut Emit<'_>) -> Option<String> {
        match self.stops.push(piece) {
            Stopped::No(text) => {
                self.emit(text, emit);
                None
            }
            Stopped::Yes { text, stop } => {
                self.emit(text, emit);
                Some(stop)
            }
        }
    }

    fn emit(&mut self, text: String, emit: &mut Emit<'_>) {
        if !text.is_empty() {
            self.text += &text;
            emit(text, std::mem::take(&mut self.waiting));
        }
    }

    fn out_of_room(&self) -> FinishDetail {
        let asked = self.task.options.max_tokens_after(self.task.ids.len());
        if self.limit < asked { FinishDetail::ContextFull } else { FinishDetail::MaxTokens }
    }

    fn outcome(&mut self, detail: FinishDetail, stop_string: Option<String>, first_token: Option<Instant>) -> Outcome {
        Outcome {
            text: std::mem::take(&mut self.text),
            token_ids: std::mem::take(&mut self.token_ids),
            detail,
            stop_string,
            score: None,
            prefill: Duration::ZERO,
            decode: Duration::ZERO,
            first_token,
        }
    }
}

/// The id of a stop string that is a special token.
fn special_id(tokenizer: &Tokenizer, stop: &str) -> Option<u32> {
    tokenizer.token_to_id(stop).filter(|&id| tokenizer.is_special(id))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ocelli_formats::ModelFiles;
    use serde::Deserialize;

    use super::*;
    use crate::{EngineOptions, LoadedModel};

    #[derive(Deserialize)]
    struct Reference {
        cases: Vec<Case>,
    }

    #[derive(Debug, Deserialize)]
    struct Case {
        family: String,
        prompt: Vec<u32>,
        end_ids: Vec<u32>,
        options: GenerateOptions,
        ids: Vec<u32>,
        score: Option<f32>,
    }

    /// `tests/tools/make_beam_cases.py` asked transformers.
    #[test]
    fn searches_are_those_of_transformers() {
        let reference: Reference = serde_json::from_str(include_str!("../tests/data/beam_cases.json")).unwrap();
        let mut wrong = Vec::new();
        for family in ["llama3", "qwen2"] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(family);
            let files = ModelFiles::open(folder).unwrap();
            let mut model = LoadedModel::load(&files, &EngineOptions::new()).unwrap();
            for case in reference.cases.iter().filter(|case| case.family == family) {
                case.options.validate().unwrap();
                let task = Task {
                    ids: &case.prompt,
                    images: &[],
                    options: &case.options,
                    seed: 0,
                    end_ids: &case.end_ids,
                    tokenizer: model.processor.tokenizer(),
                    cancel: &Cancel::new(),
                };
                let outcome = generate(model.session.as_mut(), &task, &mut |_, _| ()).unwrap();
                assert!(model.session.is_empty(), "a sequence was left behind");
                let close = |(a, b): (f32, f32)| (a - b).abs() < 1e-3;
                if outcome.token_ids != case.ids || !outcome.score.zip(case.score).is_none_or(close) {
                    wrong.push(format!("{:?} with score {:?} instead of {case:?}", outcome.token_ids, outcome.score));
                }
            }
        }
        assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), reference.cases.len(), wrong.join("\n"));
    }
}
