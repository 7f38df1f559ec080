//! Beam search, token for token that of transformers 5 (`_beam_search`, rewritten there in 2025), for one prompt.
//!
//! Every step ranks all continuations of all running beams by the sum of their log-probabilities and looks at the
//! best `K = max(2, 1 + end tokens) × num_beams` of them. Those that end (end token, stop string, length) are finished,
//! if they are among the first `num_beams`; the best `num_beams` of the others run on. Finished ones are ranked by
//! `sum / length ^ length_penalty`, the end token counting, and only the best `num_beams` are kept.
//!
//! The search ends when nothing runs on, when `early_stopping` is true and `num_beams` have finished, or when the best
//! running beam could not beat the worst of `num_beams` finished ones: at its present length, or, with "never" and a
//! positive `length_penalty`, at the longest it could become.
//!
//! Running beams share the cache of their common past: continuing a beam twice forks its sequence.

use ocelli_backend::{Cancel, SequenceId};

use crate::error::{Error, Result};
use crate::generate::logits::{Largest, log_softmax};
use crate::generate::rules::{History, TokenRules};
use crate::options::{EarlyStopping, GenerateOptions};
use crate::session::Session;

/// What a search needs to know beside the logits.
pub(crate) struct BeamSearch<'a> {
    pub(crate) prompt: &'a [u32],
    pub(crate) rules: &'a dyn TokenRules,
    pub(crate) end_ids: &'a [u32],
    /// Most tokens of an answer.
    pub(crate) limit: usize,
    pub(crate) num_beams: usize,
    pub(crate) length_penalty: f32,
    pub(crate) early_stopping: EarlyStopping,
    /// Whether an answer's text ends in a stop string.
    pub(crate) ends_in_stop: &'a dyn Fn(&[u32]) -> bool,
    pub(crate) cancel: &'a Cancel,
}

/// The best answer of a search.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct BestBeam {
    pub(crate) tokens: Vec<u32>,
    /// Sum of log-probabilities over length ^ `length_penalty`.
    pub(crate) score: f32,
    pub(crate) cancelled: bool,
}

#[derive(Debug)]
struct Beam {
    sequence: SequenceId,
    tokens: Vec<u32>,
    /// Sum of log-probabilities.
    log_prob: f32,
}

/// A continuation: which beam by which token.
#[derive(Clone, Copy, Debug)]
struct Continuation {
    beam_idx: usize,
    token: u32,
    log_prob: f32,
}

#[derive(Clone, Debug)]
struct Finished {
    tokens: Vec<u32>,
    score: f32,
}

impl<'a> BeamSearch<'a> {
    pub(crate) fn new(
        options: &GenerateOptions,
        limit: usize,
        prompt: &'a [u32],
        (rules, end_ids): (&'a dyn TokenRules, &'a [u32]),
        ends_in_stop: &'a dyn Fn(&[u32]) -> bool,
        cancel: &'a Cancel,
    ) -> Self {
        let &GenerateOptions { num_beams, length_penalty, early_stopping, .. } = options;
        Self { prompt, rules, end_ids, limit, num_beams, length_penalty, early_stopping, ends_in_stop, cancel }
    }

    /// Searches from a prefilled sequence, which is ended, and the logits of the prompt's last token.
    ///
    /// # Errors
    /// [`Error::NotFinite`].
    pub(crate) fn run(&self, session: &mut dyn Session, sequence: SequenceId, logits: Vec<f32>) -> Result<BestBeam> {
        let mut running = vec![Beam { sequence, tokens: Vec::new(), log_prob: 0.0 }];
        let mut finished: Vec<Finished> = Vec::new();
        let searched = self.search(session, logits, &mut running, &mut finished);
        let best_running = running
            .first()
            .map(|beam| Finished { tokens: beam.tokens.clone(), score: self.score(beam.log_prob, beam.tokens.len()) });
        for beam in running {
            session.end(beam.sequence);
        }
        let cancelled = searched?;
        let best = finished.into_iter().next().or(best_running);
        let best = best.unwrap_or(Finished { tokens: Vec::new(), score: 0.0 });
        Ok(BestBeam { tokens: best.tokens, score: best.score, cancelled })
    }

