//! `ocelli show`: what a model is, from its small files and the headers of its weights.

use std::collections::BTreeMap;

use ocelli_engine::{EngineOptions, Error, GenerationDefaults, ModelInfo, Quant};
use ocelli_formats::{Checkpoint, Config, ModelFiles};
use ocelli_processors::video_families;
use serde::Serialize;

use crate::arguments::ShowArgs;
use crate::exit::{Exit, Failure, Outcome};
use crate::model;
use crate::terminal::{bytes, count, print};

pub(crate) fn run(args: &ShowArgs) -> Outcome {
    let files = model::find(&args.model, args.revision.as_deref())?;
    let about = About::read(&files).map_err(|error| Failure::new(Exit::Model, error))?;
    let text = if args.json { serde_json::to_string(&about)? } else { about.table() };
    print(&format!("{text}\n"))?;
    Ok(Exit::Success)
}

/// What is shown of a model.
#[derive(Debug, Serialize)]
struct About {
    model: String,
    path: Option<String>,
    /// `model_type` of its configuration.
    architecture: String,
    supported: bool,
    /// Why it is not supported.
    reason: Option<String>,
    parameters: u64,
    dtype: String,
    weight_bytes: u64,
    /// What only supported models tell.
    #[serde(flatten)]
    details: Option<Details>,
}

#[derive(Debug, Serialize)]
struct Details {
    title: String,
    sees_images: bool,
    takes_videos: bool,
    context_length: usize,
    kv_bytes_per_token: usize,
    /// Weights and the cache of a full context.
    memory_bytes: u64,
    /// Bytes of the weights at every precision that the model can be loaded in: `none`, `q8`, `q4`.
    weight_bytes_at: BTreeMap<&'static str, u64>,
    /// Bytes this machine has left; null where it does not say.
    available_bytes: Option<u64>,
    /// Whether the model fits into them at each precision, with the cache of 4096 tokens (or of a full context).
    fits: BTreeMap<&'static str, bool>,
    generation_defaults: GenerationDefaults,
}

impl About {
    /// An architecture that is not supported is an answer here, and no error.
    fn read(files: &ModelFiles) -> anyhow::Result<Self> {
        let path = files.path().map(|path| path.display().to_string());
        match ModelInfo::read(files) {
            Ok(info) => Ok(Self {
                model: files.label().to_owned(),
                path,
                architecture: info.model_type.clone(),
                supported: true,
                reason: None,
                parameters: info.parameters,
                dtype: info.dtype.clone(),
                weight_bytes: info.weight_bytes,
                details: Some(Details::of(files, info)),
            }),
            Err(error @ Error::Models(_)) => Self::unsupported(files, path, &error.to_string()),
            Err(error) => Err(error.into()),
        }
    }

    fn unsupported(files: &ModelFiles, path: Option<String>, reason: &str) -> anyhow::Result<Self> {
        let config = Config::load(files)?;
        let checkpoint = Checkpoint::open(files)?;
        let tensors = || checkpoint.names().filter_map(|name| checkpoint.stored(name));
        Ok(Self {
            model: files.label().to_owned(),
            path,
            architecture: config.model_type().to_owned(),
            supported: false,
            reason: Some(reason.to_owned()),
            parameters: tensors().map(|tensor| tensor.n_elements() as u64).sum(),
            dtype: config.torch_dtype().unwrap_or("unknown").to_owned(),
            weight_bytes: checkpoint.total_bytes() as u64,
            details: None,
        })
    }

    fn table(&self) -> String {
        let mut rows = vec![("model", self.model.clone())];
        rows.extend(self.path.clone().filter(|path| *path != self.model).map(|path| ("folder", path)));
        rows.push(match &self.details {
            Some(details) => ("architecture", format!("{} ({})", self.architecture, details.title)),
            None => ("architecture", self.architecture.clone()),
        });
        rows.push(match &self.reason {
            None => ("supported", "yes".to_owned()),
            Some(reason) => ("supported", format!("no: {reason}")),
        });
        rows.push(("parameters", count(self.parameters)));
        rows.push(("dtype", self.dtype.clone()));
        rows.push(("weights", bytes(self.weight_bytes)));
        if let Some(details) = &self.details {
            rows.extend(details.rows());
        }
        let lines: Vec<String> = rows.iter().map(|(name, value)| format!("{name:<13} {value}")).collect();
        lines.join("\n")
    }
}

