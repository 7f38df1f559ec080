//! Is a model what the reference implementation is? Every stage is compared with tensors that the reference saved.
//!
//! A parity folder is a model folder that also holds `reference.json` (`prompt`, run as it is; optionally
//! `max_new_tokens`, and `image_tokens`, the most of a picture), `reference.safetensors` and the prompt's pictures
//! `image0.png`, `image1.png` and so on, its videos `video0.gif` and so on, or its recording as a tensor `in.waveform` of
//! samples. With a `model` in `reference.json` the model is in that other folder. Of the tensors these are compared,
//! where they exist: `in.input_ids`,
//! `in.pixel_values`, `in.input_features`, `out.image_features` (or one tensor per picture, `out.image_features.0` …; of
//! features that deeper layers get too, the first columns), `out.audio_features` (the first of them), `out.logits`,
//! `out.greedy_ids`, `out.beam<N>_ids` and `out.beam<N>_scores`.
//! With a `config.tf5.json` (the spelling of transformers 5) all of it runs once more.
//!
//! The relative difference of two tensors a (ours) and b (the reference's) is `max |a - b| / max |b|`: one number for
//! the whole tensor, so that values near zero do not decide.

use std::fmt;
use std::path::{Path, PathBuf};

use ocelli_backend::Cancel;
use ocelli_formats::{Config, ModelFiles, Safetensors, TensorData};
use ocelli_processors::{Detail, Image, Processor, Prompt, Video, VideoOptions, VideoSource, Visuals};
use serde::Serialize;
use serde_json::Value;

use crate::compare::Difference;
use crate::error::{Error, Result};
use crate::generate::{Outcome, Task, generate};
use crate::loaded::LoadedModel;
use crate::metamorphic::{self, MetamorphicReport};
use crate::options::{EngineOptions, GenerateOptions};
use crate::session::{ImageFeatures, LogitRows, Prefill};

/// Pixel values and ids must be equal.
pub const EXACT: f64 = 0.0;
/// Tolerance of spectrograms, relative.
pub const MEL_TOLERANCE: f64 = 1e-4;
/// Tolerance of image features and logits, relative.
pub const TENSOR_TOLERANCE: f64 = 2e-4;
/// Tolerance of beam scores, absolute.
pub const SCORE_TOLERANCE: f64 = 1e-3;

/// The comparison of a whole folder.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ParityReport {
    /// The folder.
    pub label: String,
    /// The model's family.
    pub model_type: String,
    /// In the order of computation, so that the first one that fails is where the divergence begins.
    pub rows: Vec<ParityRow>,
}

/// The comparison of one tensor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ParityRow {
    /// Which config the model was loaded with, `config.json` or `config.tf5.json`.
    pub config: String,
    /// Name of the reference's tensor.
    pub name: String,
    /// Numbers compared.
    pub elements: usize,
    /// `max |a - b|` of our values a and the reference's b; for ids, how many differ.
    pub worst_absolute: f64,
    /// `max |a - b| / max |b|`; for ids, the share that differs.
    pub worst_relative: f64,
    /// What is accepted: for beam scores of the absolute difference, otherwise of the relative one.
    pub tolerance: f64,
    /// Whether it is within the tolerance.
    pub pass: bool,
    /// What is wrong, where numbers do not say it.
    pub note: Option<String>,
}

/// Compares a folder's model with its references.
///
/// # Errors
/// What is missing or malformed in the folder, and whatever keeps the model from running at all. Differences are no
/// errors but rows of the report.
pub fn check(folder: &Path) -> Result<ParityReport> {
    check_with(folder, &EngineOptions::new())
}

