//! What the next token of a transcript may be (transformers `WhisperTimeStampLogitsProcessor` and the suppressed
//! tokens): text comes between two timestamps that do not run backwards.

use crate::generate::logits::{argmax, sum_of_exponentials};
use crate::generate::rules::{History, TokenRules, ban};
use crate::speech::tokens::SpeechTokens;

/// The rules of a transcript.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SpeechRules<'a> {
    pub(crate) tokens: &'a SpeechTokens,
}

impl TokenRules for SpeechRules<'_> {
    fn apply(&self, logits: &mut [f32], history: History<'_>) {
        let tokens = self.tokens;
        let generated = history.generated;
        if generated.is_empty() {
            tokens.suppressed_at_begin.iter().for_each(|&id| ban(logits, id));
        }
        tokens.suppressed.iter().for_each(|&id| ban(logits, id));
        ban(logits, tokens.no_timestamps);
        let (vocabulary, first) = (logits.len(), (tokens.first_timestamp as usize).min(logits.len()));
        let mut ban_all = |range: std::ops::Range<usize>| {
            let end = range.end.min(vocabulary);
            logits[range.start.min(end)..end].fill(f32::NEG_INFINITY);
        };
        let is_timestamp = |back: usize| generated.iter().rev().nth(back).map(|&id| tokens.is_timestamp(id));
        match (is_timestamp(0), is_timestamp(1)) {
            // What ends one segment begins the next; then text must follow.
            (Some(true), None | Some(true)) => ban_all(first..vocabulary),
            (Some(true), Some(false)) => ban_all(0..tokens.end as usize),
            _ => {}
        }
        if let Some(&last) = generated.iter().rev().find(|&&id| tokens.is_timestamp(id)) {
            // A segment may begin where the one before it ended, but not end where it began.
            let is_end = (is_timestamp(0), is_timestamp(1)) == (Some(true), Some(false));
            ban_all(first..last as usize + usize::from(!is_end));
        }
        if generated.is_empty() {
            ban_all(0..first);
            if let Some(most) = tokens.max_initial_timestamp {
                ban_all(first + most as usize + 1..vocabulary);
            }
        }
        if timestamps_outweigh(logits, first) {
            logits[..first].fill(f32::NEG_INFINITY);
        }
    }
}

/// Whether all timestamps together are likelier than the likeliest other token.
fn timestamps_outweigh(logits: &[f32], first: usize) -> bool {
    let (others, timestamps) = logits.split_at(first);
    let Some(best) = argmax(timestamps) else { return false };
    let Some(other) = argmax(others) else { return true };
    let max = timestamps[best];
    f64::from(max) + sum_of_exponentials(timestamps, max, 1.0).ln() > f64::from(others[other])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 0..4 text, 4 end, 5 start, 6 transcribe, 7 no timestamps, 8.. timestamps.
    fn tokens() -> SpeechTokens {
        let folder = tempfile::tempdir().unwrap();
        let special = ["endoftext", "startoftranscript", "transcribe", "notimestamps"];
        let added: Vec<String> = (4..).zip(special).map(|(id, name)| added(id, name)).collect();
        let json = format!(
            r#"{{"version":"1.0","added_tokens":[{}],"model":{{"type":"BPE","vocab":{{"a":0,"b":1,"c":2,"d":3}},"merges":[]}}}}"#,
            added.join(",")
        );
        std::fs::write(folder.path().join("config.json"), "{}").unwrap();
        std::fs::write(folder.path().join("tokenizer.json"), json).unwrap();
        let settings = r#"{"suppress_tokens":[3],"begin_suppress_tokens":[4],"max_initial_timestamp_index":1}"#;
        std::fs::write(folder.path().join("generation_config.json"), settings).unwrap();
        let files = ocelli_formats::ModelFiles::open(folder.path()).unwrap();
        SpeechTokens::read(&files, &ocelli_processors::Tokenizer::load(&files).unwrap()).unwrap()
    }

    fn added(id: u32, name: &str) -> String {
        format!(
            r#"{{"id":{id},"content":"<|{name}|>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}}"#
        )
    }

    /// Which of 12 tokens may follow, where all are as likely but for the first text token.
    fn allowed(generated: &[u32], text: f32) -> Vec<usize> {
        let mut logits = vec![0.0; 12];
        logits[0] = text;
        let tokens = tokens();
        SpeechRules { tokens: &tokens }.apply(&mut logits, History { prompt: &[5], generated });
        (0..12).filter(|&id| logits[id].is_finite()).collect()
    }

    #[test]
    fn a_transcript_begins_with_an_early_timestamp() {
        assert_eq!(allowed(&[], 9.0), [8, 9]);
    }

    #[test]
    fn text_follows_a_pair_of_timestamps() {
        assert_eq!(allowed(&[8], 0.0), [0, 1, 2, 4, 5, 6]);
        assert_eq!(allowed(&[8, 1, 9, 9], 0.0), [0, 1, 2, 4, 5, 6]);
    }

    #[test]
    fn an_end_is_followed_by_the_next_beginning_or_by_nothing() {
        assert_eq!(allowed(&[8, 1, 9], -9.0), [9, 10, 11]);
        let tokens = tokens();
        let mut logits = vec![0.0; 12];
        logits[4] = 9.0;
        SpeechRules { tokens: &tokens }.apply(&mut logits, History { prompt: &[5], generated: &[8, 1, 9] });
        assert_eq!((0..12).filter(|&id| logits[id].is_finite()).collect::<Vec<_>>(), [4, 5, 6, 9, 10, 11]);
    }

    #[test]
    fn time_does_not_run_backwards() {
        assert_eq!(allowed(&[9, 1], 9.0), [0, 1, 2, 4, 5, 6, 10, 11]);
    }

    #[test]
    fn timestamps_win_when_they_do_together() {
        assert_eq!(allowed(&[8, 1], 1.0), [9, 10, 11]);
        assert_eq!(allowed(&[8, 1], 2.0), [0, 1, 2, 4, 5, 6, 9, 10, 11]);
    }
}