impl Details {
    fn of(files: &ModelFiles, info: ModelInfo) -> Self {
        let precisions = [("none", Quant::None), ("q8", Quant::Q8), ("q4", Quant::Q4)];
        let weight_bytes_at = precisions.into_iter().filter_map(|(name, quant)| {
            let options = EngineOptions { quant, ..EngineOptions::new() };
            // What is already quantised cannot be loaded otherwise.
            ModelInfo::read_for(files, &options).ok().map(|info| (name, info.weight_bytes))
        });
        let weight_bytes_at: BTreeMap<&str, u64> = weight_bytes_at.collect();
        let cache_of = |tokens: usize| info.kv_bytes_per_token as u64 * tokens as u64;
        let (cache, usual_cache) = (cache_of(info.context_length), cache_of(info.context_length.min(USUAL_TOKENS)));
        let available_bytes = ocelli_engine::available_memory();
        let fits = |(&name, &size): (&&'static str, &u64)| Some((name, size + usual_cache <= available_bytes?));
        Self {
            title: info.title,
            sees_images: info.sees_images,
            takes_videos: video_families().contains(&info.model_type.as_str()),
            context_length: info.context_length,
            kv_bytes_per_token: info.kv_bytes_per_token,
            memory_bytes: info.weight_bytes + cache,
            available_bytes,
            fits: weight_bytes_at.iter().filter_map(fits).collect(),
            weight_bytes_at,
            generation_defaults: info.generation_defaults,
        }
    }

    /// Whether it fits, and how.
    fn verdict(&self, available: u64) -> String {
        let fits = |name| self.fits.get(name).copied().unwrap_or(false);
        let best = ["none", "q8", "q4"].into_iter().find(|&name| fits(name));
        let left = bytes(available);
        match best {
            Some("none") => format!("it fits: {left} of memory are free"),
            Some("q8") => format!("it fits with --quant q8 or q4: {left} of memory are free"),
            Some(quant) => format!("it fits with --quant {quant}: {left} of memory are free"),
            None => format!("it does not fit: only {left} of memory are free"),
        }
    }

    fn rows(&self) -> Vec<(&'static str, String)> {
        let at = |name| self.weight_bytes_at.get(name).map(|&size| format!("{} with --quant {name}", bytes(size)));
        let fewer: Vec<String> = ["q8", "q4"].into_iter().filter_map(at).collect();
        let mut rows = if fewer.is_empty() { Vec::new() } else { vec![("quantised", fewer.join(", "))] };
        rows.extend([
            ("sees images", if self.sees_images { "yes" } else { "no" }.to_owned()),
            ("takes videos", if self.takes_videos { "yes" } else { "no" }.to_owned()),
            (
                "context",
                format!("{} tokens, {} of cache each", self.context_length, bytes(self.kv_bytes_per_token as u64)),
            ),
            ("memory", format!("{} with a full context", bytes(self.memory_bytes))),
        ]);
        rows.extend(self.available_bytes.map(|available| ("this machine", self.verdict(available))));
        let defaults = &self.generation_defaults;
        let recommended: Vec<String> = [
            defaults.temperature.map(|value| format!("--temperature {value}")),
            defaults.top_k.map(|value| format!("--top-k {value}")),
            defaults.top_p.map(|value| format!("--top-p {value}")),
            defaults.min_p.map(|value| format!("--min-p {value}")),
            defaults.repetition_penalty.map(|value| format!("--repetition-penalty {value}")),
        ]
        .into_iter()
        .flatten()
        .collect();
        if defaults.do_sample && !recommended.is_empty() {
            rows.push(("recommended", format!("{} (--model-defaults)", recommended.join(" "))));
        }
        rows
    }
}

/// A conversation with a few pictures.
const USUAL_TOKENS: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn details(fits: [(&'static str, bool); 3]) -> Details {
        Details {
            title: "T".to_owned(),
            sees_images: false,
            takes_videos: false,
            context_length: 1,
            kv_bytes_per_token: 1,
            memory_bytes: 1,
            weight_bytes_at: BTreeMap::new(),
            available_bytes: Some(1 << 30),
            fits: fits.into(),
            generation_defaults: GenerationDefaults::default(),
        }
    }

    #[test]
    fn the_most_exact_precision_that_fits_is_named() {
        let verdict = |fits| details(fits).verdict(1 << 30);
        let none = [("none", false), ("q8", false), ("q4", false)];
        assert_eq!(verdict(none), "it does not fit: only 1.0 GiB of memory are free");
        let q8 = [("none", false), ("q8", true), ("q4", true)];
        assert_eq!(verdict(q8), "it fits with --quant q8 or q4: 1.0 GiB of memory are free");
        let q4 = [("none", false), ("q8", false), ("q4", true)];
        assert_eq!(verdict(q4), "it fits with --quant q4: 1.0 GiB of memory are free");
        let all = [("none", true), ("q8", true), ("q4", true)];
        assert_eq!(verdict(all), "it fits: 1.0 GiB of memory are free");
    }
}
