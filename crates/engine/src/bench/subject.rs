//! The model that is measured, with what its runs need.

use std::time::Instant;

use ocelli_backend::{Held, RandomWeights, WeightSource};
use ocelli_backend_cpu::{Arithmetic, CpuBackend, CpuOptions};
use ocelli_formats::{Checkpoint, Config, ModelFiles};
use ocelli_processors::{Detail, Image, PreparedImage, Processor};

use super::cost::Cost;
use super::{BenchModel, BenchOptions, Picture, noise, published};
use crate::error::{Error, Result};
use crate::info::{GenerationConfig, ModelInfo};
use crate::loaded::LoadedModel;
use crate::memory;
use crate::plan::Plan;
use crate::session::{ModelSession, Session};

/// A loaded model and its picture.
pub(crate) struct Subject {
    pub(crate) info: ModelInfo,
    pub(crate) session: Box<dyn Session>,
    pub(crate) cost: Cost,
    /// Where the weights are, for people.
    pub(crate) weights_in: &'static str,
    pub(crate) load_ms: f64,
    /// Of the same files once more.
    pub(crate) second_load_ms: Option<f64>,
    pub(crate) threads: usize,
    pub(crate) isa: &'static str,
    picture: Source,
    /// The picture as the tower gets it; `None` without a picture.
    pub(crate) shape: Option<PreparedImage>,
}

/// How the picture of a run comes about.
enum Source {
    None,
    /// Through the model's own image processor.
    Pixels(Box<Processor>, Image, Detail),
    /// Without one: as the tower gets it.
    Tiles(Box<PreparedImage>),
}

impl Subject {
    pub(crate) fn load(model: BenchModel<'_>, options: &BenchOptions) -> Result<Self> {
        // A backend of its own: it tells what the options come to, and costs only sleeping threads.
        let backend = backend(options)?;
        let (threads, isa) = (backend.threads(), backend.isa());
        let mut subject = match model {
            BenchModel::Files(files) => Self::of_files(files, options, threads, isa)?,
            BenchModel::Random(name) => Self::random(name, &published::config(name)?, options)?,
        };
        subject.shape = subject.prepare()?;
        Ok(subject)
    }

    /// Loads the files twice: the first time may find them on the disk only, the second time they are in memory.
    fn of_files(files: &ModelFiles, options: &BenchOptions, threads: usize, isa: &'static str) -> Result<Self> {
        let first = LoadedModel::load(files, &options.engine)?;
        let load_ms = first.load_ms;
        drop(first);
        let loaded = LoadedModel::load(files, &options.engine)?;
        let checkpoint = Checkpoint::open(files)?;
        let mut tensors = checkpoint.names().filter_map(|name| checkpoint.tensor(name));
        let is_mapped = tensors.any(|tensor| tensor.bytes().is_mapped());
        let cost = cost(&loaded.weights);
        let picture = if loaded.processor.has_images() {
            match options.picture {
                Picture::None => Source::None,
                Picture::Auto => Source::Pixels(Box::new(loaded.processor), noise::picture(512, 512), options.detail),
                Picture::Size(width, height) => {
                    Source::Pixels(Box::new(loaded.processor), noise::picture(width, height), options.detail)
                }
            }
        } else {
            no_picture(options, &loaded.info)?
        };
        Ok(Self {
            info: loaded.info,
            session: loaded.session,
            cost,
            weights_in: if is_mapped { "mapped file" } else { "memory" },
            load_ms,
            second_load_ms: Some(loaded.load_ms),
            threads,
            isa,
            picture,
            shape: None,
        })
    }

    /// Builds what `config` describes with random weights, if there is memory for them.
    pub(crate) fn random(name: &str, config: &Config, options: &BenchOptions) -> Result<Self> {
        let start = Instant::now();
        let available = options.engine.memory_limit.or_else(memory::available).unwrap_or(u64::MAX);
        let weights = RandomWeights::new(1);
        let backend = backend(options)?;
        let (threads, isa) = (backend.threads(), backend.isa());
        let source = WeightSource::from(&weights).with_precision(options.engine.precision()).on_threads(threads);
        let plan = Plan::make(&backend, config, source)?;
        let info = ModelInfo::describe(name, config, "bf16".to_owned(), &plan, &GenerationConfig::default())?;
        if info.weight_bytes > available {
            let what = format!("the random weights of {name}");
            let advice = "close other programs or choose a smaller model";
            return Err(Error::OutOfMemory { what, needed: info.weight_bytes, available, advice });
        }
        let cost = cost(&plan.held);
        let model = ocelli_models::load(&backend, config, source)?;
        let session = ModelSession::new(backend, model, config.model_type(), options.engine.prefill_chunk);
        let load_ms = start.elapsed().as_secs_f64() * 1e3;
        let picture = match (info.sees_images, options.picture) {
            (false, _) => no_picture(options, &info)?,
            (true, Picture::None) => Source::None,
            (true, _) => Source::Tiles(Box::new(tiles(config, options))),
        };
        let session = Box::new(session);
        let weights_in = "memory (random values)";
        Ok(Self { info, session, cost, weights_in, load_ms, second_load_ms: None, threads, isa, picture, shape: None })
    }

    /// The picture as the tower gets it, made anew.
    pub(crate) fn prepare(&self) -> Result<Option<PreparedImage>> {
        match &self.picture {
            Source::None => Ok(None),
            Source::Tiles(image) => Ok(Some((**image).clone())),
            Source::Pixels(processor, image, detail) => match processor.image_processor() {
                Some(images) => Ok(Some(images.prepare_with(image, *detail)?)),
                None => Ok(None),
            },
        }
    }

    /// The prompt of every run.
    pub(crate) fn prompt(&self, text_tokens: usize) -> Vec<u32> {
        let image = self.session.image_token_id().zip(self.shape.as_ref().map(|image| image.vision_tokens));
        noise::prompt(image, text_tokens, self.session.vocab_size())
    }
}

fn backend(options: &BenchOptions) -> Result<CpuBackend> {
    Ok(CpuBackend::new(CpuOptions {
        threads: options.engine.threads,
        isa: options.engine.isa.clone(),
        // As a checkpoint in bfloat16 would be.
        arithmetic: Arithmetic::Bfloat16,
    })?)
}

fn cost(weights: &[Held]) -> Cost {
    Cost::of(weights.iter().map(|weight| (weight.name.as_str(), &weight.shape[..], weight.bytes as usize)))
}

/// A text model's picture: none, unless one was asked for.
fn no_picture(options: &BenchOptions, info: &ModelInfo) -> Result<Source> {
    match options.picture {
        Picture::Size(..) => Err(Error::NoVision { model_type: info.model_type.clone() }),
        Picture::Auto | Picture::None => Ok(Source::None),
    }
}

/// As many of the tower's tiles as cover the picture; one for [`Detail::Low`].
fn tiles(config: &Config, options: &BenchOptions) -> PreparedImage {
    let number = |section: &str, key: &str| {
        let section = if section.is_empty() { Some(config.root().clone()) } else { config.section(section) };
        let value = section.and_then(|section| section.get(key).and_then(serde_json::Value::as_u64));
        value.map_or(1, |value| value.max(1) as usize)
    };
    let (side, patch) = (number("vision_config", "image_size"), number("vision_config", "patch_size"));
    let tokens = (side / patch / number("", "scale_factor")).pow(2);
    let grid = match options.picture {
        Picture::Size(width, height) if options.detail != Detail::Low => {
            [height.div_ceil(side).max(1), width.div_ceil(side).max(1)]
        }
        _ => [1, 1],
    };
    noise::tiles(grid, side, tokens)
}
