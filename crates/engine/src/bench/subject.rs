//! The model that is measured, with what its runs need.

use std::time::Instant;

use ocelli_backend::{Held, RandomWeights, WeightSource};
use ocelli_backend_cpu::{Arithmetic, CpuBackend, CpuOptions};
use ocelli_formats::{Checkpoint, Config, ModelFiles};
use ocelli_processors::{
    Detail, Image, ImageProcessor, LogMel, MelExtractor, PreparedImage, image_processor, mel_extractor,
};
use serde::Serialize;

use super::cost::Cost;
use super::{BenchModel, BenchOptions, Picture, noise, pages, passes, published};
use crate::error::{Error, Result};
use crate::info::{GenerationConfig, ModelInfo};
use crate::loaded::LoadedModel;
use crate::memory;
use crate::options::EngineOptions;
use crate::plan::Plan;
use crate::session::{ModelSession, Session};

/// A loaded model and its picture.
pub(crate) struct Subject {
    pub(crate) info: ModelInfo,
    pub(crate) session: Box<dyn Session>,
    pub(crate) cost: Cost,
    /// Where the weights are, for people.
    pub(crate) weights_in: &'static str,
    pub(crate) loads: Loads,
    pub(crate) threads: usize,
    pub(crate) isa: &'static str,
    picture: Source,
    /// For a model that hears: it gets half a minute of noise instead of a picture.
    ears: Option<MelExtractor>,
    /// The picture as the tower gets it; `None` without a picture.
    pub(crate) shape: Option<PreparedImage>,
}

/// How long loading takes, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Loads {
    /// The first load, whatever the system then held in memory; of building, for random weights.
    pub load_ms: f64,
    /// After the system was asked to drop the files from memory; `None` where it cannot be asked.
    pub cold_load_ms: Option<f64>,
    /// The same up to the first token of an answer: weights that are mapped are read when they are needed.
    pub cold_ready_ms: Option<f64>,
    /// With everything in memory.
    pub warm_load_ms: Option<f64>,
    /// The same up to the first token.
    pub warm_ready_ms: Option<f64>,
}

/// How the picture of a run comes about.
enum Source {
    None,
    /// What the model's own image processor makes of it.
    Pixels(Box<dyn ImageProcessor>, Image, Detail),
}

impl Subject {
    pub(crate) fn load(model: BenchModel<'_>, options: &BenchOptions) -> Result<Self> {
        // A backend of its own: it tells what the options come to, and costs only sleeping threads.
        let backend = backend(&options.engine)?;
        let (threads, isa) = (backend.threads(), backend.isa());
        let mut subject = match model {
            BenchModel::Files(files) => Self::of_files(files, options, (threads, isa))?,
            BenchModel::Random(name) => Self::random(&published::files(name)?, options)?,
        };
        subject.shape = subject.prepare()?;
        Ok(subject)
    }