/// [`check`] with other options than the default ones.
///
/// # Errors
/// As [`check`].
pub fn check_with(folder: &Path, options: &EngineOptions) -> Result<ParityReport> {
    let reference = Reference::read(folder)?;
    let files = reference.model(folder)?;
    let (mut rows, mut model_type) = (Vec::new(), String::new());
    for name in ["config.json", "config.tf5.json"] {
        let Some(bytes) = files.bytes(name)? else { continue };
        let config = Config::parse(&bytes, &files.label_of(name))?;
        let model = LoadedModel::load_with_config(&files, &config, options)?;
        model_type = model.info.model_type.clone();
        let mut run = Run { reference: &reference, config: name, rows: Vec::new(), model };
        run.compare()?;
        rows.append(&mut run.rows);
    }
    Ok(ParityReport { label: folder.display().to_string(), model_type, rows })
}

/// Checks the promises of [`crate::metamorphic`] with the prompt and the pictures of a parity folder.
///
/// # Errors
/// As [`check`].
pub fn check_promises(folder: &Path, options: &EngineOptions) -> Result<MetamorphicReport> {
    let reference = Reference::read(folder)?;
    let mut model = LoadedModel::load(&reference.model(folder)?, options)?;
    let (images, videos) = (reference.images(&model.processor)?, reference.videos(&model.processor)?);
    let shown = Visuals { images: &images, videos: &videos };
    let (detail, recording) = (reference.video_options.detail, reference.recording()?);
    metamorphic::check(&mut model, &reference.prompt, shown, detail, recording.as_deref())
}

impl ParityReport {
    /// Whether every row passed, and there was one.
    pub fn passed(&self) -> bool {
        !self.rows.is_empty() && self.first_divergence().is_none()
    }

    /// The first row that failed.
    pub fn first_divergence(&self) -> Option<&ParityRow> {
        self.rows.iter().find(|row| !row.pass)
    }
}

impl fmt::Display for ParityReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "{}", self.label)?;
        for row in &self.rows {
            let verdict = if row.pass { "ok  " } else { "FAIL" };
            let ParityRow { config, name, elements, worst_absolute, worst_relative, tolerance, .. } = row;
            write!(formatter, "{verdict} {config:<15} {name:<22} {elements:>8} values  ")?;
            write!(formatter, "abs {worst_absolute:.2e}  rel {worst_relative:.2e}  (tolerance {tolerance:.0e})")?;
            writeln!(formatter, "{}{}", if row.note.is_some() { "  " } else { "" }, row.note.as_deref().unwrap_or(""))?;
        }
        match self.first_divergence() {
            Some(row) => write!(formatter, "the first tensor that diverges is {} ({})", row.name, row.config),
            None => write!(formatter, "no tensor diverges"),
        }
    }
}

/// What the reference saved.
struct Reference {
    prompt: String,
    max_new_tokens: Option<usize>,
    images: Vec<Vec<u8>>,
    videos: Vec<Vec<u8>>,
    video_options: VideoOptions,
    /// The model's folder, from this one.
    model: Option<String>,
    tensors: Safetensors,
    path: PathBuf,
}

impl Reference {
    fn read(folder: &Path) -> Result<Self> {
        let about = folder.join("reference.json");
        let json = std::fs::read(&about).map_err(|error| bad(about.clone(), &reason(&error)))?;
        let json: Value = serde_json::from_slice(&json).map_err(|error| bad(about.clone(), &error.to_string()))?;
        let prompt = json.get("prompt").and_then(Value::as_str);
        let prompt = prompt.ok_or_else(|| bad(about, "it has no text `prompt`"))?;
        let count = |value: &Value, key: &str| value.get(key)?.as_u64().and_then(|count| usize::try_from(count).ok());
        let video_options = VideoOptions {
            fps: json.get("video").and_then(|video| video.get("fps")?.as_f64()),
            max_frames: json.get("video").and_then(|video| count(video, "max_frames")),
            detail: count(&json, "image_tokens").map_or(Detail::Auto, Detail::AtMost),
        };
        let path = folder.join("reference.safetensors");
        let tensors = std::fs::read(&path).map_err(|error| bad(path.clone(), &reason(&error)))?;
        let all = |kind: &str, extension: &str| {
            let read = |number: usize| std::fs::read(folder.join(format!("{kind}{number}.{extension}"))).ok();
            (0..).map_while(read).collect()
        };
        Ok(Self {
            prompt: prompt.to_owned(),
            max_new_tokens: count(&json, "max_new_tokens"),
            images: all("image", "png"),
            videos: all("video", "gif"),
            video_options,
            model: json.get("model").and_then(Value::as_str).map(str::to_owned),
            tensors: Safetensors::parse(tensors.into(), &path.display().to_string())?,
            path,
        })
    }

