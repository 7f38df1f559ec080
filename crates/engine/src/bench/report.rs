//! What was measured. Field names are the JSON of the command line.

use std::collections::BTreeMap;

use serde::Serialize;

use super::busy::Load;
use super::machine::{Machine, Share, file_memory, peak_memory};
use super::subject::{Loads, Subject};
use super::{BenchOptions, sequences};

/// Everything about one measurement.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The model.
    pub model: String,
    /// Its family.
    pub model_type: String,
    /// Numbers in its weights.
    pub parameters: u64,
    /// The type of most of them as stored.
    pub dtype: String,
    /// What the decoder's matrices were made when they were loaded: `none`, `q8`, `q4`.
    pub quant: &'static str,
    /// What the vision tower's matrices were made.
    pub quant_vision: &'static str,
    /// How keys and values are kept.
    pub kv_cache: String,
    /// Where they are: a mapped file (read when first touched), or memory.
    pub weights_in: &'static str,
    /// Instruction set.
    pub isa: &'static str,
    /// Threads that compute.
    pub threads: usize,
    /// Width and height of the picture, if there is one.
    pub image_size: Option<[usize; 2]>,
    /// Tiles that the vision tower sees.
    pub n_tiles: usize,
    /// Tokens of the prompt that stand for the picture.
    pub vision_tokens: usize,
    /// Tokens of the prompt, vision tokens included.
    pub prompt_tokens: usize,
    /// Tokens of every answer.
    pub completion_tokens: usize,
    /// Beams of every run's search; 1 for none.
    pub beams: usize,
    /// Sequences that every run decoded at once; 1 for none.
    pub batch: usize,
    /// Runs before those that count.
    pub warmup: usize,
    /// How long loading takes.
    #[serde(flatten)]
    pub loads: Loads,
    /// Every run.
    pub runs: Vec<Run>,
    /// By name of a figure of [`FIGURES`].
    pub summary: BTreeMap<&'static str, Spread>,
    /// The hash of every run's tokens.
    pub output_hash: String,
    /// Where the memory went.
    pub memory: Memory,
    /// How busy the machine was.
    pub load: Load,
    /// The work per second, by the medians.
    pub utilisation: Utilisation,
    /// The machine's limits.
    pub machine: Machine,
}

/// One run. What it did not have is `None`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Run {
    /// From pixels to the tower's input.
    pub preprocess_ms: Option<f64>,
    /// Vision tower and connector.
    pub vision_ms: Option<f64>,
    /// The whole prompt, to its first token.
    pub prefill_ms: f64,
    /// Prompt tokens over `prefill_ms`.
    pub prefill_tokens_per_second: f64,
    /// From pixels to the first token.
    pub ttft_ms: f64,
    /// All tokens after the first.
    pub decode_ms: Option<f64>,
    /// Tokens after the first over `decode_ms`.
    pub tokens_per_second: Option<f64>,
    /// From pixels to the 20th token.
    pub narration_ms: Option<f64>,
    /// Tokens of an answer over the time of the beam search for it, from the prompt's logits.
    pub beam_tokens_per_second: Option<f64>,
    /// Tokens after the first of all sequences together over the time of decoding them at once.
    pub batch_tokens_per_second: Option<f64>,
    /// Of the tokens.
    pub output_hash: String,
}

/// A figure of every run.
#[derive(Clone, Copy, Debug)]
pub struct Figure {
    /// Name in the JSON.
    pub name: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// Whether more is better.
    pub more_is_better: bool,
    /// Reads it.
    pub of: fn(&Run) -> Option<f64>,
}

impl Figure {
    const fn time(name: &'static str, of: fn(&Run) -> Option<f64>) -> Self {
        Self { name, unit: "ms", more_is_better: false, of }
    }

    const fn speed(name: &'static str, of: fn(&Run) -> Option<f64>) -> Self {
        Self { name, unit: "tokens/s", more_is_better: true, of }
    }
}