    /// Loads the files three times: as they are, from the disk, from memory. The last one stays.
    fn of_files(files: &ModelFiles, options: &BenchOptions, processor: (usize, &'static str)) -> Result<Self> {
        let open = || Self::open(files, options, processor);
        let first = open()?.loads;
        let cold = if pages::forget(files, &options.engine) {
            let mut cold = open()?;
            Some((cold.loads.load_ms, cold.first_token_ms(options)?))
        } else {
            None
        };
        let mut warm = open()?;
        let warm_load_ms = warm.loads.load_ms;
        let warm_first_ms = warm.first_token_ms(options)?;
        warm.loads = Loads {
            load_ms: first.load_ms,
            cold_load_ms: cold.map(|(load, _)| load),
            cold_ready_ms: cold.map(|(load, first)| load + first),
            warm_load_ms: Some(warm_load_ms),
            warm_ready_ms: Some(warm_load_ms + warm_first_ms),
        };
        Ok(warm)
    }

    /// Milliseconds of an answer of one token.
    fn first_token_ms(&mut self, options: &BenchOptions) -> Result<f64> {
        self.shape = self.prepare()?;
        let ids = self.prompt(options.prompt_tokens);
        let options = BenchOptions { max_tokens: 1, beams: 1, batch: 1, ..options.clone() };
        super::check_room(self, &options, ids.len())?;
        Ok(passes::measure(self, &ids, &options)?.ttft_ms)
    }

    fn open(files: &ModelFiles, options: &BenchOptions, (threads, isa): (usize, &'static str)) -> Result<Self> {
        let loaded = LoadedModel::load(files, &options.engine)?;
        let checkpoint = Checkpoint::open(files)?;
        let mut tensors = checkpoint.names().filter_map(|name| checkpoint.tensor(name));
        let is_mapped = tensors.any(|tensor| tensor.bytes().is_mapped());
        let config = Config::load(files)?;
        let cost = cost(&loaded.weights, &config);
        let picture = picture(loaded.processor.into_image_processor(), options, &loaded.info, options.detail)?;
        Ok(Self {
            info: loaded.info,
            session: loaded.session,
            cost,
            weights_in: if is_mapped { "mapped file" } else { "memory" },
            loads: Loads { load_ms: loaded.load_ms, ..Loads::default() },
            threads,
            isa,
            picture,
            ears: mel_extractor(files, &config)?,
            shape: None,
        })
    }

    /// Builds what a config describes with random weights, if there is memory for them.
    pub(crate) fn random(files: &ModelFiles, options: &BenchOptions) -> Result<Self> {
        let start = Instant::now();
        let (name, config) = (files.label(), &Config::load(files)?);
        let available = options.engine.memory_limit.or_else(memory::available).unwrap_or(u64::MAX);
        let weights = RandomWeights::new(1);
        let backend = backend(&options.engine)?;
        let (threads, isa) = (backend.threads(), backend.isa());
        let source = WeightSource::from(&weights).with_precision(options.engine.precision()).on_threads(threads);
        let plan = Plan::make(&backend, config, source)?;
        let info = ModelInfo::describe(name, config, "bf16".to_owned(), &plan, &GenerationConfig::default())?;
        if info.weight_bytes > available {
            let what = format!("the random weights of {name}");
            let advice = "close other programs or choose a smaller model";
            return Err(Error::OutOfMemory { what, needed: info.weight_bytes, available, advice });
        }
        let cost = cost(&plan.held, config);
        let model = ocelli_models::load(&backend, config, source)?;
        let session = ModelSession::new(backend, model, config.model_type(), options.engine.prefill_chunk);
        let load_ms = start.elapsed().as_secs_f64() * 1e3;
        // One view of a picture whose size nobody chose.
        let detail = match (options.picture, options.detail) {
            (Picture::Auto, Detail::Auto | Detail::High) => Detail::Low,
            (_, detail) => detail,
        };
        let picture = picture(image_processor(files, config)?, options, &info, detail)?;
        let session = Box::new(session);
        let weights_in = "memory (random values)";
        let loads = Loads { load_ms, ..Loads::default() };
        let ears = mel_extractor(files, config)?;
        Ok(Self { info, session, cost, weights_in, loads, threads, isa, picture, ears, shape: None })
    }

    /// The picture as the tower gets it, made anew.
    pub(crate) fn prepare(&self) -> Result<Option<PreparedImage>> {
        match &self.picture {
            Source::None => Ok(None),
            Source::Pixels(processor, image, detail) => Ok(Some(processor.prepare_with(image, *detail)?)),
        }
    }

    /// The spectrogram of a window full of noise, made anew.
    pub(crate) fn hear(&self) -> Option<LogMel> {
        self.ears.as_ref().map(|ears| ears.one_window(&noise::recording(ears.window_samples())))
    }

    /// The prompt of every run.
    pub(crate) fn prompt(&self, text_tokens: usize) -> Vec<u32> {
        let image = self.session.image_input().token_id().zip(self.shape.as_ref().map(|image| image.vision_tokens));
        noise::prompt(image, text_tokens, self.session.vocab_size())
    }
}

/// What the options come to.
pub(crate) fn backend(options: &EngineOptions) -> Result<CpuBackend> {
    Ok(CpuBackend::new(CpuOptions {
        threads: options.threads,
        isa: options.isa.clone(),
        // As a checkpoint in bfloat16 would be.
        arithmetic: Arithmetic::Bfloat16,
        kv: options.kv_cache,
    })?)
}

fn cost(weights: &[Held], config: &Config) -> Cost {
    let text = config.section("language_config").or_else(|| config.section("text_config"));
    let count = |key| text.as_ref()?.get(key)?.as_u64().filter(|&count| count > 0);
    let experts = count("num_experts_per_tok").zip(count("n_routed_experts"));
    let tensors = weights.iter().map(|weight| (weight.name.as_str(), &weight.shape[..], weight.bytes as usize));
    Cost::of(tensors, experts.map_or([1, 1], |(chosen, all)| [chosen, all]))
}

/// The picture of every run; a text model has none.
fn picture(
    processor: Option<Box<dyn ImageProcessor>>,
    options: &BenchOptions,
    info: &ModelInfo,
    detail: Detail,
) -> Result<Source> {
    let Some(processor) = processor else {
        return match options.picture {
            Picture::Size(..) => Err(Error::NoVision { model_type: info.model_type.clone() }),
            Picture::Auto | Picture::None => Ok(Source::None),
        };
    };
    processor.check_detail(detail)?;
    Ok(match options.picture {
        Picture::None => Source::None,
        Picture::Auto => Source::Pixels(processor, noise::picture(512, 512), detail),
        Picture::Size(width, height) => Source::Pixels(processor, noise::picture(width, height), detail),
    })
}
