//! [`quantize`]: a model's folder once more, its matrices as codes, in the layout of MLX where MLX knows the family.
//!
//! Tensor by tensor, so that memory holds one matrix, or one layer's experts, at a time. Everything is written to a
//! folder beside the target and gets its name when it is complete: whatever goes wrong, nothing is left behind.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::DirEntry;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use ocelli_backend::{Held, Part, Precision, Quant, Role, WeightSource};
use ocelli_backend_cpu::{CpuBackend, CpuOptions};
use ocelli_formats::{
    Checkpoint, CheckpointWriter, CodeBits, Config, GroupedLayout, GroupedTensor, MlxName, MlxNames, ModelFiles,
    SharedBytes, StoredTensor, TensorData, WeightData,
};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::info::check_precision;
use crate::loaded::LoadProgress;
use crate::options::EngineOptions;
use crate::plan::Plan;

/// What was written.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QuantizeReport {
    /// The new folder.
    pub path: PathBuf,
    /// The package of MLX that reads it, too; `None` where MLX does not know the family and names are as published.
    pub mlx_package: Option<&'static str>,
    /// Bytes of all weights before.
    pub bytes_before: u64,
    /// Bytes of all weights now.
    pub bytes_after: u64,
    /// By kind of tensor, matrices first.
    pub kinds: Vec<QuantizedKind>,
    /// How long it took.
    pub seconds: f64,
}

/// Tensors that serve the same purpose and became the same.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QuantizedKind {
    /// What they are for, in a word or two.
    pub kind: &'static str,
    /// What they are now, such as `4-bit/64` or `BF16`.
    pub stored: String,
    /// How many.
    pub tensors: usize,
    /// Numbers in them.
    pub parameters: u64,
    /// Bytes before.
    pub bytes_before: u64,
    /// Bytes now.
    pub bytes_after: u64,
    /// Mean of the squared differences between the numbers before and now; 0 where nothing changed.
    pub mean_squared_error: f64,
    /// The same, relative to the mean of the squared numbers.
    pub relative_error: f64,
}

/// Writes a model's files to the folder `target` with the precision of `options`. A folder that is there already is
/// replaced with `force` only, and only where it is a model's. `progress` hears of every tensor and may end the work.
///
/// # Errors
/// [`Error::Cancelled`] when it was ended, [`Error::InvalidOption`] without a precision to quantise to, [`Error::AlreadyQuantized`], [`Error::Target`], and
/// whatever keeps the model from being loaded or files from being written.
pub fn quantize(
    files: &ModelFiles,
    target: &Path,
    options: &EngineOptions,
    force: bool,
    progress: &dyn Fn(LoadProgress) -> ControlFlow<()>,
) -> Result<QuantizeReport> {
    let start = Instant::now();
    options.validate()?;
    if options.quant == Quant::None && options.quant_vision == Quant::None {
        return Err(Error::InvalidOption { name: "quant", value: "none".into(), expected: "q4 or q8" });
    }
    check_target(target, files, force)?;
    let (config, checkpoint) = (Config::load(files)?, Checkpoint::open(files)?);
    check_precision(files.label(), &checkpoint, options)?;
    let backend =
        CpuBackend::new(CpuOptions { threads: options.threads, isa: options.isa.clone(), ..CpuOptions::default() })?;
    let source = WeightSource::from(&checkpoint).with_precision(options.precision());
    let plan = Plan::make(&backend, &config, source)?;
    let unfinished = Unfinished::create(target)?;
    let job = Job {
        checkpoint: &checkpoint,
        precision: options.precision(),
        names: MlxNames::of(config.model_type()),
        threads: backend.threads(),
        progress,
    };
    let outcome = job.write(plan.held, &unfinished.path)?;
    copy_files(files, &unfinished.path, &outcome.layouts, options)?;
    unfinished.finish(target)?;
    Ok(QuantizeReport {
        path: target.to_path_buf(),
        mlx_package: job.names.map(MlxNames::package),
        bytes_before: outcome.kinds.iter().map(|kind| kind.bytes_before).sum(),
        bytes_after: outcome.kinds.iter().map(|kind| kind.bytes_after).sum(),
        kinds: outcome.kinds,
        seconds: start.elapsed().as_secs_f64(),
    })
}

