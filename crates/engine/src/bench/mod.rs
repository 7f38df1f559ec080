//! How fast a model runs on this machine: every stage of an answer, several times, next to what the machine could do.
//!
//! A run prepares a picture, runs the vision tower, prefills and decodes greedily, straight on a [`crate::Session`]:
//! below every cache, so each run computes everything, and the same picture serves all runs. Their tokens must therefore
//! be the same. The prompt is the picture's tokens followed by text tokens drawn at random; end tokens end nothing.

mod busy;
mod cost;
mod machine;
mod noise;
mod pages;
mod passes;
mod published;
mod report;
mod subject;

use ocelli_formats::ModelFiles;
use ocelli_processors::Detail;

pub use busy::Load;
pub use machine::{Machine, Product, Share, measure_machine};
pub use published::PUBLISHED;
pub(crate) use published::files as published_files;
pub use report::{FIGURES, Figure, Memory, Report, Run, Spread, Utilisation, Work};
pub use subject::Loads;
pub(crate) use subject::backend;

use crate::error::{Error, Result};
use crate::memory::MemoryBudget;
use crate::options::EngineOptions;
use busy::Clock;
use passes::{measure, repeats};
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
    /// Beams of a search that every run makes as well; 1 for none.
    pub beams: usize,
    /// Sequences that every run decodes at once as well; 1 for none.
    pub batch: usize,
    /// Whether matrix products are measured, too, besides the machine's limits.
    pub products: bool,
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

/// Tokens of a narration: a short sentence about what a camera sees.
const NARRATION_TOKENS: usize = 20;

/// Measures the machine, then a model. `progress` hears how many runs are done, and of how many.
///
/// # Errors
/// Whatever keeps the model from loading or answering; [`Error::PromptTooLong`] and [`Error::OutOfMemory`] before
/// anything runs; [`Error::Unrepeatable`] when two runs give different tokens, [`Error::BatchDiffers`] when sequences
/// that are decoded together do.
pub fn run(model: BenchModel<'_>, options: &BenchOptions, progress: &mut dyn FnMut(usize, usize)) -> Result<Report> {
    let counts = [
        ("prompt_tokens", options.prompt_tokens),
        ("max_tokens", options.max_tokens),
        ("runs", options.runs),
        ("beams", options.beams),
        ("batch", options.batch),
    ];
    counts.into_iter().try_for_each(|(name, value)| at_least_one(name, value))?;
    options.engine.validate()?;
    let before = Load::average();
    let machine = measure_machine(&options.engine, options.products)?;
    // Measuring the machine took memory that the model does not need.
    machine::forget_peak();
    let mut subject = Subject::load(model, options)?;
    let load_peak = machine::peak_memory();
    let ids = subject.prompt(options.prompt_tokens);
    check_room(&subject, options, ids.len())?;
    machine::forget_peak();
    let mut runs: Vec<Run> = Vec::new();
    let mut clock = Clock::start();
    for idx in 0..options.warmup + options.runs {
        progress(idx, options.warmup + options.runs);
        if idx == options.warmup {
            clock = Clock::start();
        }
        let run = measure(&mut subject, &ids, options)?;
        clock.look();
        repeats(runs.first(), &run, idx + 1)?;
        runs.push(run);
    }
    progress(options.warmup + options.runs, options.warmup + options.runs);
    let load = clock.stop(before, subject.threads);
    let runs = runs.split_off(options.warmup);
    Ok(Report::new(&subject, options, ids.len(), runs, (load, load_peak, machine)))
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
    let bytes = tokens as u64 * sequences(options) as u64 * subject.session.kv_bytes_per_token() as u64;
    MemoryBudget::new(options.engine.memory_limit, subject.info.weight_bytes).check_cache(tokens, bytes, 0)
}

/// Sequences that have keys and values at a time, at most.
fn sequences(options: &BenchOptions) -> usize {
    options.beams.max(options.batch)
}

#[cfg(test)]
mod tests;