    fn model(&self, folder: &Path) -> Result<ModelFiles> {
        let other = self.model.as_ref().map(|other| folder.join(other));
        Ok(ModelFiles::open(other.as_deref().unwrap_or(folder))?)
    }

    fn videos(&self, processor: &Processor) -> Result<Vec<Video>> {
        let read = |bytes: &Vec<u8>| {
            let source = VideoSource::animation(bytes.clone(), processor.image_limits())?;
            processor.read_video(&source, &self.video_options)
        };
        Ok(self.videos.iter().map(read).collect::<ocelli_processors::Result<_>>()?)
    }

    fn images(&self, processor: &Processor) -> Result<Vec<Image>> {
        let decoded = self.images.iter().map(|bytes| processor.decode_image(bytes));
        Ok(decoded.collect::<ocelli_processors::Result<_>>()?)
    }

    fn recording(&self) -> Result<Option<Vec<f32>>> {
        Ok(self.tensors.tensor("in.waveform").map(|samples| samples.to_f32()).transpose()?)
    }

    /// The new tokens of `name`; the reference may have saved the prompt with them.
    fn new_ids(&self, name: &str, prompt: &[u32]) -> Result<Option<Vec<u32>>> {
        let Some(tensor) = self.tensors.tensor(name) else { return Ok(None) };
        let ids = self.ids(name, &tensor)?;
        Ok(Some(ids.strip_prefix(prompt).map_or_else(|| ids.clone(), <[u32]>::to_vec)))
    }

    fn ids(&self, name: &str, tensor: &TensorData) -> Result<Vec<u32>> {
        let id = |id: i64| u32::try_from(id).map_err(|_| bad(self.path.clone(), &format!("{name} holds the id {id}")));
        tensor.to_i64()?.into_iter().map(id).collect()
    }

    /// `(name of the ids, number of beams)` of every saved search.
    fn searches(&self) -> Vec<(String, usize)> {
        let beams = |name: &str| name.strip_prefix("out.beam")?.strip_suffix("_ids")?.parse().ok();
        self.tensors.names().filter_map(|name| Some((name.to_owned(), beams(name)?))).collect()
    }

    /// Most new tokens that the reference was asked for: as the longest of its answers, unless it says so itself.
    fn limit(&self, prompt: &[u32]) -> Result<usize> {
        let mut longest = 1;
        let names = self.searches().into_iter().map(|(name, _)| name);
        for name in names.chain(["out.greedy_ids".to_owned()]) {
            longest = longest.max(self.new_ids(&name, prompt)?.map_or(0, |ids| ids.len()));
        }
        Ok(self.max_new_tokens.unwrap_or(longest))
    }
}

/// One model on its way through the stages.
struct Run<'a> {
    reference: &'a Reference,
    config: &'static str,
    rows: Vec<ParityRow>,
    model: LoadedModel,
}