struct Job<'a> {
    checkpoint: &'a Checkpoint,
    precision: Precision,
    names: Option<&'static MlxNames>,
    threads: usize,
    progress: &'a dyn Fn(LoadProgress) -> ControlFlow<()>,
}

struct Outcome {
    kinds: Vec<QuantizedKind>,
    /// Of every module that became codes.
    layouts: BTreeMap<String, GroupedLayout>,
}

/// A tensor to write: a weight, or a stack of them in the order of their numbers.
struct Target {
    name: String,
    kind: &'static str,
    is_stack: bool,
    weights: BTreeMap<usize, Held>,
}

impl Job<'_> {
    fn write(&self, held: Vec<Held>, folder: &Path) -> Result<Outcome> {
        let targets = self.targets(held);
        let format = if self.names.is_some() { "mlx" } else { "pt" };
        let mut writer = CheckpointWriter::new(folder, format, targets.iter().map(|target| target.name.as_str()));
        let (mut sums, mut layouts) = (BTreeMap::<(&'static str, String), Sums>::new(), BTreeMap::new());
        let size = |target: &Target| self.stored(target).iter().map(|stored| stored.byte_len() as u64).sum::<u64>();
        let (total, mut done) = (targets.iter().map(size).sum(), 0);
        for target in &targets {
            let before = size(target);
            let (stored, one) = self.tensor(&mut writer, target, &mut layouts)?;
            let sum = sums.entry((target.kind, stored)).or_default();
            sum.add(&one, before);
            done += before;
            if (self.progress)(LoadProgress { done, total }).is_break() {
                return Err(Error::Cancelled);
            }
        }
        writer.finish()?;
        let mut kinds: Vec<QuantizedKind> =
            sums.into_iter().map(|((kind, stored), sum)| sum.of(kind, stored)).collect();
        kinds.sort_by_key(|kind| std::cmp::Reverse(kind.parameters));
        Ok(Outcome { kinds, layouts })
    }

    /// What there is to write, in the order of loading: the model's weights, and what MLX asks for besides.
    fn targets(&self, held: Vec<Held>) -> Vec<Target> {
        let used: BTreeSet<String> = held.iter().map(|weight| weight.stored.clone()).collect();
        let unused = self
            .checkpoint
            .names()
            .filter(|name| !used.contains(*name) && self.names.is_some_and(|names| names.asks_for_unused(name)));
        let unused = unused.filter_map(|name| {
            let shape = self.checkpoint.stored(name)?.shape().to_vec();
            let (name, role, part) = (name.to_owned(), Role::Values, Part::Vision);
            let weight = Held { name: name.clone(), stored: name, stack_idx: None, shape, role, part, bytes: 0 };
            Some(("not used", weight))
        });
        let mut places = BTreeMap::new();
        let mut targets: Vec<Target> = Vec::new();
        for (kind, weight) in held.into_iter().map(|weight| (kind_of(&weight), weight)).chain(unused) {
            // A matrix of a stack has a name of its own in the model only.
            let published = if weight.stack_idx.is_some() { &weight.name } else { &weight.stored };
            let as_published = || MlxName { name: published.clone(), stack_idx: None };
            let MlxName { name, stack_idx } = self.names.map_or_else(as_published, |names| names.name(published));
            let place = *places.entry(name.clone()).or_insert(targets.len());
            if place == targets.len() {
                targets.push(Target { name, kind, is_stack: stack_idx.is_some(), weights: BTreeMap::new() });
            }
            targets[place].weights.insert(stack_idx.unwrap_or(0), weight);
        }
        // Some weights are computed where the checkpoint leaves them out.
        targets.retain(|target| !self.stored(target).is_empty());
        targets
    }

    /// What the checkpoint has of it.
    fn stored(&self, target: &Target) -> Vec<StoredTensor> {
        let stored = |weight: &Held| {
            let stored = self.checkpoint.stored(&weight.stored)?;
            match weight.stack_idx {
                Some(idx) => stored.parts().into_iter().nth(idx),
                None => Some(stored.clone()),
            }
        };
        target.weights.values().filter_map(stored).collect()
    }

    /// Writes one tensor: what it became, and how it went.
    fn tensor(
        &self,
        writer: &mut CheckpointWriter,
        target: &Target,
        layouts: &mut BTreeMap<String, GroupedLayout>,
    ) -> Result<(String, Sums)> {
        let data = self.load(target)?;
        let weight = target.weights.values().next().expect("a target has a weight");
        let inputs = weight.shape[1..].iter().product::<usize>();
        let layout = self.precision.layout(weight.part, weight.role, inputs);
        // Codes of rows that are no whole groups have no place in the file.
        let layout = layout.filter(|layout| inputs.is_multiple_of(layout.group()));
        if let (Some(layout), Some(module)) = (layout, target.name.strip_suffix(".weight")) {
            let extents = if target.is_stack { &data.shape()[..2] } else { &data.shape()[..1] };
            let flat = vec![extents.iter().product(), inputs];
            let flat = TensorData::new(data.dtype(), flat, data.bytes().clone())?;
            if let Some(codes) =
                ocelli_backend::quantize(&flat, layout, self.threads).map_err(ocelli_models::Error::from)?
            {
                writer.grouped(&target.name, extents, &codes)?;
                layouts.insert(module.to_owned(), layout);
                let sums = Sums::between(&flat, &codes, self.threads)?;
                self.stored(target).iter().for_each(StoredTensor::release);
                return Ok((format!("{}-bit/{}", layout.bits().count(), layout.group()), sums));
            }
        }
        let is_convolution = self.names.is_some() && weight.shape.len() >= 4 && target.name.ends_with(".weight");
        if is_convolution {
            writer.channels_last(&target.name, &data)?;
        } else {
            writer.tensor(&target.name, &data)?;
        }
        let bytes_after = data.bytes().len() as u64;
        let sums = Sums { tensors: 1, parameters: data.n_elements() as u64, bytes_after, ..Sums::default() };
        Ok((data.dtype().name().to_owned(), sums))
    }

    /// The numbers of a tensor, one matrix of a stack behind the other: `[matrices, out, in]`.
    fn load(&self, target: &Target) -> Result<TensorData> {
        let float = |stored: &StoredTensor| match stored.load()? {
            WeightData::Float(data) => Ok(data),
            WeightData::Grouped(_) => {
                Err(Error::AlreadyQuantized { label: target.name.clone(), stored: stored.kind(), asked: "codes" })
            }
        };
        let parts = self.stored(target).iter().map(float).collect::<Result<Vec<TensorData>>>()?;
        let first = parts.first().expect("a target is stored");
        if !target.is_stack {
            return Ok(first.clone());
        }
        let shape = [&[parts.len()], first.shape()].concat();
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.bytes().iter().copied()).collect();
        Ok(TensorData::new(first.dtype(), shape, SharedBytes::from(bytes))?)
    }
}

