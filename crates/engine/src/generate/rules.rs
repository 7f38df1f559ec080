//! What changes logits before a token is chosen, whatever way it is chosen: penalties and bans.
//!
//! The order is that of transformers (`_get_logits_processor`): repetition penalty, n-gram ban, minimum length; the
//! presence and frequency penalties of the OpenAI API, which transformers lacks, follow the repetition penalty.

use crate::options::GenerateOptions;

/// Changes the logits (or log-probabilities) of the next token.
pub(crate) trait TokenRules {
    /// `logits` are those of what follows `history`.
    fn apply(&self, logits: &mut [f32], history: History<'_>);
}

/// The rules of one request.
#[derive(Clone, Debug)]
pub(crate) struct LogitRules {
    repetition_penalty: f32,
    presence_penalty: f32,
    frequency_penalty: f32,
    no_repeat_ngram_size: usize,
    min_tokens: usize,
    end_ids: Vec<u32>,
}

/// A sequence so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct History<'a> {
    pub(crate) prompt: &'a [u32],
    pub(crate) generated: &'a [u32],
}

impl LogitRules {
    pub(crate) fn new(options: &GenerateOptions, end_ids: &[u32]) -> Self {
        Self {
            repetition_penalty: options.repetition_penalty.unwrap_or(1.0),
            presence_penalty: options.presence_penalty.unwrap_or(0.0),
            frequency_penalty: options.frequency_penalty.unwrap_or(0.0),
            no_repeat_ngram_size: options.no_repeat_ngram_size.unwrap_or(0),
            min_tokens: options.min_tokens,
            end_ids: end_ids.to_vec(),
        }
    }

    fn penalise_repetition(&self, logits: &mut [f32], history: History<'_>) {
        let mut seen: Vec<u32> = history.iter().collect();
        seen.sort_unstable();
        seen.dedup();
        for id in seen {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = if *logit < 0.0 { *logit * self.repetition_penalty } else { *logit / self.repetition_penalty };
            }
        }
    }

    fn penalise_presence(&self, logits: &mut [f32], generated: &[u32]) {
        let mut seen = generated.to_vec();
        seen.sort_unstable();
        for same in seen.chunk_by(|a, b| a == b) {
            if let Some(logit) = logits.get_mut(same[0] as usize) {
                *logit -= self.presence_penalty + self.frequency_penalty * same.len() as f32;
            }
        }
    }

    /// Bans every token that followed an earlier occurrence of the last `n - 1` tokens.
    fn ban_repeated_ngrams(&self, logits: &mut [f32], history: History<'_>) {
        let n = self.no_repeat_ngram_size;
        let Some(tail) = (history.len() + 1).checked_sub(n) else { return };
        for start in 0..tail {
            if (0..n - 1).all(|idx| history.at(start + idx) == history.at(tail + idx)) {
                ban(logits, history.at(start + n - 1));
            }
        }
    }
}

impl TokenRules for LogitRules {
    fn apply(&self, logits: &mut [f32], history: History<'_>) {
        if self.repetition_penalty != 1.0 {
            self.penalise_repetition(logits, history);
        }
        if self.presence_penalty != 0.0 || self.frequency_penalty != 0.0 {
            self.penalise_presence(logits, history.generated);
        }
        if self.no_repeat_ngram_size > 0 {
            self.ban_repeated_ngrams(logits, history);
        }
        if history.generated.len() < self.min_tokens {
            for &id in &self.end_ids {
                ban(logits, id);
            }
        }
    }
}

impl<'a> History<'a> {
    fn len(&self) -> usize {
        self.prompt.len() + self.generated.len()
    }

    fn at(&self, idx: usize) -> u32 {
        if idx < self.prompt.len() { self.prompt[idx] } else { self.generated[idx - self.prompt.len()] }
    }

    fn iter(self) -> impl Iterator<Item = u32> + 'a {
        self.prompt.iter().chain(self.generated).copied()
    }
}

/// Makes a token impossible.
pub(crate) fn ban(logits: &mut [f32], id: u32) {
    if let Some(logit) = logits.get_mut(id as usize) {
        *logit = f32::NEG_INFINITY;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEG: f32 = f32::NEG_INFINITY;

    fn apply(options: &GenerateOptions, prompt: &[u32], generated: &[u32]) -> Vec<f32> {
        let mut logits = vec![2.0, -2.0, 2.0, -2.0];
        LogitRules::new(options, &[3]).apply(&mut logits, History { prompt, generated });
        logits
    }

    #[test]
    fn repetition_counts_prompt_and_answer_once() {
        let options = GenerateOptions { repetition_penalty: Some(2.0), ..GenerateOptions::greedy() };
        assert_eq!(apply(&options, &[0, 0, 1], &[0]), [1.0, -4.0, 2.0, -2.0]);
    }

    #[test]
    fn presence_and_frequency_count_the_answer_only() {
        let options =
            GenerateOptions { presence_penalty: Some(0.5), frequency_penalty: Some(0.25), ..GenerateOptions::greedy() };
        assert_eq!(apply(&options, &[1, 1], &[0, 2, 0]), [1.0, -2.0, 1.25, -2.0]);
    }

    #[test]
    fn ngrams_come_once() {
        let bigrams = GenerateOptions { no_repeat_ngram_size: Some(2), ..GenerateOptions::greedy() };
        assert_eq!(apply(&bigrams, &[0, 1, 0], &[2, 0]), [2.0, NEG, NEG, -2.0]);
        assert_eq!(apply(&bigrams, &[], &[]), [2.0, -2.0, 2.0, -2.0]);
        let unigrams = GenerateOptions { no_repeat_ngram_size: Some(1), ..GenerateOptions::greedy() };
        assert_eq!(apply(&unigrams, &[0], &[3]), [NEG, -2.0, 2.0, NEG]);
        let trigrams = GenerateOptions { no_repeat_ngram_size: Some(3), ..GenerateOptions::greedy() };
        assert_eq!(apply(&trigrams, &[0], &[0]), [2.0, -2.0, 2.0, -2.0]);
        assert_eq!(apply(&trigrams, &[0, 1, 2], &[0, 1]), [2.0, -2.0, NEG, -2.0]);
    }

    #[test]
    fn the_end_waits_for_the_minimum() {
        let options = GenerateOptions { min_tokens: 2, ..GenerateOptions::greedy() };
        assert_eq!(apply(&options, &[3, 3], &[0]), [2.0, -2.0, 2.0, NEG]);
        assert_eq!(apply(&options, &[], &[0, 0]), [2.0, -2.0, 2.0, -2.0]);
    }
}
