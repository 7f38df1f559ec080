//! A model with everything that belongs to it, on this thread: what the engine's worker and the comparisons use.

use std::cell::Cell;
use std::time::Instant;

use ocelli_backend::{Backend, Held, Precision, Quant, WeightSource};
use ocelli_backend_cpu::{Arithmetic, CpuBackend, CpuOptions};
use ocelli_formats::{Checkpoint, Config, ModelFiles};
use ocelli_processors::Processor;

use crate::error::Result;
use crate::info::{GenerationConfig, ModelInfo, check_precision, is_quantized, stored_as};
use crate::memory::MemoryBudget;
use crate::options::EngineOptions;
use crate::pack_cache::Packs;
use crate::plan::Plan;
use crate::session::{ModelSession, Session};
use crate::speech::SpeechTokens;

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
    /// How it is spoken to, if it hears.
    pub(crate) speech: Option<SpeechTokens>,
    /// Its weights as they are in memory.
    pub weights: Vec<Held>,
    /// Milliseconds it took to load.
    pub load_ms: f64,
}

/// How far a load has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadProgress {
    /// Bytes of weights that are ready.
    pub done: u64,
    /// Bytes of all weights.
    pub total: u64,
}

impl LoadedModel {
    /// Loads a model's files.
    ///
    /// # Errors
    /// Whatever is missing, malformed, unsupported or too large, by file, key or tensor name.
    pub fn load(files: &ModelFiles, options: &EngineOptions) -> Result<Self> {
        Self::load_with_progress(files, options, &|_| {})
    }

    /// [`LoadedModel::load`]; `progress` hears of every weight.
    ///
    /// # Errors
    /// As [`LoadedModel::load`].
    pub fn load_with_progress(
        files: &ModelFiles,
        options: &EngineOptions,
        progress: &dyn Fn(LoadProgress),
    ) -> Result<Self> {
        Self::load_config(files, &Config::load(files)?, options, progress)
    }

    /// Loads a model's files with another `config.json` than its own.
    ///
    /// # Errors
    /// As [`LoadedModel::load`].
    pub fn load_with_config(files: &ModelFiles, config: &Config, options: &EngineOptions) -> Result<Self> {
        Self::load_config(files, config, options, &|_| {})
    }

    fn load_config(
        files: &ModelFiles,
        config: &Config,
        options: &EngineOptions,
        progress: &dyn Fn(LoadProgress),
    ) -> Result<Self> {
        let start = Instant::now();
        options.validate()?;
        let checkpoint = Checkpoint::open(files)?;
        check_precision(files.label(), &checkpoint, options)?;
        let generation = GenerationConfig::read(files, config)?;
        let backend = CpuBackend::new(CpuOptions {
            threads: options.threads,
            isa: options.isa.clone(),
            arithmetic: arithmetic(&checkpoint, options),
            kv: options.kv_cache,
        })?;
        let source = WeightSource::from(&checkpoint).with_precision(options.precision()).on_threads(backend.threads());
        let plan = Plan::make(&backend, config, source)?;
        let info = ModelInfo::describe(files.label(), config, stored_as(&checkpoint), &plan, &generation)?;
        let could_be_smaller = options.quant != Quant::Q4;
        MemoryBudget::new(options.memory_limit, info.weight_bytes).check_weights(&info.label, could_be_smaller)?;
        let packs = packs(files, &backend, &checkpoint, options);
        let (total, done) = (info.weight_bytes, Cell::new(0));
        let note = |weight: Held| {
            done.set(done.get() + weight.bytes);
            progress(LoadProgress { done: done.get(), total });
        };
        let source = source.with_observer(&note);
        let source = packs.iter().fold(source, |source, packs| source.with_store(packs));
        let (processor, model) = std::thread::scope(|scope| {
            // A large vocabulary takes as long to read as packed weights take to map.
            let processor = scope.spawn(|| processor(files, config));
            let model = ocelli_models::load(&backend, config, source);
            (processor.join(), model)
        });
        let (mut processor, speech) = processor.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let model = model?;
        processor.set_context_length(model.max_positions());
        if let Some(packs) = packs {
            packs.keep();
        }
        let mut end_ids = model.end_ids();
        if end_ids.is_empty() {
            end_ids = generation.end_ids;
        }
        let session = ModelSession::new(backend, model, config.model_type(), options.prefill_chunk);
        if end_ids.is_empty() {
            end_ids.extend(processor.tokenizer().named_token_id("eos_token"));
        }
        let load_ms = start.elapsed().as_secs_f64() * 1e3;
        tracing::info!(label = info.label, parameters = info.parameters, load_ms, "model loaded");
        Ok(Self { info, session: Box::new(session), processor, end_ids, speech, weights: plan.held, load_ms })
    }
}

/// The processor, and what marks speech for a model that hears.
fn processor(files: &ModelFiles, config: &Config) -> Result<(Processor, Option<SpeechTokens>)> {
    let processor = Processor::load(files, config)?;
    let hears = processor.mel_extractor().is_some();
    let speech = hears.then(|| SpeechTokens::read(files, processor.tokenizer())).transpose()?;
    Ok((processor, speech))
}

/// Who keeps weights in float32 wants float32; everybody else has rounded more than bfloat16 activations do.
pub(crate) fn arithmetic(checkpoint: &Checkpoint, options: &EngineOptions) -> Arithmetic {
    let is_exact = options.precision() == Precision::default() && stored_as(checkpoint) == "f32";
    if is_exact && !is_quantized(checkpoint) { Arithmetic::Float32 } else { Arithmetic::Bfloat16 }
}

/// Where packed weights come from and go to, if there will be any.
fn packs(files: &ModelFiles, backend: &CpuBackend, checkpoint: &Checkpoint, options: &EngineOptions) -> Option<Packs> {
    let cache = options.pack_cache.as_ref()?;
    if options.precision() == Precision::default() && !is_quantized(checkpoint) {
        return None;
    }
    let made_with = format!("{PACKS_VERSION} {} {:?}", backend.packing(), options.precision());
    Packs::open(cache, files, &made_with, backend.threads())
}

/// Changes whenever the quantiser or the choice of what is quantised does.
const PACKS_VERSION: &str = "1";
