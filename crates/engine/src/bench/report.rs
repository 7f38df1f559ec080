//! What was measured. Field names are the JSON of the command line.

use std::collections::BTreeMap;

use serde::Serialize;

use super::BenchOptions;
use super::machine::{Load, Machine, peak_memory};
use super::subject::Subject;

/// Everything about one measurement.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The model.
    pub model: String,
    /// Its family.
    pub model_type: String,
    /// Numbers in its weights.
    pub parameters: u64,
    /// The type of most of them.
    pub dtype: String,
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
    /// Runs before those that count.
    pub warmup: usize,
    /// Milliseconds of the first load; of building, for random weights.
    pub load_ms: f64,
    /// Milliseconds of loading the same files once more.
    pub second_load_ms: Option<f64>,
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
    /// The machine's limits, where they were measured.
    pub machine: Option<Machine>,
}

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Run {
    /// From pixels to the tower's input.
    pub preprocess_ms: f64,
    /// Vision tower and connector.
    pub vision_ms: f64,
    /// The whole prompt, to its first token.
    pub prefill_ms: f64,
    /// Prompt tokens over `prefill_ms`.
    pub prefill_tokens_per_second: f64,
    /// From pixels to the first token.
    pub ttft_ms: f64,
    /// All tokens after the first.
    pub decode_ms: f64,
    /// Tokens after the first over `decode_ms`; 0 when there are none.
    pub tokens_per_second: f64,
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
    pub of: fn(&Run) -> f64,
}

/// All figures of a run, in their order in time.
pub const FIGURES: &[Figure] = &[
    Figure { name: "preprocess_ms", unit: "ms", more_is_better: false, of: |run| run.preprocess_ms },
    Figure { name: "vision_ms", unit: "ms", more_is_better: false, of: |run| run.vision_ms },
    Figure { name: "prefill_ms", unit: "ms", more_is_better: false, of: |run| run.prefill_ms },
    Figure {
        name: "prefill_tokens_per_second",
        unit: "tokens/s",
        more_is_better: true,
        of: |run| run.prefill_tokens_per_second,
    },
    Figure { name: "ttft_ms", unit: "ms", more_is_better: false, of: |run| run.ttft_ms },
    Figure { name: "tokens_per_second", unit: "tokens/s", more_is_better: true, of: |run| run.tokens_per_second },
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
    /// The most that was held at a time, files that are mapped included; `None` where the system does not say.
    pub peak_rss_bytes: Option<u64>,
    /// All weights.
    pub weight_bytes: u64,
    /// Keys and values at the end of a run.
    pub kv_bytes: u64,
    /// The peak without these: activations, the program, the tokenizer. 0 when not all weights were ever touched.
    pub rest_bytes: Option<u64>,
}

/// Work per second, by the shapes of the weights and the median times. How it is counted is told in
/// `benchmarks/README.md`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Utilisation {
    /// Operations of the vision tower and the prefill over their time.
    pub prompt_flops: f64,
    /// Bytes of weights that decoding reads in a second; 0 when nothing is decoded.
    pub decode_bytes_per_second: f64,
    /// `prompt_flops` over the machine's limit, where that was measured.
    pub prompt_share: Option<f64>,
    /// `decode_bytes_per_second` over the machine's limit. Above 1 when the weights fit into caches.
    pub decode_share: Option<f64>,
}

impl Report {
    pub(crate) fn new(
        subject: &Subject,
        options: &BenchOptions,
        prompt_tokens: usize,
        runs: Vec<Run>,
        load: Load,
    ) -> Self {
        let summary: BTreeMap<_, _> = FIGURES
            .iter()
            .filter_map(|figure| Some((figure.name, Spread::of(&runs.iter().map(figure.of).collect::<Vec<_>>())?)))
            .collect();
        let info = &subject.info;
        let kv_tokens = prompt_tokens + options.max_tokens - 1;
        let shape = subject.shape.as_ref();
        Self {
            model: info.label.clone(),
            model_type: info.model_type.clone(),
            parameters: info.parameters,
            dtype: info.dtype.clone(),
            weights_in: subject.weights_in,
            isa: subject.isa,
            threads: subject.threads,
            image_size: shape.map(|image| image.image_size.into()),
            n_tiles: shape.map_or(0, |image| image.n_tiles),
            vision_tokens: shape.map_or(0, |image| image.vision_tokens),
            prompt_tokens,
            completion_tokens: options.max_tokens,
            warmup: options.warmup,
            load_ms: subject.load_ms,
            second_load_ms: subject.second_load_ms,
            utilisation: Utilisation::of(subject, prompt_tokens, &summary),
            output_hash: runs.first().map(|run| run.output_hash.clone()).unwrap_or_default(),
            runs,
            summary,
            memory: Memory::now(info.weight_bytes, (kv_tokens * info.kv_bytes_per_token) as u64),
            load,
            machine: None,
        }
    }

    pub(crate) fn with_machine(mut self, machine: Machine) -> Self {
        self.utilisation.prompt_share = Some(self.utilisation.prompt_flops / machine.f32_flops);
        self.utilisation.decode_share = Some(self.utilisation.decode_bytes_per_second / machine.read_bytes_per_second);
        self.machine = Some(machine);
        self
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
    fn now(weight_bytes: u64, kv_bytes: u64) -> Self {
        let peak_rss_bytes = peak_memory();
        let rest_bytes = peak_rss_bytes.map(|peak| peak.saturating_sub(weight_bytes).saturating_sub(kv_bytes));
        Self { peak_rss_bytes, weight_bytes, kv_bytes, rest_bytes }
    }
}

impl Utilisation {
    fn of(subject: &Subject, prompt_tokens: usize, summary: &BTreeMap<&'static str, Spread>) -> Self {
        let median = |name| summary.get(name).map_or(0.0, |spread| spread.median);
        let vision = subject.shape.as_ref().map_or(0.0, |image| {
            subject.cost.vision_flops(image.n_tiles, [image.height, image.width], image.vision_tokens)
        });
        let flops = vision + subject.cost.prefill_flops(prompt_tokens);
        Self {
            prompt_flops: flops / (median("vision_ms") + median("prefill_ms")) * 1e3,
            decode_bytes_per_second: subject.cost.bytes_per_token() * median("tokens_per_second"),
            prompt_share: None,
            decode_share: None,
        }
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
