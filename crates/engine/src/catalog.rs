//! [`catalog`]: the families that are supported, with the sizes that were published and what each takes in memory.
//!
//! Nothing is downloaded: the shapes follow from the published configs, the bytes from a [`Plan`] of them.

use std::collections::BTreeMap;

use ocelli_backend::{Quant, RandomWeights, WeightSource};
use ocelli_backend_cpu::CpuBackend;
use ocelli_formats::{Config, ModelFiles};
use ocelli_models::{ARCHITECTURES, Architecture};
use ocelli_processors::video_families;
use serde::{Deserialize, Serialize};

use crate::bench::{PUBLISHED, backend, published_files};
use crate::error::Result;
use crate::options::EngineOptions;
use crate::plan::Plan;

/// A family: the models that the same code runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Family {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// What people call it.
    pub title: &'static str,
    /// What it can be used for.
    pub tasks: Vec<Task>,
    /// The sizes that were published, smallest first.
    pub sizes: Vec<PublishedModel>,
}

/// What a model can be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// It says what is in a picture.
    Describe,
    /// It answers questions about pictures.
    Ask,
    /// It answers questions about videos.
    Watch,
    /// It says where things are in a picture.
    Detect,
    /// It writes down what is said in a recording.
    Transcribe,
    /// It answers in text to text.
    Text,
}

/// A model of a published size.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PublishedModel {
    /// What `ocelli bench --random-weights` calls it.
    pub name: &'static str,
    /// Where it was published, on the Hugging Face hub.
    pub id: Option<String>,
    /// The licence of its weights, in a word or two.
    pub licence: Option<String>,
    /// Numbers in all weights.
    pub parameters: u64,
    /// Bytes of the weights in memory at every precision: `none` (bfloat16), `q8`, `q4`.
    pub weight_bytes_at: BTreeMap<&'static str, u64>,
    /// Bytes of keys and values per token.
    pub kv_bytes_per_token: usize,
    /// Longest sequence in tokens.
    pub context_length: usize,
}

/// All families, in the order of the registry.
///
/// # Errors
/// When a published config cannot be read: an error of this program.
pub fn catalog() -> Result<Vec<Family>> {
    let backend = backend(&EngineOptions { threads: Some(1), ..EngineOptions::new() })?;
    let mut families: Vec<Family> = ARCHITECTURES.iter().map(Family::new).collect();
    for &name in PUBLISHED {
        let files = published_files(name)?;
        let config = Config::load(&files)?;
        let model = PublishedModel::plan(name, &files, &config, &backend)?;
        if let Some(family) = families.iter_mut().find(|family| family.model_type == config.model_type()) {
            family.sizes.push(model);
        }
    }
    for family in &mut families {
        family.sizes.sort_by_key(|model| model.parameters);
    }
    Ok(families)
}

impl Family {
    fn new(architecture: &Architecture) -> Self {
        let &Architecture { model_type, title, .. } = architecture;
        Self { model_type, title, tasks: tasks(architecture), sizes: Vec::new() }
    }
}

/// What a family can be used for.
pub(crate) fn tasks(&Architecture { model_type, sees_images, .. }: &Architecture) -> Vec<Task> {
    match sees_images {
        _ if HEARING.contains(&model_type) => vec![Task::Transcribe],
        true if CAPTIONING.contains(&model_type) => vec![Task::Describe],
        true if DETECTING.contains(&model_type) => vec![Task::Describe, Task::Ask, Task::Detect],
        true if video_families().contains(&model_type) => vec![Task::Describe, Task::Ask, Task::Watch],
        true => vec![Task::Describe, Task::Ask],
        false => vec![Task::Text],
    }
}

