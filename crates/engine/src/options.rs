//! How an engine is set up and how an answer is generated. Every value is checked before any work starts.

use ocelli_backend::{Precision, Quant};
use ocelli_backend_cpu::KvPrecision;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::pack_cache::PackCache;

/// How a model is loaded. `EngineOptions::new()` chooses everything by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Threads of the processor; `None` uses all physical cores.
    pub threads: Option<usize>,
    /// Instruction set to use (`scalar`, `avx2`, `avx512`, `amx`, `neon`); `None` uses the best one there is.
    pub isa: Option<String>,
    /// Bytes that weights and cache may take together; `None` asks the system what is available.
    pub memory_limit: Option<u64>,
    /// Rows of the prompt that are computed at once: more of them are faster and take more memory.
    pub prefill_chunk: usize,
    /// What the float matrices of the decoder become. A checkpoint that is already quantised is taken as it is: asking
    /// for another precision is an error, since quantising twice loses twice.
    pub quant: Quant,
    /// What the float matrices of the vision tower become: [`Quant::None`] or [`Quant::Q8`].
    pub quant_vision: Quant,
    /// Weights that share a scale, 32 or 64; `None` chooses by the length of rows.
    pub quant_group: Option<usize>,
    /// How keys and values are kept; `None` for the precision that attention multiplies in.
    pub kv_cache: Option<KvPrecision>,
    /// Where packed weights are kept for the next load; `None` keeps none.
    pub pack_cache: Option<PackCache>,
}

impl EngineOptions {
    /// Everything chosen by the engine.
    pub fn new() -> Self {
        Self {
            threads: None,
            isa: None,
            memory_limit: None,
            prefill_chunk: PREFILL_CHUNK,
            quant: Quant::None,
            quant_vision: Quant::None,
            quant_group: None,
            kv_cache: None,
            pack_cache: None,
        }
    }

    /// Checks what can be checked before there is a model.
    ///
    /// # Errors
    /// [`Error::InvalidOption`], naming the option and what was expected.
    pub fn validate(&self) -> Result<()> {
        require(self.quant_vision != Quant::Q4, "quant_vision", "q4", "none or q8")?;
        let group = self.quant_group.unwrap_or(32);
        require(group == 32 || group == 64, "quant_group", group, "32 or 64")
    }

    /// How weights are held.
    pub(crate) fn precision(&self) -> Precision {
        Precision { text: self.quant, vision: self.quant_vision, group: self.quant_group }
    }
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// How an answer is generated. [`GenerateOptions::greedy`] leaves everything off.
///
/// `None` always means "off" or "chosen by the engine", never a hidden default of the model: a model's own
/// recommendations (its `generation_config.json`) are applied with [`GenerateOptions::with_defaults_of`] only.
///
/// Logits are changed in this order, that of transformers: `repetition_penalty` (prompt and answer), then
/// `presence_penalty` and `frequency_penalty` (answer only, as the OpenAI API defines them), `no_repeat_ngram_size`,
/// `min_tokens`, and when sampling `temperature`, `top_k`, `top_p`, `min_p`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GenerateOptions {
    /// Most tokens to generate; `None` is what `max_length` leaves, or [`GenerateOptions::DEFAULT_MAX_TOKENS`].
    pub max_tokens: Option<usize>,
    /// Most tokens of prompt and answer together, for where `max_tokens` is not given.
    pub max_length: Option<usize>,
    /// The end token is impossible before this many tokens.
    pub min_tokens: usize,
    /// Sampling temperature, above 0; `None` or 0 always takes the likeliest token.
    pub temperature: Option<f32>,
    /// Sample among the `top_k` likeliest tokens; `None` or 0 is off. Like the next two, only with a temperature.
    pub top_k: Option<usize>,
    /// Sample among the fewest tokens whose probabilities add up to this; in (0, 1].
    pub top_p: Option<f32>,
    /// Leave out tokens less likely than this times the likeliest; in [0, 1].
    pub min_p: Option<f32>,
    /// Divides positive and multiplies negative logits of every token seen so far; above 0, 1 is off.
    pub repetition_penalty: Option<f32>,
    /// Subtracted from the logits of tokens in the answer; -2 to 2.
    pub presence_penalty: Option<f32>,
    /// Subtracted from the logits of tokens in the answer, times their count; -2 to 2.
    pub frequency_penalty: Option<f32>,
    /// Sequences of this many tokens never come twice; `None` or 0 is off.
    pub no_repeat_ngram_size: Option<usize>,
    /// Makes sampling repeatable; chosen (and reported) by the engine where it is `None`.
    pub seed: Option<u64>,
    /// Texts that end the answer and are not part of it.
    pub stop: Vec<String>,
    /// Beams of the search; 1 is greedy or sampling.
    pub num_beams: usize,
    /// Exponent of the length that divides a beam's score: above 0 favours long answers.
    pub length_penalty: f32,
    /// When a beam search may end.
    pub early_stopping: EarlyStopping,
}

