//! Idefics3 and SmolVLM (transformers `modeling_idefics3.py`, `modeling_smolvlm.py`: the same mathematics).
//! N tiles, T patches of one tile, s scale factor.
//!
//! A SigLIP tower, a connector that folds s × s neighbouring patches into one token, a Llama decoder. Surprises: the
//! fold's channel order is (row, column, channel), and the connector has no bias.

use ocelli_backend::{Backend, Cancel, KvCache, KvShape, Linear, Renamed, Step, Tensor, WeightSource, Weights};
use ocelli_formats::Section;
use serde::Deserialize;

use crate::decoder::CausalLm;
use crate::error::{Error, Result, require};
use crate::llama;
use crate::siglip::{self, Siglip};
use crate::{ImageInput, Model, PixelValues};

/// The top level of `config.json`; defaults are those of transformers.
#[derive(Clone, Debug, Deserialize)]
struct Config {
    #[serde(default = "default_image_token_id")]
    image_token_id: u32,
    #[serde(default = "default_scale_factor")]
    scale_factor: usize,
    #[serde(default)]
    tie_word_embeddings: bool,
}

/// A vision-language model: tower, connector, decoder, output layer.
pub(crate) struct Idefics3<B: Backend> {
    backend: B,
    vision_model: Siglip<B>,
    connector: Linear<B>,
    text_model: CausalLm<B>,
    config: Config,
}

impl<B: Backend> Idefics3<B> {
    /// Loads a checkpoint in any of its layouts.
    pub(crate) fn load(backend: &B, config: &ocelli_formats::Config, source: WeightSource<'_>) -> Result<Self> {
        let root = config.root();
        let section = |name| config.section(name).ok_or_else(|| Error::from(root.error(name, "missing")));
        let (text_section, vision_section) = (section("text_config")?, section("vision_config")?);
        let config = parse(root)?;
        let vision_config = siglip::Config::parse(&vision_section)?;
        let mut text_config = llama::Config::parse(&text_section)?;
        // The decoder's own flag is a leftover of the text checkpoint; the outer one decides.
        text_config.tie_word_embeddings = config.tie_word_embeddings;

        let weights = Weights::new(backend, source, |name| rename(name, config.tie_word_embeddings))?;
        let w = weights.at("model");
        let text_model = text_config.causal_lm(&weights, &w.at("text_model"), &text_section)?;
        let folded = vision_config.hidden_size * config.scale_factor * config.scale_factor;
        let model = Self {
            backend: backend.clone(),
            vision_model: Siglip::load(&w.at("vision_model").vision(), &vision_config)?,
            connector: w.at("connector").vision().linear(
                "modality_projection.proj",
                folded,
                text_config.hidden_size,
            )?,
            text_model,
            config,
        };
        weights.finish()?;
        Ok(model)
    }
}

impl<B: Backend> Model<B> for Idefics3<B> {
    fn kv_shape(&self) -> KvShape {
        self.text_model.kv_shape()
    }

    fn max_positions(&self) -> usize {
        self.text_model.max_positions()
    }

    fn vocab_size(&self) -> usize {
        self.text_model.vocab_size()
    }

    fn image_input(&self) -> ImageInput {
        ImageInput::Tokens(self.config.image_token_id)
    }

    fn embed(&self, ids: &[u32]) -> Tensor<B> {
        self.text_model.embed(ids)
    }

    /// [N, 3, height, width] -> [N × T / s², hidden]. Tile by tile: they do not see each other, one fills the machine,
    /// and all at once would need N times the memory.
    fn encode_image(&self, pixel_values: PixelValues<'_>, cancel: &Cancel) -> Tensor<B> {
        let [_, channels, height, width] = pixel_values.shape;
        let encode = |tile| {
            let tile = Tensor::new(&self.backend, tile, &[1, channels, height, width]);
            let features = self.vision_model.forward(&tile, cancel); // [1, T, vision hidden]
            self.connector.forward(&pixel_shuffle(&features, self.config.scale_factor))
        };
        let features: Vec<Tensor<B>> =
            pixel_values.values.chunks_exact(channels * height * width).map(encode).collect();
        Tensor::concat_rows(&features.iter().collect::<Vec<_>>())
    }

    fn forward(&self, x: &Tensor<B>, step: &Step, kv: &mut KvCache<B>) -> Tensor<B> {
        self.text_model.forward(x, step, kv)
    }

    fn logits(&self, hidden: &Tensor<B>) -> Tensor<B> {
        self.text_model.logits(hidden)
    }
}

fn parse(root: &Section) -> Result<Config> {
    let config: Config = root.parse()?;
    require(root, config.scale_factor > 0, "scale_factor", config.scale_factor, "at least 1")?;
    Ok(config)
}

/// [N, T, C] of a square grid -> [N × T / s², s × s × C]: the patches of each s × s square side by side.
fn pixel_shuffle<B: Backend>(features: &Tensor<B>, scale: usize) -> Tensor<B> {
    let &[tiles, patches, channels] = features.shape() else {
        panic!("expected [N, T, C], not {:?}", features.shape())
    };
    let side = patches.isqrt();
    let order = fold_order(tiles, side, scale);
    features.gather_rows(&order).reshape(&[order.len() / (scale * scale), scale * scale * channels])
}

/// Patches in the order in which folding reads them: tile, square row, square column, row in it, column in it.
fn fold_order(tiles: usize, side: usize, scale: usize) -> Vec<usize> {
    let squares = side / scale;
    let mut order = Vec::with_capacity(tiles * side * side);
    for tile in 0..tiles {
        for square in 0..squares * squares {
            let (top, left) = (square / squares * scale, square % squares * scale);
            for inner in 0..scale * scale {
                order.push((tile * side + top + inner / scale) * side + left + inner % scale);
            }
        }
    }
    order
}

/// Names of every layout -> the published ones (`model.text_model`, `model.vision_model`, `model.connector`).
/// MLX drops the outer `model.` and calls the decoder `language_model`.
fn rename(name: &str, tied: bool) -> Renamed {
    if name.ends_with("rotary_emb.inv_freq") || name.ends_with("position_ids") {
        return Renamed::Ignored;
    }
    let name = match name.strip_prefix("language_model.") {
        Some("lm_head.weight") => "lm_head.weight".to_owned(),
        Some(rest) => format!("model.text_model.{rest}"),
        None if name.starts_with("vision_model.") || name.starts_with("connector.") => format!("model.{name}"),
        None => name.to_owned(),
    };
    if tied && name == "lm_head.weight" { Renamed::Ignored } else { Renamed::To(name) }
}

fn default_image_token_id() -> u32 {
    128_257
}

fn default_scale_factor() -> usize {
    2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squares_are_folded_row_by_row() {
        assert_eq!(fold_order(1, 4, 2), [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]);
        assert_eq!(fold_order(2, 2, 2), [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn every_layout_gets_the_published_names() {
        let to = |name: &str| Renamed::To(name.to_owned());
        assert_eq!(rename("model.text_model.norm.weight", false), to("model.text_model.norm.weight"));
        assert_eq!(rename("language_model.norm.weight", false), to("model.text_model.norm.weight"));
        assert_eq!(rename("language_model.lm_head.weight", false), to("lm_head.weight"));
        assert_eq!(rename("lm_head.weight", true), Renamed::Ignored);
        let projection = "model.connector.modality_projection.proj.weight";
        assert_eq!(rename("connector.modality_projection.proj.weight", false), to(projection));
    }
}