/// All figures of a run, in their order in time.
pub const FIGURES: &[Figure] = &[
    Figure::time("preprocess_ms", |run| run.preprocess_ms),
    Figure::time("vision_ms", |run| run.vision_ms),
    Figure::time("prefill_ms", |run| Some(run.prefill_ms)),
    Figure::speed("prefill_tokens_per_second", |run| Some(run.prefill_tokens_per_second)),
    Figure::time("ttft_ms", |run| Some(run.ttft_ms)),
    Figure::time("decode_ms", |run| run.decode_ms),
    Figure::speed("tokens_per_second", |run| run.tokens_per_second),
    Figure::time("narration_ms", |run| run.narration_ms),
    Figure::speed("beam_tokens_per_second", |run| run.beam_tokens_per_second),
    Figure::speed("batch_tokens_per_second", |run| run.batch_tokens_per_second),
];

/// Statistics of one figure over all runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Sum over count.
    pub mean: f64,
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// Coefficient of variation: standard deviation (of a sample) over mean; 0 for one run.
    pub cv: f64,
}

/// Bytes of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// The most that was held at a time, loading included; `None` where the system does not say.
    pub peak_rss_bytes: Option<u64>,
    /// The most while loading.
    pub load_peak_rss_bytes: Option<u64>,
    /// The most from the first run on.
    pub run_peak_rss_bytes: Option<u64>,
    /// What of it are pages of mapped files, at the end.
    pub file_bytes: Option<u64>,
    /// All weights.
    pub weight_bytes: u64,
    /// Keys and values at the end of a run, of all its sequences.
    pub kv_bytes: u64,
    /// Activations when they took most.
    pub activation_bytes: u64,
    /// The picture as the tower gets it.
    pub picture_bytes: u64,
    /// The peak of the runs without these: the program, the tokenizer, caches. 0 when not all weights were ever touched.
    pub rest_bytes: Option<u64>,
}

/// Work per second, by the shapes of the weights and the median times, next to what limits it. How it is counted is told
/// in `benchmarks/README.md`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Utilisation {
    /// Operations of the vision tower and the connector over their time.
    pub vision: Option<Work>,
    /// Operations of the prefill over its time.
    pub prefill: Work,
    /// Bytes of weights that decoding reads over its time. The share is above 1 when the weights fit into caches.
    pub decode: Option<Work>,
}

/// Operations or bytes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Work {
    /// How many per second.
    pub per_second: f64,
    /// Next to the machine's limit.
    #[serde(flatten)]
    pub share: Share,
}

impl Report {
    pub(crate) fn new(
        subject: &Subject,
        options: &BenchOptions,
        prompt_tokens: usize,
        runs: Vec<Run>,
        (load, load_peak, machine): (Load, Option<u64>, Machine),
    ) -> Self {
        let spread = |figure: &Figure| Spread::of(&runs.iter().filter_map(figure.of).collect::<Vec<_>>());
        let summary: BTreeMap<_, _> =
            FIGURES.iter().filter_map(|figure| Some((figure.name, spread(figure)?))).collect();
        let info = &subject.info;
        let shape = subject.shape.as_ref();
        Self {
            model: info.label.clone(),
            model_type: info.model_type.clone(),
            parameters: info.parameters,
            dtype: info.dtype.clone(),
            quant: options.engine.quant.name(),
            quant_vision: options.engine.quant_vision.name(),
            kv_cache: info.kv_precision.clone(),
            weights_in: subject.weights_in,
            isa: subject.isa,
            threads: subject.threads,
            image_size: shape.map(|image| image.image_size.into()),
            n_tiles: shape.map_or(0, |image| image.shape[0]),
            vision_tokens: shape.map_or(0, |image| image.vision_tokens),
            prompt_tokens,
            completion_tokens: options.max_tokens,
            beams: options.beams,
            batch: options.batch,
            warmup: options.warmup,
            loads: subject.loads,
            utilisation: Utilisation::of(subject, prompt_tokens, &summary, &machine),
            output_hash: runs.first().map(|run| run.output_hash.clone()).unwrap_or_default(),
            memory: Memory::now(subject, (prompt_tokens + options.max_tokens - 1) * sequences(options), load_peak),
            runs,
            summary,
            load,
            machine,
        }
    }
}