/// When a beam search ends, in the words of transformers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EarlyStopping {
    /// When the best running beam would not beat the worst finished one if it ended now (a heuristic; the default).
    #[default]
    False,
    /// As soon as `num_beams` answers are finished.
    True,
    /// When no running beam can beat the worst finished one any more.
    Never,
}

/// Recommendations of a model's `generation_config.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct GenerationDefaults {
    /// Whether the model is meant to be sampled from.
    pub do_sample: bool,
    /// See [`GenerateOptions::temperature`].
    pub temperature: Option<f32>,
    /// See [`GenerateOptions::top_k`].
    pub top_k: Option<usize>,
    /// See [`GenerateOptions::top_p`].
    pub top_p: Option<f32>,
    /// See [`GenerateOptions::min_p`].
    pub min_p: Option<f32>,
    /// See [`GenerateOptions::repetition_penalty`].
    pub repetition_penalty: Option<f32>,
    /// See [`GenerateOptions::max_tokens`].
    pub max_tokens: Option<usize>,
    /// See [`GenerateOptions::max_length`].
    pub max_length: Option<usize>,
}

impl GenerateOptions {
    /// Tokens of an answer where nobody says otherwise.
    pub const DEFAULT_MAX_TOKENS: usize = 1024;

    /// The likeliest token every time, without any penalty.
    pub fn greedy() -> Self {
        Self {
            max_tokens: None,
            max_length: None,
            min_tokens: 0,
            temperature: None,
            top_k: None,
            top_p: None,
            min_p: None,
            repetition_penalty: None,
            presence_penalty: None,
            frequency_penalty: None,
            no_repeat_ngram_size: None,
            seed: None,
            stop: Vec::new(),
            num_beams: 1,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::False,
        }
    }

    /// Fills what was left open with the model's own recommendations, as transformers does by itself.
    #[must_use]
    pub fn with_defaults_of(mut self, defaults: &GenerationDefaults) -> Self {
        self.max_tokens = self.max_tokens.or(defaults.max_tokens);
        self.max_length = self.max_length.or(defaults.max_length);
        self.repetition_penalty = self.repetition_penalty.or(defaults.repetition_penalty);
        if defaults.do_sample && self.num_beams == 1 {
            self.temperature = self.temperature.or(defaults.temperature).or(Some(1.0));
            self.top_k = self.top_k.or(defaults.top_k);
            self.top_p = self.top_p.or(defaults.top_p);
            self.min_p = self.min_p.or(defaults.min_p);
        }
        self
    }

    /// Whether tokens are drawn by chance.
    pub fn is_sampling(&self) -> bool {
        self.temperature.is_some_and(|temperature| temperature > 0.0)
    }

