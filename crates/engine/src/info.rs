//! What is known of a model from its small files and the headers of its weight files, before any weight is read.

use std::collections::BTreeMap;

use ocelli_backend::{Quant, WeightSource};
use ocelli_backend_cpu::{CpuBackend, CpuOptions};
use ocelli_formats::{Checkpoint, Config, ModelFiles, StoredTensor};
use serde::Serialize;
use serde_json::Value;

use crate::catalog::{Task, tasks};
use crate::error::{Error, Result};
use crate::loaded::arithmetic;
use crate::options::{EngineOptions, GenerationDefaults};
use crate::plan::Plan;

/// A model in a few lines.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelInfo {
    /// What the user calls it.
    pub label: String,
    /// `model_type` of `config.json`.
    pub model_type: String,
    /// The family's name for people.
    pub title: String,
    /// Numbers in all weights.
    pub parameters: u64,
    /// The type that most of the weights are stored in.
    pub dtype: String,
    /// Bytes of all weights in memory, in the precision that they are (or would be) loaded in.
    pub weight_bytes: u64,
    /// Longest sequence in tokens.
    pub context_length: usize,
    /// Whether it takes pictures.
    pub sees_images: bool,
    /// Bytes of keys and values per token of a sequence.
    pub kv_bytes_per_token: usize,
    /// How they are kept: `f32`, `bf16` or `q8`.
    pub kv_precision: String,
    /// What `generation_config.json` recommends; see [`crate::GenerateOptions::with_defaults_of`].
    pub generation_defaults: GenerationDefaults,
}

impl ModelInfo {
    /// Reads configs and weight headers: what the model is as it would be loaded by default.
    ///
    /// # Errors
    /// Files that are missing or malformed, and families that are not supported.
    pub fn read(files: &ModelFiles) -> Result<Self> {
        Self::read_for(files, &EngineOptions::new())
    }

    /// [`ModelInfo::read`] of the model as it would be loaded with `options`.
    ///
    /// # Errors
    /// As [`ModelInfo::read`].
    pub fn read_for(files: &ModelFiles, options: &EngineOptions) -> Result<Self> {
        options.validate()?;
        let config = Config::load(files)?;
        let generation = GenerationConfig::read(files, &config)?;
        let checkpoint = Checkpoint::open(files)?;
        check_precision(files.label(), &checkpoint, options)?;
        let backend = CpuBackend::new(CpuOptions {
            threads: Some(1),
            isa: options.isa.clone(),
            arithmetic: arithmetic(&checkpoint, options),
            kv: options.kv_cache,
        })?;
        let source = WeightSource::from(&checkpoint).with_precision(options.precision());
        let plan = Plan::make(&backend, &config, source)?;
        Self::describe(files.label(), &config, stored_as(&checkpoint), &plan, &generation)
    }

    /// What it can be used for.
    pub fn tasks(&self) -> Vec<Task> {
        ocelli_models::architecture(&self.model_type).map(|architecture| tasks(&architecture)).unwrap_or_default()
    }

    /// `dtype` is what most of the weights are stored in.
    pub(crate) fn describe(
        label: &str,
        config: &Config,
        dtype: String,
        plan: &Plan,
        generation: &GenerationConfig,
    ) -> Result<Self> {
        let architecture = ocelli_models::architecture(config.model_type())?;
        Ok(Self {
            label: label.to_owned(),
            model_type: config.model_type().to_owned(),
            title: architecture.title.to_owned(),
            parameters: plan.parameters(),
            dtype,
            weight_bytes: plan.weight_bytes(),
            context_length: plan.context_length,
            sees_images: architecture.sees_images,
            kv_bytes_per_token: plan.kv_bytes_per_token,
            kv_precision: plan.kv_precision.to_owned(),
            generation_defaults: generation.defaults.clone(),
        })
    }
}

/// Refuses to quantise a checkpoint that is already quantised: what was lost once would be lost twice.
pub(crate) fn check_precision(label: &str, checkpoint: &Checkpoint, options: &EngineOptions) -> Result<()> {
    let asked = match options.quant {
        Quant::None => return Ok(()),
        Quant::Q8 => "q8",
        Quant::Q4 => "q4",
    };
    if !is_quantized(checkpoint) {
        return Ok(());
    }
    Err(Error::AlreadyQuantized { label: label.to_owned(), stored: stored_as(checkpoint), asked })
}

/// Whether some of a checkpoint's tensors are codes.
pub(crate) fn is_quantized(checkpoint: &Checkpoint) -> bool {
    stored(checkpoint).any(StoredTensor::is_quantized)
}