impl PublishedModel {
    fn plan(name: &'static str, files: &ModelFiles, config: &Config, backend: &CpuBackend) -> Result<Self> {
        let about: About = match files.json("about.json")? {
            Some(about) => serde_json::from_value(about).unwrap_or_default(),
            None => About::default(),
        };
        let weights = RandomWeights::new(1);
        let plan = |quant| {
            let options = EngineOptions { quant, ..EngineOptions::new() };
            Plan::make(backend, config, WeightSource::from(&weights).with_precision(options.precision()))
        };
        let exact = plan(Quant::None)?;
        let (q8, q4) = (plan(Quant::Q8)?.weight_bytes(), plan(Quant::Q4)?.weight_bytes());
        Ok(Self {
            name,
            id: about.id,
            licence: about.licence,
            parameters: exact.parameters(),
            weight_bytes_at: [("none", exact.weight_bytes()), ("q8", q8), ("q4", q4)].into(),
            kv_bytes_per_token: exact.kv_bytes_per_token,
            context_length: exact.context_length,
        })
    }
}

/// What a published size says of itself besides its configs.
#[derive(Default, Deserialize)]
struct About {
    id: Option<String>,
    licence: Option<String>,
}

/// Families that take recordings.
const HEARING: &[&str] = &["whisper"];
/// Families that answer no questions about a picture unless trained for them.
const CAPTIONING: &[&str] = &[];
/// Families whose boxes and points come back as numbers.
const DETECTING: &[&str] = &["moondream1", "moondream2"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_sizes_are_those_of_their_families() {
        let families = catalog().unwrap();
        let sizes: usize = families.iter().map(|family| family.sizes.len()).sum();
        assert_eq!((families.len(), sizes), (ARCHITECTURES.len(), PUBLISHED.len()));
        let unsized_families = families.iter().filter(|family| family.sizes.is_empty());
        // transformers' layout of `llava_qwen2`, in the same sizes.
        let renamed = unsized_families.map(|family| family.model_type).collect::<Vec<_>>();
        assert_eq!(renamed, ["fast_vlm"]);
        let find = |name: &str| {
            let model = families.iter().flat_map(|family| &family.sizes).find(|model| model.name == name);
            model.unwrap_or_else(|| panic!("no {name}"))
        };
        // Within a per cent of what the model cards say.
        for (name, millions) in [
            ("smolvlm-256m", 256.0),
            ("smolvlm2-256m", 256.0),
            ("smolvlm2-500m", 507.0),
            ("smolvlm2-2.2b", 2246.0),
            ("llama-3.2-1b", 1236.0),
            ("llama-3.1-8b", 8030.0),
            ("qwen2.5-7b", 7616.0),
            ("qwen2-vl-7b", 8291.0),
            ("qwen3-vl-8b", 8767.0),
            ("qwen3-0.6b", 596.0),
            ("llava-1.5-7b", 7063.0),
            ("r1-distill-qwen-1.5b", 1777.0),
            ("deepseek-vl2-tiny", 3371.0),
            ("deepseek-vl2-small", 16_148.0),
        ] {
            let found = find(name).parameters as f64 / 1e6;
            assert!((found / millions - 1.0).abs() < 0.01, "{name} has {found} M parameters");
        }
        for model in families.iter().flat_map(|family| &family.sizes) {
            let [none, q4, q8] = ["none", "q4", "q8"].map(|precision| model.weight_bytes_at[precision]);
            assert!(q4 < q8 && q8 < none, "{model:?}");
            assert!(model.id.is_some() && model.licence.is_some(), "{}: give id and licence in about.json", model.name);
        }
        // The whole model in less memory than a 16 GB machine has.
        assert!(find("deepseek-vl2-small").weight_bytes_at["q4"] < 11_000_000_000);
    }

    #[test]
    fn tasks_follow_from_what_a_family_takes() {
        let families = catalog().unwrap();
        let tasks =
            |model_type: &str| families.iter().find(|family| family.model_type == model_type).unwrap().tasks.clone();
        assert_eq!(tasks("llava"), [Task::Describe, Task::Ask]);
        assert_eq!(tasks("qwen2"), [Task::Text]);
        assert_eq!(tasks("whisper"), [Task::Transcribe]);
    }
}