    /// Options that were given and change nothing, since nothing is drawn by chance.
    pub(crate) fn without_effect(&self) -> Vec<&'static str> {
        let given = [
            ("top_k", self.top_k.is_some_and(|top_k| top_k > 0)),
            ("top_p", self.top_p.is_some_and(|top_p| top_p < 1.0)),
            ("min_p", self.min_p.is_some_and(|min_p| min_p > 0.0)),
        ];
        given.iter().filter(|(_, given)| *given && !self.is_sampling()).map(|(name, _)| *name).collect()
    }

    /// Most tokens to generate after a prompt of this many; at least one, however long the prompt is.
    pub fn max_tokens_after(&self, prompt_tokens: usize) -> usize {
        let left = self.max_length.map(|length| length.saturating_sub(prompt_tokens).max(1));
        self.max_tokens.or(left).unwrap_or(Self::DEFAULT_MAX_TOKENS)
    }

    /// Checks every value.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] or [`Error::OptionConflict`], naming the option and what was expected.
    pub fn validate(&self) -> Result<()> {
        require(self.max_tokens != Some(0), "max_tokens", 0, "at least 1")?;
        require(self.num_beams >= 1, "num_beams", self.num_beams, "1 to 64")?;
        require(self.num_beams <= MAX_BEAMS, "num_beams", self.num_beams, "1 to 64")?;
        require(self.length_penalty.is_finite(), "length_penalty", self.length_penalty, "a finite number")?;
        check(self.temperature, "temperature", "a number from 0", |value| value >= 0.0)?;
        check(self.top_p, "top_p", "a number above 0, up to 1", |value| value > 0.0 && value <= 1.0)?;
        check(self.min_p, "min_p", "a number from 0 to 1", |value| (0.0..=1.0).contains(&value))?;
        check(self.repetition_penalty, "repetition_penalty", "a number above 0", |value| value > 0.0)?;
        check(self.presence_penalty, "presence_penalty", "a number from -2 to 2", |value| value.abs() <= 2.0)?;
        check(self.frequency_penalty, "frequency_penalty", "a number from -2 to 2", |value| value.abs() <= 2.0)?;
        require(!self.stop.iter().any(String::is_empty), "stop", "an empty text", "texts of at least one character")?;
        let too_early = self.min_tokens > self.max_tokens_after(0);
        require(!too_early, "min_tokens", self.min_tokens, "no more than max_tokens")?;
        if self.num_beams > 1 && self.is_sampling() {
            let second = format!("temperature {}", self.temperature.unwrap_or_default());
            return Err(Error::OptionConflict { first: format!("num_beams {}", self.num_beams), second });
        }
        Ok(())
    }
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self::greedy()
    }
}

fn require(holds: bool, name: &'static str, value: impl ToString, expected: &'static str) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::InvalidOption { name, value: value.to_string(), expected }) }
}

fn check(value: Option<f32>, name: &'static str, expected: &'static str, holds: impl Fn(f32) -> bool) -> Result<()> {
    match value {
        Some(value) => require(value.is_finite() && holds(value), name, value, expected),
        None => Ok(()),
    }
}

