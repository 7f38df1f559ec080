//! InstructBLIP with Vicuna (transformers `modeling_instructblip.py`).
//!
//! BLIP-2's eyes with a Q-Former that reads the instruction, and a Llama decoder. Surprise: the files do not agree on the
//! token that ends an answer; both of Llama's do.

use ocelli_backend::{Backend, Cancel, KvCache, KvShape, Renamed, Step, Tensor, WeightSource, Weights};
use serde::Deserialize;

use crate::blip2::{Config, Eyes};
use crate::decoder::CausalLm;
use crate::error::{Error, Result, require};
use crate::llama;
use crate::{ImageInput, Model, PixelValues};

/// The tokens of `text_config` that end an answer; defaults are those of transformers.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Ends {
    #[serde(default = "default_bos")]
    bos_token_id: u32,
    #[serde(default = "default_eos")]
    eos_token_id: u32,
}

/// A vision-language model: eyes, decoder, output layer.
pub(crate) struct InstructBlip<B: Backend> {
    eyes: Eyes<B>,
    language_model: CausalLm<B>,
    image_token_id: u32,
    ends: Ends,
}

impl<B: Backend> InstructBlip<B> {
    /// Loads a checkpoint in any of its layouts.
    pub(crate) fn load(backend: &B, config: &ocelli_formats::Config, source: WeightSource<'_>) -> Result<Self> {
        let root = config.root();
        let section = config.section("text_config").ok_or_else(|| Error::from(root.error("text_config", "missing")))?;
        let decoder = section.string("model_type")?.unwrap_or("llama");
        require(&section, decoder == "llama", "model_type", decoder, "llama")?;
        let text_config = llama::Config::parse(&section)?;
        let tied = text_config.tie_word_embeddings;
        let weights = Weights::new(backend, source, |name| rename(name, tied))?;
        let w = weights.at("language_model");
        let language_model = text_config.causal_lm(&w, &w.at("model"), &section)?;
        let model = Self {
            eyes: Eyes::load(&weights, config, text_config.hidden_size, true)?,
            language_model,
            image_token_id: Config::parse(root)?.image_token(root, text_config.vocab_size)?,
            ends: section.parse()?,
        };
        weights.finish()?;
        Ok(model)
    }
}

impl<B: Backend> Model<B> for InstructBlip<B> {
    fn kv_shape(&self) -> KvShape {
        self.language_model.kv_shape()
    }

    fn max_positions(&self) -> usize {
        self.language_model.max_positions()
    }

    fn vocab_size(&self) -> usize {
        self.language_model.vocab_size()
    }

    fn image_input(&self) -> ImageInput {
        ImageInput::Tokens(self.image_token_id)
    }

    fn embed(&self, ids: &[u32]) -> Tensor<B> {
        self.language_model.embed(ids)
    }

    fn encode_image(&self, pixel_values: PixelValues<'_>, cancel: &Cancel) -> Tensor<B> {
        self.eyes.forward(pixel_values, cancel)
    }

    /// `generation_config.json` names 1, Vicuna says 2.
    fn end_ids(&self) -> Vec<u32> {
        vec![self.ends.bos_token_id, self.ends.eos_token_id]
    }

    fn forward(&self, x: &Tensor<B>, step: &Step, kv: &mut KvCache<B>) -> Tensor<B> {
        self.language_model.forward(x, step, kv)
    }

    fn logits(&self, hidden: &Tensor<B>) -> Tensor<B> {
        self.language_model.logits(hidden)
    }
}

/// Names of every layout -> the published ones, buffers and tied copies left out.
fn rename(name: &str, tied: bool) -> Renamed {
    let ignored = name.ends_with("position_ids")
        || name.ends_with("rotary_emb.inv_freq")
        || (tied && name == "language_model.lm_head.weight");
    if ignored { Renamed::Ignored } else { Renamed::To(name.to_owned()) }
}

fn default_bos() -> u32 {
    1
}

fn default_eos() -> u32 {
    2
}
