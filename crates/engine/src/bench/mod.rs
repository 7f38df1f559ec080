//! How fast a model runs on this machine: every stage of an answer, several times, next to what the machine could do.
//!
//! A run prepares a picture, runs the vision tower, prefills and decodes greedily, straight on a [`crate::Session`]:
//! below every cache, so each run computes everything, and the same picture serves all runs. Their tokens must therefore
//! be the same. The prompt is the picture's tokens followed by text tokens drawn at random; end tokens end nothing.

mod cost;
mod machine;
mod noise;
mod published;
mod report;
mod subject;

use std::time::Instant;

use ocelli_backend::Cancel;
use ocelli_formats::ModelFiles;
use ocelli_processors::Detail;

pub use machine::{Load, Machine, measure_machine};
pub use published::PUBLISHED;
pub use report::{FIGURES, Figure, Memory, Report, Run, Spread, Utilisation};

use crate::error::{Error, Result};
use crate::generate::argmax;
use crate::memory::MemoryBudget;
use crate::options::EngineOptions;
use crate::session::{LogitRows, Prefill};
use machine::Clock;
use subject::Subject;

/// What is measured, and how often.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// How the model is loaded.
    pub engine: EngineOptions,
    /// The picture of every run.
    pub picture: Picture,
    /// How closely to look at it.
    pub detail: Detail,
    /// Tokens of the prompt besides those of the picture; at least 1.
    pub prompt_tokens: usize,
    /// Tokens of every answer; at least 1.
    pub max_tokens: usize,
    /// Runs that count; at least 1.
    pub runs: usize,
    /// Runs before them that do not.
    pub warmup: usize,
    /// Whether the machine's limits are measured, too (after the runs).
    pub machine: bool,
}

/// Which model is measured.
#[derive(Clone, Copy, Debug)]
pub enum BenchModel<'a> {
    /// A model's files.
    Files(&'a ModelFiles),
    /// A published model by its name in [`PUBLISHED`], with random weights.
    Random(&'a str),
}

/// The picture of a run: noise, which no shortcut could make easier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Picture {
    /// 512 x 512 for a model's files, one tile for random weights, none for text models.
    Auto,
    /// None.
    None,
    /// Width and height in pixels.
    Size(usize, usize),
}

/// Measures a model. `progress` hears how many runs are done, and of how many.
///
/// # Errors
/// Whatever keeps the model from loading or answering; [`Error::PromptTooLong`] and [`Error::OutOfMemory`] before
/// anything runs; [`Error::Unrepeatable`] when two runs give different tokens.
pub fn run(model: BenchModel<'_>, options: &BenchOptions, progress: &mut dyn FnMut(usize, usize)) -> Result<Report> {
    for (name, value) in [("prompt_tokens", options.prompt_tokens), ("max_tokens", options.max_tokens)] {
        at_least_one(name, value)?;
    }
    at_least_one("runs", options.runs)?;
    let before = Load::average();
    let mut subject = Subject::load(model, options)?;
    let ids = subject.prompt(options.prompt_tokens);
    check_room(&subject, options, ids.len())?;
    let mut runs: Vec<Run> = Vec::new();
    let mut clock = Clock::start();
    for idx in 0..options.warmup + options.runs {
        progress(idx, options.warmup + options.runs);
        if idx == options.warmup {
            clock = Clock::start();
        }
        let run = measure(&mut subject, &ids, options.max_tokens)?;
        if let Some(first) = runs.first().filter(|first| first.output_hash != run.output_hash) {
            return Err(Error::Unrepeatable {
                run: idx + 1,
                expected: first.output_hash.clone(),
                got: run.output_hash,
            });
        }
        runs.push(run);
    }
    progress(options.warmup + options.runs, options.warmup + options.runs);
    let load = clock.stop(before, subject.threads);
    let runs = runs.split_off(options.warmup);
    // The peak of memory is read first: measuring the machine takes memory of its own.
    let report = Report::new(&subject, options, ids.len(), runs, load);
    if options.machine {
        let machine = measure_machine(&options.engine)?;
        return Ok(report.with_machine(machine));
    }
    Ok(report)
}

fn at_least_one(name: &'static str, value: usize) -> Result<()> {
    if value == 0 {
        return Err(Error::InvalidOption { name, value: "0".to_owned(), expected: "at least 1" });
    }
    Ok(())
}

/// Everything that the lengths decide, before anything runs.
fn check_room(subject: &Subject, options: &BenchOptions, prompt_tokens: usize) -> Result<()> {
    let tokens = prompt_tokens + options.max_tokens;
    let context_length = subject.session.context_length();
    if tokens > context_length {
        return Err(Error::PromptTooLong { prompt_tokens: tokens, context_length });
    }
    let bytes = tokens as u64 * subject.session.kv_bytes_per_token() as u64;
    MemoryBudget::new(options.engine.memory_limit, subject.info.weight_bytes).check_cache(tokens, bytes, 0)
}

/// One answer, stage by stage.
fn measure(subject: &mut Subject, ids: &[u32], max_tokens: usize) -> Result<Run> {
    let cancel = Cancel::new();
    let milliseconds = |start: Instant| start.elapsed().as_secs_f64() * 1e3;
    let start = Instant::now();
    let image = subject.prepare()?;
    let preprocess_ms = if image.is_some() { milliseconds(start) } else { 0.0 };

    let vision_start = Instant::now();
    let session = subject.session.as_mut();
    let features: Vec<_> = image.iter().map(|image| session.encode_image(image, &cancel)).collect::<Result<_>>()?;
    let vision_ms = if features.is_empty() { 0.0 } else { milliseconds(vision_start) };

    let prefill_start = Instant::now();
    let sequence = session.start();
    let prompt = Prefill { ids, images: &features, rows: LogitRows::Last, cancel: &cancel };
    let mut tokens = vec![likeliest(&session.prefill(sequence, prompt)?, ids.len())?];
    let prefill_ms = milliseconds(prefill_start);
    let ttft_ms = milliseconds(start);

    let decode_start = Instant::now();
    while tokens.len() < max_tokens {
        let logits = session.decode(&[(sequence, tokens[tokens.len() - 1])]);
        tokens.push(likeliest(&logits, ids.len() + tokens.len())?);
    }
    let decode_ms = milliseconds(decode_start);
    session.end(sequence);
    let decoded = (tokens.len() - 1) as f64;
    Ok(Run {
        preprocess_ms,
        vision_ms,
        prefill_ms,
        prefill_tokens_per_second: ids.len() as f64 / prefill_ms * 1e3,
        ttft_ms,
        decode_ms,
        tokens_per_second: if decoded > 0.0 { decoded / decode_ms * 1e3 } else { 0.0 },
        output_hash: hash(&tokens),
    })
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
mod tests;