impl Spread {
    /// `None` without values.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let count = sorted.len() as f64;
        let mean = sorted.iter().sum::<f64>() / count;
        let median = f64::midpoint(sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        let squares: f64 = sorted.iter().map(|value| (value - mean).powi(2)).sum();
        let deviation = (squares / (count - 1.0).max(1.0)).sqrt();
        let cv = if mean > 0.0 { deviation / mean } else { 0.0 };
        Some(Self { mean, median, min, max, cv })
    }
}

impl Memory {
    fn now(subject: &Subject, kv_tokens: usize, load_peak_rss_bytes: Option<u64>) -> Self {
        let info = &subject.info;
        let run_peak_rss_bytes = peak_memory();
        let kv_bytes = (kv_tokens * info.kv_bytes_per_token) as u64;
        let activation_bytes = subject.session.most_activation_bytes() as u64;
        let picture = subject.shape.as_ref().map_or(0, |image| size_of_val(&image.pixel_values[..]));
        let known = info.weight_bytes + kv_bytes + activation_bytes + picture as u64;
        Self {
            peak_rss_bytes: run_peak_rss_bytes.max(load_peak_rss_bytes),
            load_peak_rss_bytes,
            run_peak_rss_bytes,
            file_bytes: file_memory(),
            weight_bytes: info.weight_bytes,
            kv_bytes,
            activation_bytes,
            picture_bytes: picture as u64,
            rest_bytes: run_peak_rss_bytes.map(|peak| peak.saturating_sub(known)),
        }
    }
}

impl Utilisation {
    fn of(
        subject: &Subject,
        prompt_tokens: usize,
        summary: &BTreeMap<&'static str, Spread>,
        machine: &Machine,
    ) -> Self {
        let cost = &subject.cost;
        let median = |name| summary.get(name).map(|spread| spread.median);
        let work = |operations: f64, milliseconds: f64, bytes_per_weight| {
            let per_second = operations / milliseconds * 1e3;
            Work { per_second, share: machine.arithmetic(per_second, bytes_per_weight) }
        };
        let vision = subject.shape.as_ref().zip(median("vision_ms")).and_then(|(image, spent)| {
            let operations = cost.vision_flops(image.shape, image.vision_tokens)?;
            Some(work(operations, spent, cost.tower_bytes_per_weight()))
        });
        let decode = median("tokens_per_second").map(|tokens| {
            let per_second = cost.bytes_per_token() * tokens;
            Work { per_second, share: machine.reading(per_second) }
        });
        let spent = median("prefill_ms").unwrap_or(f64::NAN);
        let looked_at = subject.shape.as_ref().map_or(0, |image| image.vision_tokens);
        let prefill = work(cost.prefill_flops(prompt_tokens, looked_at), spent, cost.decoder_bytes_per_weight());
        Self { vision, prefill, decode }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics() {
        let spread = Spread::of(&[4.0, 2.0, 3.0, 7.0]).unwrap();
        assert_eq!((spread.mean, spread.median, spread.min, spread.max), (4.0, 3.5, 2.0, 7.0));
        assert!((spread.cv - (14.0f64 / 3.0).sqrt() / 4.0).abs() < 1e-12);
        assert_eq!(Spread::of(&[5.0]).unwrap().cv, 0.0);
        assert_eq!(Spread::of(&[0.0, 0.0]).unwrap().cv, 0.0);
        assert!(Spread::of(&[]).is_none());
    }
}