    /// Returns whether it was cancelled.
    fn search(
        &self,
        session: &mut dyn Session,
        mut logits: Vec<f32>,
        running: &mut Vec<Beam>,
        finished: &mut Vec<Finished>,
    ) -> Result<bool> {
        for length in 1..=self.limit {
            let continuations = self.continuations(logits, running)?;
            let ends: Vec<bool> = continuations.iter().map(|next| self.ends(*next, running, length)).collect();
            let best = continuations.iter().zip(&ends).take(self.num_beams);
            for (next, _) in best.filter(|(_, ends)| **ends) {
                finished.push(Finished { tokens: next.tokens(running), score: self.score(next.log_prob, length) });
            }
            // A stable sort: of equal scores the earlier answer stays.
            finished.sort_by(|a, b| b.score.total_cmp(&a.score));
            finished.truncate(self.num_beams);
            let survivors = continuations.iter().zip(&ends).filter(|(_, ends)| !**ends).map(|(next, _)| *next);
            let survivors: Vec<Continuation> = survivors.take(self.num_beams).collect();
            if survivors.is_empty() || self.is_decided(finished, survivors[0].log_prob, length) {
                return Ok(false);
            }
            advance(session, running, &survivors);
            if self.cancel.is_cancelled() {
                return Ok(true);
            }
            let next: Vec<(SequenceId, u32)> =
                running.iter().zip(&survivors).map(|(beam, next)| (beam.sequence, next.token)).collect();
            logits = session.decode(&next);
        }
        Ok(false)
    }

    /// The best continuations of all running beams, best first.
    fn continuations(&self, mut logits: Vec<f32>, running: &[Beam]) -> Result<Vec<Continuation>> {
        let vocab_size = logits.len() / running.len();
        let mut largest = Largest::new(self.num_beams * (1 + self.end_ids.len()).max(2));
        for (beam_idx, (row, beam)) in logits.chunks_exact_mut(vocab_size).zip(running).enumerate() {
            if !log_softmax(row) {
                return Err(Error::NotFinite { tokens: self.prompt.len() + beam.tokens.len() });
            }
            self.rules.apply(row, History { prompt: self.prompt, generated: &beam.tokens });
            for (idx, &log_prob) in row.iter().enumerate() {
                largest.offer(beam_idx * vocab_size + idx, log_prob + beam.log_prob);
            }
        }
        let continuation = |idx: usize, log_prob| {
            let token = u32::try_from(idx % vocab_size).expect("a vocabulary is smaller than 2^32");
            Continuation { beam_idx: idx / vocab_size, token, log_prob }
        };
        Ok(largest.into_sorted().iter().map(|scored| continuation(scored.idx, scored.value)).collect())
    }

    fn ends(&self, next: Continuation, running: &[Beam], length: usize) -> bool {
        length == self.limit || self.end_ids.contains(&next.token) || (self.ends_in_stop)(&next.tokens(running))
    }

    fn score(&self, log_prob: f32, length: usize) -> f32 {
        log_prob / self.length_factor(length.max(1))
    }

    fn length_factor(&self, length: usize) -> f32 {
        (length as f64).powf(f64::from(self.length_penalty)) as f32
    }

    /// Whether the answers that are finished cannot be improved any more.
    fn is_decided(&self, finished: &[Finished], best_running: f32, length: usize) -> bool {
        if finished.len() < self.num_beams {
            return false;
        }
        let longest = match self.early_stopping {
            EarlyStopping::True => return true,
            EarlyStopping::Never if self.length_penalty > 0.0 => self.limit,
            EarlyStopping::Never | EarlyStopping::False => length,
        };
        let best_possible = best_running / self.length_factor(longest);
        let worst_finished = finished[finished.len() - 1].score;
        best_possible <= worst_finished
    }
}

impl Continuation {
    fn tokens(self, running: &[Beam]) -> Vec<u32> {
        let mut tokens = running[self.beam_idx].tokens.clone();
        tokens.push(self.token);
        tokens
    }
}

/// Makes the survivors the running beams: a beam that goes on once keeps its sequence, every further continuation of
/// it forks, and beams without one end.
fn advance(session: &mut dyn Session, running: &mut Vec<Beam>, survivors: &[Continuation]) {
    let mut claimed = vec![false; running.len()];
    let mut sequence_of = |beam_idx: usize| {
        let sequence = running[beam_idx].sequence;
        if std::mem::replace(&mut claimed[beam_idx], true) { session.fork(sequence) } else { sequence }
    };
    let next: Vec<Beam> = survivors
        .iter()
        .map(|next| Beam {
            sequence: sequence_of(next.beam_idx),
            tokens: next.tokens(running),
            log_prob: next.log_prob,
        })
        .collect();
    for (beam, claimed) in running.iter().zip(claimed) {
        if !claimed {
            session.end(beam.sequence);
        }
    }
    *running = next;
}