/// What most of a checkpoint's bytes are stored as, in lower case.
pub(crate) fn stored_as(checkpoint: &Checkpoint) -> String {
    let mut bytes_of = BTreeMap::new();
    for tensor in stored(checkpoint) {
        *bytes_of.entry(tensor.kind()).or_insert(0) += tensor.byte_len();
    }
    let most = bytes_of.into_iter().max_by_key(|&(_, bytes)| bytes);
    most.map_or_else(|| "none".to_owned(), |(kind, _)| kind.to_ascii_lowercase())
}

fn stored(checkpoint: &Checkpoint) -> impl Iterator<Item = &StoredTensor> {
    checkpoint.names().filter_map(|name| checkpoint.stored(name))
}

/// How a model wants its answers to be generated: `generation_config.json`, or what `config.json` says of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct GenerationConfig {
    /// The end tokens; empty when neither file names one.
    pub(crate) end_ids: Vec<u32>,
    pub(crate) defaults: GenerationDefaults,
}

impl GenerationConfig {
    pub(crate) fn read(files: &ModelFiles, config: &Config) -> Result<Self> {
        let file = files.json("generation_config.json")?.unwrap_or(Value::Null);
        let text = config.section("text_config");
        let in_text = text.as_ref().and_then(|section| section.get("eos_token_id"));
        // As transformers: the generation config decides; models without one say it in their config.
        let sources = [file.get("eos_token_id"), config.root().get("eos_token_id"), in_text];
        let end_ids = sources.into_iter().flatten().map(ids).find(|ids| !ids.is_empty());
        let mut defaults = defaults(&file);
        if file.is_null() {
            // Before there was such a file, configs said it among everything else.
            let in_text = text.as_ref().and_then(|section| section.get("max_length"));
            defaults.max_length = in_text.or(config.root().get("max_length")).and_then(length);
        }
        Ok(Self { end_ids: end_ids.unwrap_or_default(), defaults })
    }
}

/// One id or a list of them.
fn ids(value: &Value) -> Vec<u32> {
    let id = |value: &Value| u32::try_from(value.as_u64()?).ok();
    match value {
        Value::Array(values) => values.iter().filter_map(id).collect(),
        single => id(single).into_iter().collect(),
    }
}

fn defaults(file: &Value) -> GenerationDefaults {
    let number = |key: &str| file.get(key).and_then(Value::as_f64).map(|value| value as f32);
    let count = |key: &str| file.get(key).and_then(Value::as_u64).and_then(|value| usize::try_from(value).ok());
    GenerationDefaults {
        do_sample: file.get("do_sample").and_then(Value::as_bool).unwrap_or(false),
        temperature: number("temperature"),
        top_k: count("top_k"),
        top_p: number("top_p"),
        min_p: number("min_p"),
        repetition_penalty: number("repetition_penalty"),
        max_tokens: file.get("max_new_tokens").and_then(length),
        max_length: file.get("max_length").and_then(length),
    }
}

/// A number of tokens.
fn length(value: &Value) -> Option<usize> {
    usize::try_from(value.as_u64()?).ok().filter(|&tokens| tokens > 0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn end_tokens_may_be_one_or_many() {
        assert_eq!(ids(&json!(5)), [5]);
        assert_eq!(ids(&json!([5, 6])), [5, 6]);
        assert!(ids(&json!(null)).is_empty() && ids(&json!(-1)).is_empty());
    }

    #[test]
    fn recommendations_are_read() {
        let file = json!({"do_sample": true, "temperature": 0.7, "top_k": 20, "max_new_tokens": 0});
        let defaults = defaults(&file);
        assert_eq!((defaults.do_sample, defaults.temperature, defaults.top_k), (true, Some(0.7), Some(20)));
        assert_eq!((defaults.top_p, defaults.max_tokens, defaults.max_length), (None, None, None));
        let file = json!({"max_new_tokens": 30, "max_length": 20});
        let defaults = super::defaults(&file);
        assert_eq!((defaults.max_tokens, defaults.max_length), (Some(30), Some(20)));
    }

    #[test]
    fn a_length_may_stand_in_an_old_config() {
        let read = |generation: Option<&[u8]>| {
            let config: &[u8] = br#"{"model_type": "blip", "text_config": {"max_length": 20}}"#;
            let files = [("config.json", Some(config)), ("generation_config.json", generation)];
            let files = files.into_iter().filter_map(|(name, content)| Some((name.to_owned(), content?.to_vec())));
            let files = ModelFiles::in_memory("m", files.collect());
            GenerationConfig::read(&files, &Config::load(&files).unwrap()).unwrap().defaults.max_length
        };
        assert_eq!(read(None), Some(20));
        assert_eq!(read(Some(b"{}")), None, "the file of its own decides");
        assert_eq!(read(Some(br#"{"max_length": 50}"#)), Some(50));
    }
}
