//! LLaVA 1.5 in the form of llava-hf (transformers `modeling_llava.py`). T patches of a picture.
//!
//! A CLIP tower, a two-layer projector, a Llama decoder. Surprises: the features are those of the last but one layer,
//! without the tower's last norm, and the class token's feature is dropped.

use ocelli_backend::{
    Activation, Backend, Cancel, KvCache, KvShape, Linear, Renamed, Step, Tensor, WeightSource, Weights,
};
use ocelli_formats::Section;
use serde::Deserialize;

use crate::clip::{self, Clip};
use crate::decoder::CausalLm;
use crate::error::{Error, Result, require};
use crate::llama;
use crate::{ImageInput, Model, PixelValues};

/// The top level of `config.json`; defaults are those of transformers.
#[derive(Clone, Debug, Deserialize)]
struct Config {
    #[serde(default = "default_image_token_index")]
    image_token_index: u32,
    #[serde(default = "default_vision_feature_layer")]
    vision_feature_layer: isize,
    #[serde(default = "default_vision_feature_select_strategy")]
    vision_feature_select_strategy: String,
    #[serde(default = "default_projector_hidden_act")]
    projector_hidden_act: String,
    #[serde(default = "default_true")]
    multimodal_projector_bias: bool,
    #[serde(default)]
    tie_word_embeddings: bool,
}

/// A vision-language model: tower, projector, decoder, output layer.
pub(crate) struct Llava<B: Backend> {
    backend: B,
    vision_tower: Clip<B>,
    linear_1: Linear<B>,
    linear_2: Linear<B>,
    language_model: CausalLm<B>,
    config: Config,
}

impl<B: Backend> Llava<B> {
    /// Loads a checkpoint in any of its layouts.
    pub(crate) fn load(backend: &B, config: &ocelli_formats::Config, source: WeightSource<'_>) -> Result<Self> {
        let root = config.root();
        let section = |name| config.section(name).ok_or_else(|| Error::from(root.error(name, "missing")));
        let (text_section, vision_section) = (section("text_config")?, section("vision_config")?);
        let config = parse(root)?;
        let vision_config = clip::Config::parse(&vision_section)?;
        let n_layers = feature_layers(root, &config, &vision_config)?;
        let mut text_config = llama::Config::parse(&text_section)?;
        text_config.tie_word_embeddings = config.tie_word_embeddings;

        let tied = config.tie_word_embeddings;
        let weights = Weights::new(backend, source, |name| rename(name, n_layers, tied))?;
        let w = weights.at("language_model");
        let language_model = text_config.causal_lm(&w, &w.at("model"), &text_section)?;
        let projector = weights.at("multi_modal_projector").vision();
        let (vision_hidden, hidden) = (vision_config.hidden_size, text_config.hidden_size);
        let model = Self {
            backend: backend.clone(),
            vision_tower: Clip::load(&weights.at("vision_tower.vision_model").vision(), &vision_config, n_layers)?,
            linear_1: linear(&projector, &config, "linear_1", vision_hidden, hidden)?,
            linear_2: linear(&projector, &config, "linear_2", hidden, hidden)?,
            language_model,
            config,
        };
        weights.finish()?;
        Ok(model)
    }
}

impl<B: Backend> Model<B> for Llava<B> {
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
        ImageInput::Tokens(self.config.image_token_index)
    }

    fn embed(&self, ids: &[u32]) -> Tensor<B> {
        self.language_model.embed(ids)
    }

    /// [1, 3, height, width] -> [T, hidden], or [1 + T, hidden] where the class token is wanted too.
    fn encode_image(&self, pixel_values: PixelValues<'_>, cancel: &Cancel) -> Tensor<B> {
        let pixels = Tensor::new(&self.backend, pixel_values.values, &pixel_values.shape);
        let features = self.vision_tower.forward(&pixels, cancel);
        let first = if self.config.vision_feature_select_strategy == "default" { 1 } else { 0 };
        let features = features.gather_rows(&(first..features.rows()).collect::<Vec<_>>());
        self.linear_2.forward(&self.linear_1.forward_then(&features, Activation::Gelu))
    }

    fn forward(&self, x: &Tensor<B>, step: &Step, kv: &mut KvCache<B>) -> Tensor<B> {
        self.language_model.forward(x, step, kv)
    }

    fn logits(&self, hidden: &Tensor<B>) -> Tensor<B> {
        self.language_model.logits(hidden)
    }
}

