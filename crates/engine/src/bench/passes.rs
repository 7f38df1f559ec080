//! One run: an answer, stage by stage, and what it is with several beams or several sequences at once.

use std::time::Instant;

use ocelli_backend::{Cancel, SequenceId};

use super::report::Run;
use super::subject::Subject;
use super::{BenchOptions, NARRATION_TOKENS};
use crate::error::{Error, Result};
use crate::generate::argmax;
use crate::generate::beam::BeamSearch;
use crate::generate::rules::LogitRules;
use crate::options::GenerateOptions;
use crate::session::{ImageFeatures, LogitRows, Prefill, Session};

/// One answer. The beams and the batch begin at the same prompt.
pub(super) fn measure(subject: &mut Subject, ids: &[u32], options: &BenchOptions) -> Result<Run> {
    let cancel = Cancel::new();
    let start = Instant::now();
    let (image, mel) = (subject.prepare()?, subject.hear());
    let shows = image.is_some() || mel.is_some();
    let preprocess_ms = shows.then(|| milliseconds(start));

    let vision_start = Instant::now();
    let session = subject.session.as_mut();
    let seen = image.iter().map(|image| session.encode_image(image, &cancel));
    let heard = mel.iter().map(|mel| session.encode_audio(mel, &cancel));
    let features: Vec<_> = seen.chain(heard).collect::<Result<_>>()?;
    let vision_ms = shows.then(|| milliseconds(vision_start));
    drop((image, mel));

    let prefill_start = Instant::now();
    let (sequence, logits) = prefill(session, ids, &features)?;
    let mut tokens = vec![likeliest(&logits, ids.len())?];
    let prefill_ms = milliseconds(prefill_start);
    let ttft_ms = milliseconds(start);

    // Forking copies nothing yet.
    let searched = (options.beams > 1 && options.max_tokens > 1).then(|| session.fork(sequence));
    let mut narration_ms = None;
    let decode_start = Instant::now();
    while tokens.len() < options.max_tokens {
        let logits = session.decode(&[(sequence, tokens[tokens.len() - 1])]);
        tokens.push(likeliest(&logits, ids.len() + tokens.len())?);
        if tokens.len() == NARRATION_TOKENS && !features.is_empty() {
            narration_ms = Some(milliseconds(start));
        }
    }
    let decode_ms = (tokens.len() > 1).then(|| milliseconds(decode_start));
    session.end(sequence);
    let per_second = |tokens: usize, milliseconds: f64| tokens as f64 / milliseconds * 1e3;
    let beam_ms = searched.map(|sequence| search(session, (sequence, logits), ids, options)).transpose()?;
    let batch_ms = (options.batch > 1 && options.max_tokens > 1)
        .then(|| decode_together(session, ids, &features, (options.batch, &tokens)))
        .transpose()?;
    Ok(Run {
        preprocess_ms,
        vision_ms,
        prefill_ms,
        prefill_tokens_per_second: per_second(ids.len(), prefill_ms),
        ttft_ms,
        decode_ms,
        tokens_per_second: decode_ms.map(|spent| per_second(tokens.len() - 1, spent)),
        narration_ms,
        // As of the other answers, the first token comes out of the prefill.
        beam_tokens_per_second: beam_ms.map(|spent| per_second(options.max_tokens - 1, spent)),
        batch_tokens_per_second: batch_ms.map(|spent| per_second(options.batch * (tokens.len() - 1), spent)),
        output_hash: hash(&tokens),
    })
}

/// A new sequence with the prompt, and the logits after it.
fn prefill(session: &mut dyn Session, ids: &[u32], images: &[ImageFeatures]) -> Result<(SequenceId, Vec<f32>)> {
    let sequence = session.start();
    let cancel = Cancel::new();
    let logits = session.prefill(sequence, Prefill { ids, images, rows: LogitRows::Last, cancel: &cancel })?;
    Ok((sequence, logits))
}

/// Milliseconds of a beam search of `max_tokens` from a prefilled sequence.
fn search(
    session: &mut dyn Session,
    (sequence, logits): (SequenceId, Vec<f32>),
    ids: &[u32],
    options: &BenchOptions,
) -> Result<f64> {
    let beams = GenerateOptions { num_beams: options.beams, ..GenerateOptions::greedy() };
    let rules = LogitRules::new(&beams, &[]);
    let cancel = Cancel::new();
    let search = BeamSearch::new(&beams, options.max_tokens, ids, (&rules, &[]), &|_| false, &cancel);
    let start = Instant::now();
    search.run(session, sequence, logits)?;
    Ok(milliseconds(start))
}

/// Milliseconds of decoding the same answer in several sequences at once, each with keys and values of its own.
///
/// # Errors
/// [`Error::BatchDiffers`] when one of them is not `alone`.
fn decode_together(
    session: &mut dyn Session,
    ids: &[u32],
    images: &[ImageFeatures],
    (batch, alone): (usize, &[u32]),
) -> Result<f64> {
    let mut next = Vec::new();
    for _ in 0..batch {
        let (sequence, logits) = prefill(session, ids, images)?;
        next.push((sequence, likeliest(&logits, ids.len())?));
    }
    let mut answers: Vec<Vec<u32>> = next.iter().map(|(_, token)| vec![*token]).collect();
    let start = Instant::now();
    for length in 1..alone.len() {
        let logits = session.decode(&next);
        let rows = logits.chunks_exact(logits.len() / batch);
        for (((_, token), answer), row) in next.iter_mut().zip(&mut answers).zip(rows) {
            *token = likeliest(row, ids.len() + length)?;
            answer.push(*token);
        }
    }
    let spent = milliseconds(start);
    next.iter().for_each(|(sequence, _)| session.end(*sequence));
    match answers.iter().position(|answer| answer != alone) {
        Some(idx) => {
            let (expected, got) = (hash(alone), hash(&answers[idx]));
            Err(Error::BatchDiffers { sequence: idx + 1, batch, expected, got })
        }
        None => Ok(spent),
    }
}

/// Whether a run's tokens are those of the first one.
///
/// # Errors
/// [`Error::Unrepeatable`].
pub(super) fn repeats(first: Option<&Run>, run: &Run, number: usize) -> Result<()> {
    match first {
        Some(first) if first.output_hash != run.output_hash => {
            let (expected, got) = (first.output_hash.clone(), run.output_hash.clone());
            Err(Error::Unrepeatable { run: number, expected, got })
        }
        _ => Ok(()),
    }
}

fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

fn likeliest(logits: &[f32], tokens: usize) -> Result<u32> {
    argmax(logits).map(|id| id as u32).ok_or(Error::NotFinite { tokens })
}

/// FNV-1a over the ids, in hexadecimal: to see whether two answers are the same.
fn hash(tokens: &[u32]) -> String {
    let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = tokens.iter().flat_map(|id| id.to_le_bytes()).fold(0xcbf2_9ce4_8422_2325, mix);
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_tell_answers_apart() {
        assert_eq!(hash(&[1, 2]), hash(&[1, 2]));
        assert_ne!(hash(&[1, 2]), hash(&[2, 1]));
        assert_eq!(hash(&[]).len(), 16);
    }

    #[test]
    fn a_run_with_other_tokens_is_found() {
        let run = |hash: &str| Run { output_hash: hash.to_owned(), ..Run::default() };
        repeats(None, &run("a"), 1).unwrap();
        repeats(Some(&run("a")), &run("a"), 2).unwrap();
        let error = repeats(Some(&run("a")), &run("b"), 3).unwrap_err();
        assert!(matches!(error, Error::Unrepeatable { run: 3, .. }), "{error}");
    }
}