/// What a tensor is for, in a word or two.
fn kind_of(weight: &Held) -> &'static str {
    match (weight.role, weight.part) {
        (Role::Embedding, _) => "embedding",
        (Role::Output, _) => "output layer",
        (Role::Matrix, Part::Text) => "decoder",
        (Role::Matrix, Part::Vision) => "vision",
        (Role::Patches | Role::Values, _) => "norms, biases",
    }
}

/// Sums over tensors of a kind.
#[derive(Default)]
struct Sums {
    tensors: usize,
    parameters: u64,
    bytes_before: u64,
    bytes_after: u64,
    squared_error: f64,
    squares: f64,
}

impl Sums {
    /// What quantising did to one matrix; rows are compared on all threads.
    fn between(data: &TensorData, codes: &GroupedTensor, threads: usize) -> Result<Self> {
        let (outputs, inputs) = (codes.outputs(), codes.inputs());
        let part = outputs.div_ceil(threads.max(1)).max(1);
        let compare = |from: usize| -> Result<(f64, f64)> {
            let (mut before, mut after) = (vec![0.0; inputs], vec![0.0; inputs]);
            let (mut squared_error, mut squares) = (0.0, 0.0);
            for row in from..outputs.min(from + part) {
                data.read_f32(row * inputs, &mut before)?;
                codes.read_row(row, &mut after);
                for (before, after) in before.iter().zip(&after) {
                    squared_error += f64::from(before - after).powi(2);
                    squares += f64::from(*before).powi(2);
                }
            }
            Ok((squared_error, squares))
        };
        let compare = &compare;
        let parts: Vec<Result<(f64, f64)>> = std::thread::scope(|scope| {
            let running: Vec<_> = (0..outputs).step_by(part).map(|from| scope.spawn(move || compare(from))).collect();
            running.into_iter().map(|part| part.join().expect("comparing does not panic")).collect()
        });
        let parameters = (outputs * inputs) as u64;
        let mut sums = Self { tensors: 1, parameters, bytes_after: codes.byte_len() as u64, ..Self::default() };
        for part in parts {
            let (squared_error, squares) = part?;
            sums.squared_error += squared_error;
            sums.squares += squares;
        }
        Ok(sums)
    }

