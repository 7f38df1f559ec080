//! A model with everything that belongs to it, on this thread: what the engine's worker and the comparisons use.

use std::time::Instant;

use ocelli_backend_cpu::{CpuBackend, CpuOptions};
use ocelli_formats::{Checkpoint, Config, ModelFiles};
use ocelli_processors::Processor;

use crate::error::Result;
use crate::info::{GenerationConfig, ModelInfo};
use crate::memory::MemoryBudget;
use crate::options::EngineOptions;
use crate::session::{ModelSession, Session};

/// A loaded model and its processor.
pub struct LoadedModel {
    /// What it is.
    pub info: ModelInfo,
    /// Weights and cache.
    pub session: Box<dyn Session>,
    /// Messages and pictures to ids and pixel values.
    pub processor: Processor,
    /// Tokens that end an answer.
    pub end_ids: Vec<u32>,
    /// Milliseconds it took to load.
    pub load_ms: f64,
}

impl LoadedModel {
    /// Loads a model's files.
    ///
    /// # Errors
    /// Whatever is missing, malformed, unsupported or too large, by file, key or tensor name.
    pub fn load(files: &ModelFiles, options: &EngineOptions) -> Result<Self> {
        Self::load_with_config(files, &Config::load(files)?, options)
    }

    /// Loads a model's files with another `config.json` than its own.
    ///
    /// # Errors
    /// As [`LoadedModel::load`].
    pub fn load_with_config(files: &ModelFiles, config: &Config, options: &EngineOptions) -> Result<Self> {
        let start = Instant::now();
        let checkpoint = Checkpoint::open(files)?;
        let generation = GenerationConfig::read(files, config)?;
        let mut info = ModelInfo::describe(files.label(), config, &checkpoint, &generation)?;
        MemoryBudget::new(options.memory_limit, info.weight_bytes).check_weights(&info.label)?;
        let processor = Processor::load(files, config)?;
        let backend = CpuBackend::new(CpuOptions { threads: options.threads, isa: options.isa.clone() })?;
        let model = ocelli_models::load(&backend, config, &checkpoint)?;
        let session = ModelSession::new(backend, model, config.model_type(), options.prefill_chunk);
        info.context_length = session.context_length();
        info.kv_bytes_per_token = session.kv_bytes_per_token();
        let mut end_ids = generation.end_ids;
        if end_ids.is_empty() {
            end_ids.extend(processor.tokenizer().named_token_id("eos_token"));
        }
        let load_ms = start.elapsed().as_secs_f64() * 1e3;
        tracing::info!(label = info.label, parameters = info.parameters, load_ms, "model loaded");
        Ok(Self { info, session: Box::new(session), processor, end_ids, load_ms })
    }
}