impl Run<'_> {
    fn compare(&mut self) -> Result<()> {
        let prompt = self.compare_prompt()?;
        let mut features = self.compare_features(&prompt)?;
        features.extend(self.compare_recording()?);
        self.compare_logits(&prompt, &features)?;
        let held_ids = self.model.session.decoder_ids(&prompt.ids);
        let max_tokens = Some(self.reference.limit(&held_ids)?);
        let greedy = GenerateOptions { max_tokens, ..GenerateOptions::greedy() };
        self.compare_answer("out.greedy_ids", &greedy, &prompt, &features)?;
        for (name, num_beams) in self.reference.searches() {
            let options = GenerateOptions { num_beams, ..greedy.clone() };
            let Some(outcome) = self.compare_answer(&name, &options, &prompt, &features)? else { continue };
            let scores = name.replace("_ids", "_scores");
            if let (Some(expected), Some(score)) = (self.reference.tensors.tensor(&scores), outcome.score) {
                let row = self.row(&scores, &[score], &expected.to_f32()?, SCORE_TOLERANCE);
                self.rows.push(ParityRow { pass: row.note.is_none() && row.worst_absolute <= SCORE_TOLERANCE, ..row });
            }
        }
        Ok(())
    }

    fn compare_prompt(&mut self) -> Result<Prompt> {
        let processor = &self.model.processor;
        let (images, videos) = (self.reference.images(processor)?, self.reference.videos(processor)?);
        let shown = Visuals { images: &images, videos: &videos };
        let detail = self.reference.video_options.detail;
        let prompt = processor.raw_prompt_with(&self.reference.prompt, shown, detail)?;
        if let Some(expected) = self.reference.tensors.tensor("in.input_ids") {
            let expected = self.reference.ids("in.input_ids", &expected)?;
            self.rows.push(self.id_row("in.input_ids", &prompt.ids, &expected));
        }
        if let Some(expected) = self.reference.tensors.tensor("in.pixel_values") {
            let pixels: Vec<f32> = prompt.images.iter().flat_map(|image| &image.pixel_values).copied().collect();
            let expected = expected.to_f32()?;
            // Of many tiles the reference may have saved the first ones only.
            let saved =
                if prompt.images.iter().any(|image| image.shape[0] > 1) { expected.len() } else { pixels.len() };
            let pixels = &pixels[..saved.min(pixels.len())];
            self.rows.push(self.row("in.pixel_values", pixels, &expected, EXACT));
        }
        Ok(prompt)
    }

    fn compare_features(&mut self, prompt: &Prompt) -> Result<Vec<ImageFeatures>> {
        let session = &self.model.session;
        let features = prompt
            .images
            .iter()
            .map(|image| session.encode_image(image, &Cancel::new()))
            .collect::<Result<Vec<_>>>()?;
        let names = numbered(&self.reference.tensors, "out.image_features");
        let saved = names.iter().find_map(|name| self.reference.tensors.tensor(name)?.shape().last().copied());
        let ours: Vec<f32> = features
            .iter()
            .flat_map(|features| {
                let values = session.read_features(features);
                let width = (values.len() / features.tokens().max(1)).max(1);
                // Features for deeper layers come behind those that the reference saved.
                let kept = saved.unwrap_or(width).min(width);
                values.chunks_exact(width).flat_map(|row| row[..kept].to_vec()).collect::<Vec<_>>()
            })
            .collect();
        let mut rest = &ours[..];
        for name in names {
            let Some(expected) = self.reference.tensors.tensor(&name) else { continue };
            let expected = expected.to_f32()?;
            let (part, after) = rest.split_at(expected.len().min(rest.len()));
            self.rows.push(self.row(&name, part, &expected, TENSOR_TOLERANCE));
            rest = after;
        }
        Ok(features)
    }

    /// The spectrogram of the reference's recording and its features, if there is one.
    fn compare_recording(&mut self) -> Result<Vec<ImageFeatures>> {
        let (recording, extractor) = (self.reference.recording()?, self.model.processor.mel_extractor());
        let Some((recording, extractor)) = recording.zip(extractor) else { return Ok(Vec::new()) };
        let mel = extractor.one_window(&recording);
        if let Some(expected) = self.reference.tensors.tensor("in.input_features") {
            self.rows.push(self.row("in.input_features", &mel.values, &expected.to_f32()?, MEL_TOLERANCE));
        }
        let features = self.model.session.encode_audio(&mel, &Cancel::new())?;
        if let Some(expected) = self.reference.tensors.tensor("out.audio_features") {
            let (ours, expected) = (self.model.session.read_features(&features), expected.to_f32()?);
            let first = &ours[..expected.len().min(ours.len())];
            self.rows.push(self.row("out.audio_features", first, &expected, TENSOR_TOLERANCE));
        }
        Ok(vec![features])
    }

    /// The reference may have saved the last rows only.
    fn compare_logits(&mut self, prompt: &Prompt, features: &[ImageFeatures]) -> Result<()> {
        let Some(expected) = self.reference.tensors.tensor("out.logits") else { return Ok(()) };
        let expected = expected.to_f32()?;
        let session = self.model.session.as_mut();
        let sequence = session.start();
        let cancel = Cancel::new();
        let prefill = Prefill { ids: &prompt.ids, images: features, rows: LogitRows::All, cancel: &cancel };
        let logits = session.prefill(sequence, prefill);
        session.end(sequence);
        let logits = logits?;
        let last = &logits[logits.len().saturating_sub(expected.len())..];
        self.rows.push(self.row("out.logits", last, &expected, TENSOR_TOLERANCE));
        Ok(())
    }

    /// Generates what the reference generated, if it did.
    fn compare_answer(
        &mut self,
        name: &str,
        options: &GenerateOptions,
        prompt: &Prompt,
        features: &[ImageFeatures],
    ) -> Result<Option<Outcome>> {
        let held_ids = self.model.session.decoder_ids(&prompt.ids);
        let Some(expected) = self.reference.new_ids(name, &held_ids)? else { return Ok(None) };
        let task = Task {
            ids: &prompt.ids,
            images: features,
            options,
            seed: 0,
            end_ids: &self.model.end_ids,
            tokenizer: self.model.processor.tokenizer(),
            cancel: &Cancel::new(),
        };
        let outcome = generate(self.model.session.as_mut(), &task, &mut |_, _| ())?;
        self.rows.push(self.id_row(name, &outcome.token_ids, &expected));
        Ok(Some(outcome))
    }

    fn row(&self, name: &str, ours: &[f32], expected: &[f32], tolerance: f64) -> ParityRow {
        let Difference { absolute, relative } = Difference::between(ours, expected);
        let note = (ours.len() != expected.len())
            .then(|| format!("{} values, but the reference has {}", ours.len(), expected.len()));
        ParityRow {
            config: self.config.to_owned(),
            name: name.to_owned(),
            elements: expected.len(),
            worst_absolute: absolute,
            worst_relative: relative,
            tolerance,
            pass: note.is_none() && relative <= tolerance,
            note,
        }
    }

    fn id_row(&self, name: &str, ours: &[u32], expected: &[u32]) -> ParityRow {
        let longest = ours.len().max(expected.len());
        let differs = |idx: &usize| ours.get(*idx) != expected.get(*idx);
        let different = (0..longest).filter(differs).count();
        let note = (0..longest).find(differs).map(|idx| {
            let show = |ids: &[u32]| ids.get(idx).map_or("nothing".to_owned(), u32::to_string);
            format!("the first difference is at {idx}: {} instead of {}", show(ours), show(expected))
        });
        ParityRow {
            config: self.config.to_owned(),
            name: name.to_owned(),
            elements: expected.len(),
            worst_absolute: different as f64,
            worst_relative: different as f64 / longest.max(1) as f64,
            tolerance: EXACT,
            pass: different == 0,
            note,
        }
    }
}

/// `name`, or `name.0`, `name.1` and so on, in numerical order.
fn numbered(tensors: &Safetensors, name: &str) -> Vec<String> {
    let number = |found: &str| found.strip_prefix(name)?.strip_prefix('.')?.parse::<usize>().ok();
    let mut found: Vec<(Option<usize>, String)> = Vec::new();
    for candidate in tensors.names().filter(|candidate| *candidate == name || number(candidate).is_some()) {
        found.push((number(candidate), candidate.to_owned()));
    }
    found.sort();
    found.into_iter().map(|(_, name)| name).collect()
}

/// The system's error, the usual one in our words.
fn reason(error: &std::io::Error) -> String {
    if error.kind() == std::io::ErrorKind::NotFound { "there is no such file".to_owned() } else { error.to_string() }
}

fn bad(path: PathBuf, reason: &str) -> Error {
    Error::Reference { path, reason: reason.to_owned() }
}