fn parse(root: &Section) -> Result<Config> {
    let config: Config = root.parse()?;
    let (act, strategy) = (&config.projector_hidden_act, &config.vision_feature_select_strategy);
    require(root, act == "gelu", "projector_hidden_act", act, "gelu")?;
    let known = ["default", "full"].contains(&strategy.as_str());
    require(root, known, "vision_feature_select_strategy", strategy, "default or full")?;
    Ok(config)
}

/// Layers below the one whose output is wanted; -1 is the last layer's.
fn feature_layers(root: &Section, config: &Config, vision: &clip::Config) -> Result<usize> {
    let (layer, all) = (config.vision_feature_layer, vision.num_hidden_layers);
    let count = if layer < 0 { (all + 1).checked_add_signed(layer) } else { usize::try_from(layer).ok() };
    require(root, count.is_some_and(|count| count <= all), "vision_feature_layer", layer, "a layer of the tower")?;
    Ok(count.unwrap_or(all))
}

fn linear<B: Backend>(w: &Weights<B>, config: &Config, name: &str, inputs: usize, outputs: usize) -> Result<Linear<B>> {
    let has_bias = config.multimodal_projector_bias;
    Ok(if has_bias { w.linear_bias(name, inputs, outputs)? } else { w.linear(name, inputs, outputs)? })
}

/// Names of every layout -> the published ones. transformers 5 may save the tower without `vision_model.`, and
/// everything below `model.`; layers above the wanted one are left out.
fn rename(name: &str, n_layers: usize, tied: bool) -> Renamed {
    if name.ends_with("rotary_emb.inv_freq") || name.ends_with("position_ids") {
        return Renamed::Ignored;
    }
    let name = name.strip_prefix("model.").unwrap_or(name);
    let name = match name.strip_prefix("vision_tower.") {
        Some(rest) => {
            let rest = rest.strip_prefix("vision_model.").unwrap_or(rest);
            let layer = rest.strip_prefix("encoder.layers.").and_then(|rest| rest.split('.').next()?.parse().ok());
            if rest.starts_with("post_layernorm.") || layer.is_some_and(|layer: usize| layer >= n_layers) {
                return Renamed::Ignored;
            }
            format!("vision_tower.vision_model.{rest}")
        }
        None if name == "lm_head.weight" => "language_model.lm_head.weight".to_owned(),
        None => match name.strip_prefix("language_model.") {
            Some(rest) if rest.starts_with("model.") || rest.starts_with("lm_head.") => name.to_owned(),
            Some(rest) => format!("language_model.model.{rest}"),
            None => name.to_owned(),
        },
    };
    if tied && name == "language_model.lm_head.weight" { Renamed::Ignored } else { Renamed::To(name) }
}

fn default_image_token_index() -> u32 {
    32_000
}

fn default_vision_feature_layer() -> isize {
    -2
}

fn default_vision_feature_select_strategy() -> String {
    "default".to_owned()
}

fn default_projector_hidden_act() -> String {
    "gelu".to_owned()
}

fn default_true() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layout_gets_the_published_names() {
        let to = |name: &str| Renamed::To(name.to_owned());
        let renamed = |name: &str| rename(name, 2, false);
        let norm = "language_model.model.norm.weight";
        for name in [norm, "model.language_model.norm.weight"] {
            assert_eq!(renamed(name), to(norm), "{name}");
        }
        for name in ["language_model.lm_head.weight", "lm_head.weight"] {
            assert_eq!(renamed(name), to("language_model.lm_head.weight"), "{name}");
        }
        let class = "vision_tower.vision_model.embeddings.class_embedding";
        for name in [class, "vision_tower.embeddings.class_embedding", "model.vision_tower.embeddings.class_embedding"]
        {
            assert_eq!(renamed(name), to(class), "{name}");
        }
        let projector = "multi_modal_projector.linear_1.bias";
        for name in [projector, "model.multi_modal_projector.linear_1.bias"] {
            assert_eq!(renamed(name), to(projector), "{name}");
        }
    }

    #[test]
    fn layers_above_the_wanted_one_are_left_out() {
        let layer = "vision_tower.vision_model.encoder.layers.1.mlp.fc1.bias";
        assert_eq!(rename(layer, 2, false), Renamed::To(layer.to_owned()));
        assert_eq!(rename(layer, 1, false), Renamed::Ignored);
        assert_eq!(rename("vision_tower.vision_model.post_layernorm.bias", 2, false), Renamed::Ignored);
        assert_eq!(rename("lm_head.weight", 2, true), Renamed::Ignored);
    }
}