    fn add(&mut self, one: &Self, bytes_before: u64) {
        self.tensors += one.tensors;
        self.parameters += one.parameters;
        self.bytes_before += bytes_before;
        self.bytes_after += one.bytes_after;
        self.squared_error += one.squared_error;
        self.squares += one.squares;
    }

    fn of(self, kind: &'static str, stored: String) -> QuantizedKind {
        QuantizedKind {
            kind,
            stored,
            tensors: self.tensors,
            parameters: self.parameters,
            bytes_before: self.bytes_before,
            bytes_after: self.bytes_after,
            mean_squared_error: self.squared_error / (self.parameters as f64).max(1.0),
            relative_error: if self.squares > 0.0 { self.squared_error / self.squares } else { 0.0 },
        }
    }
}

/// Copies what is neither weights nor another program's format, and says in the config what became of the weights.
fn copy_files(
    files: &ModelFiles,
    folder: &Path,
    layouts: &BTreeMap<String, GroupedLayout>,
    options: &EngineOptions,
) -> Result<()> {
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|source| io_error(parent.to_path_buf(), source))?;
        }
        std::fs::write(&path, bytes).map_err(|source| io_error(path, source))
    };
    let is_weights = |name: &str| {
        let format = name.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
        WEIGHTS.contains(&format.as_str()) || name.ends_with(".safetensors.index.json")
    };
    for name in files.names()?.iter().filter(|name| !is_weights(name)) {
        if let Some(bytes) = files.bytes(name)? {
            write(name, &bytes)?;
        }
    }
    for name in ["config.json", "config.tf5.json"] {
        let Some(Value::Object(mut config)) = files.json(name)? else { continue };
        let quantization = quantization(layouts, options);
        config.insert("quantization".into(), quantization.clone());
        // Readers of either era look here.
        config.insert("quantization_config".into(), quantization);
        write(name, format!("{:#}\n", Value::Object(config)).as_bytes())?;
    }
    Ok(())
}

/// The `quantization` of MLX: what most modules have, and the modules that differ.
fn quantization(layouts: &BTreeMap<String, GroupedLayout>, options: &EngineOptions) -> Value {
    let bits = if options.quant == Quant::Q4 { CodeBits::Four } else { CodeBits::Eight };
    let group = options.quant_group.unwrap_or(64);
    let numbers = |bits: CodeBits, group: usize| json!({"group_size": group, "bits": bits.count()});
    let mut quantization = Map::new();
    quantization.extend(numbers(bits, group).as_object().cloned().unwrap_or_default());
    quantization.insert("mode".into(), "affine".into());
    let others = layouts.iter().filter(|(_, layout)| layout.bits() != bits || layout.group() != group);
    quantization.extend(others.map(|(module, layout)| (module.clone(), numbers(layout.bits(), layout.group()))));
    Value::Object(quantization)
}