const PREFILL_CHUNK: usize = 512;
/// More beams than this only cost memory; the limit keeps a typing error from becoming an out-of-memory kill.
const MAX_BEAMS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_precisions_are_named() {
        let new = EngineOptions::new;
        let error = |options: EngineOptions| options.validate().unwrap_err().to_string();
        assert_eq!(
            error(EngineOptions { quant_vision: Quant::Q4, ..new() }),
            "quant_vision is q4, expected none or q8"
        );
        assert_eq!(error(EngineOptions { quant_group: Some(48), ..new() }), "quant_group is 48, expected 32 or 64");
        EngineOptions { quant: Quant::Q4, quant_vision: Quant::Q8, quant_group: Some(64), ..new() }.validate().unwrap();
    }

    #[test]
    fn illegal_values_are_named() {
        let greedy = GenerateOptions::greedy;
        let cases = [
            (GenerateOptions { num_beams: 0, ..greedy() }, "num_beams is 0, expected 1 to 64"),
            (GenerateOptions { num_beams: 65, ..greedy() }, "num_beams is 65, expected 1 to 64"),
            (GenerateOptions { max_tokens: Some(0), ..greedy() }, "max_tokens is 0, expected at least 1"),
            (GenerateOptions { top_p: Some(1.5), ..greedy() }, "top_p is 1.5, expected a number above 0, up to 1"),
            (GenerateOptions { top_p: Some(0.0), ..greedy() }, "top_p is 0, expected a number above 0, up to 1"),
            (GenerateOptions { min_p: Some(-0.1), ..greedy() }, "min_p is -0.1, expected a number from 0 to 1"),
            (
                GenerateOptions { temperature: Some(f32::NAN), ..greedy() },
                "temperature is NaN, expected a number from 0",
            ),
            (GenerateOptions { temperature: Some(-1.0), ..greedy() }, "temperature is -1, expected a number from 0"),
            (
                GenerateOptions { repetition_penalty: Some(0.0), ..greedy() },
                "repetition_penalty is 0, expected a number above 0",
            ),
            (
                GenerateOptions { presence_penalty: Some(3.0), ..greedy() },
                "presence_penalty is 3, expected a number from -2 to 2",
            ),
            (
                GenerateOptions { frequency_penalty: Some(f32::INFINITY), ..greedy() },
                "frequency_penalty is inf, expected a number from -2 to 2",
            ),
            (
                GenerateOptions { length_penalty: f32::NAN, ..greedy() },
                "length_penalty is NaN, expected a finite number",
            ),
            (
                GenerateOptions { stop: vec![String::new()], ..greedy() },
                "stop is an empty text, expected texts of at least one character",
            ),
            (
                GenerateOptions { min_tokens: 9, max_tokens: Some(8), ..greedy() },
                "min_tokens is 9, expected no more than max_tokens",
            ),
            (
                GenerateOptions { num_beams: 2, temperature: Some(0.5), ..greedy() },
                "num_beams 2 cannot be used together with temperature 0.5",
            ),
        ];
        for (options, message) in cases {
            assert_eq!(options.validate().unwrap_err().to_string(), message);
        }
        greedy().validate().unwrap();
    }

    #[test]
    fn a_models_recommendations_fill_only_what_is_open() {
        let defaults = GenerationDefaults {
            do_sample: true,
            temperature: Some(0.7),
            top_p: Some(0.8),
            repetition_penalty: Some(1.05),
            ..GenerationDefaults::default()
        };
        let chosen = GenerateOptions { top_p: Some(0.5), ..GenerateOptions::greedy() }.with_defaults_of(&defaults);
        assert_eq!((chosen.temperature, chosen.top_p, chosen.repetition_penalty), (Some(0.7), Some(0.5), Some(1.05)));
        assert!(!GenerateOptions::greedy().with_defaults_of(&GenerationDefaults::default()).is_sampling());
    }

    #[test]
    fn a_length_counts_the_prompt_and_gives_way_to_a_number_of_tokens() {
        let length = GenerationDefaults { max_length: Some(20), ..GenerationDefaults::default() };
        let both = GenerationDefaults { max_tokens: Some(7), ..length.clone() };
        let after = |options: GenerateOptions| [1, 19, 20, 99].map(|prompt| options.max_tokens_after(prompt));
        let greedy = GenerateOptions::greedy;
        assert_eq!(after(greedy().with_defaults_of(&length)), [19, 1, 1, 1]);
        assert_eq!(after(greedy().with_defaults_of(&both)), [7; 4]);
        let given = GenerateOptions { max_tokens: Some(9), ..greedy() };
        assert_eq!(after(given.with_defaults_of(&both)), [9; 4]);
        assert_eq!(after(greedy()), [GenerateOptions::DEFAULT_MAX_TOKENS; 4]);
    }
}