/// Whether the folder may be made or replaced: nothing of the user's own is.
fn check_target(target: &Path, source: &ModelFiles, force: bool) -> Result<()> {
    let refuse = |reason: &str| Err(Error::Target { path: target.to_path_buf(), reason: reason.to_owned() });
    let Ok(about) = std::fs::symlink_metadata(target) else { return Ok(()) };
    if !about.is_dir() {
        return refuse("there is a file of this name");
    }
    let entries = std::fs::read_dir(target).map_err(|source| io_error(target.to_path_buf(), source))?;
    let entries: Vec<_> = entries.filter_map(std::result::Result::ok).collect();
    if entries.is_empty() {
        return Ok(());
    }
    let is_source = source.path().is_some_and(
        |path| matches!((path.canonicalize(), target.canonicalize()), (Ok(path), Ok(target)) if path == target),
    );
    if is_source {
        return refuse("this is the model itself, which would be lost");
    }
    if !force {
        return refuse("the folder is not empty");
    }
    let is_other = |entry: &&DirEntry| entry.path().is_dir() || !is_of_model(&entry.file_name().to_string_lossy());
    if let Some(other) = entries.iter().find(is_other) {
        let name = other.file_name().to_string_lossy().into_owned();
        return refuse(&format!("the folder holds {name}, which is no file of a model, and is not replaced"));
    }
    if target.join("config.json").is_file() && target.join("model.safetensors").is_file() {
        return Ok(());
    }
    refuse("the folder holds no model and is not replaced")
}

/// Whether a file belongs to a model that was written here or downloaded.
fn is_of_model(name: &str) -> bool {
    let endings = [".safetensors", ".json", ".jinja", ".model", ".tiktoken"];
    let texts = ["merges.txt", "vocab.txt", "versions.txt", "README.md", "LICENSE", ".gitattributes"];
    endings.iter().any(|ending| name.ends_with(ending)) || texts.contains(&name)
}

/// A folder in the making, deleted unless it is finished.
struct Unfinished {
    path: PathBuf,
    is_finished: bool,
}

impl Unfinished {
    fn create(target: &Path) -> Result<Self> {
        let path = beside(target, "partial");
        std::fs::create_dir_all(&path).map_err(|source| io_error(path.clone(), source))?;
        Ok(Self { path, is_finished: false })
    }

    /// Puts it where the target is; an old target is deleted when the new one is in its place.
    fn finish(mut self, target: &Path) -> Result<()> {
        let rename =
            |from: &Path, to: &Path| std::fs::rename(from, to).map_err(|source| io_error(to.to_path_buf(), source));
        let old = target.exists().then(|| beside(target, "old"));
        if let Some(old) = &old {
            rename(target, old)?;
        }
        if let Err(error) = rename(&self.path, target) {
            if let Some(old) = &old {
                rename(old, target)?;
            }
            return Err(error);
        }
        self.is_finished = true;
        if let Some(old) = old {
            std::fs::remove_dir_all(&old).map_err(|source| io_error(old, source))?;
        }
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.is_finished {
            // Nothing more can be done about a folder that cannot be deleted.
            drop(std::fs::remove_dir_all(&self.path));
        }
    }
}

/// `folder/name` -> `folder/.name.<what>-<process>`.
fn beside(target: &Path, what: &str) -> PathBuf {
    let name = target.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    target.with_file_name(format!(".{name}.{what}-{}", std::process::id()))
}

fn io_error(path: PathBuf, source: std::io::Error) -> Error {
    ocelli_formats::Error::Io { path, source }.into()
}

/// Endings of weight files in any format.
const WEIGHTS: [&str; 10] = ["safetensors", "bin", "pt", "pth", "onnx", "gguf", "h5", "msgpack", "ckpt", "tflite"];
