//! SigLIP vision tower as Idefics3 and SmolVLM use it (transformers `modeling_idefics3.py`,
//! `Idefics3VisionTransformer`). N tiles, T patches of one tile, H heads, D head size.
//!
//! Pre-norm ViT with learned positions and no class token. Surprise: a tile that is smaller than the tower was
//! trained for takes its positions from the whole table, spread evenly.

use ocelli_backend::{Activation, Backend, Cancel, LayerNorm, Linear, Tensor, Weights};
use ocelli_formats::Section;
use serde::Deserialize;

use crate::error::{Result, require};
use crate::vit;

/// `vision_config`; early uploads give only what differs from the defaults of transformers.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub(crate) struct Config {
    pub(crate) hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_channels: usize,
    image_size: usize,
    patch_size: usize,
    hidden_act: String,
    layer_norm_eps: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            hidden_size: 1152,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 16,
            num_channels: 3,
            image_size: 224,
            patch_size: 32,
            hidden_act: "gelu_pytorch_tanh".to_owned(),
            layer_norm_eps: 1e-6,
        }
    }
}

impl Config {
    /// Reads and checks `vision_config`.
    pub(crate) fn parse(section: &Section) -> Result<Self> {
        let config: Self = section.parse()?;
        let (act, hidden, heads) = (&config.hidden_act, config.hidden_size, config.num_attention_heads);
        require(section, act == "gelu_pytorch_tanh", "hidden_act", act, "gelu_pytorch_tanh")?;
        require(section, heads > 0 && hidden % heads == 0, "num_attention_heads", heads, "a divisor of hidden_size")?;
        let (side, patch) = (config.image_size, config.patch_size);
        require(section, patch > 0 && side >= patch, "patch_size", patch, "at least 1 and at most image_size")?;
        Ok(config)
    }

    fn layer_dims(&self) -> vit::LayerDims {
        vit::LayerDims {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_attention_heads: self.num_attention_heads,
            layer_norm_eps: self.layer_norm_eps,
            activation: Activation::GeluTanh,
        }
    }

    /// Patches along one side of the position table.
    fn side(&self) -> usize {
        self.image_size / self.patch_size
    }
}

/// The tower: pixels -> one feature per patch.
pub(crate) struct Siglip<B: Backend> {
    patch_embedding: Linear<B>,
    position_embedding: Tensor<B>,
    layers: Vec<vit::EncoderLayer<B>>,
    post_layernorm: LayerNorm<B>,
    patch_size: usize,
    side: usize,
}

impl<B: Backend> Siglip<B> {
    pub(crate) fn load(w: &Weights<B>, cfg: &Config) -> Result<Self> {
        let embeddings = w.at("embeddings");
        let (hidden, side) = (cfg.hidden_size, cfg.side());
        let dims = cfg.layer_dims();
        let layer = |layer_idx| vit::EncoderLayer::load(&w.at(&format!("encoder.layers.{layer_idx}")), &dims);
        Ok(Self {
            patch_embedding: embeddings.patch_embedding("patch_embedding", cfg.num_channels, cfg.patch_size, hidden)?,
            position_embedding: embeddings.values("position_embedding.weight", &[side * side, hidden])?,
            layers: (0..cfg.num_hidden_layers).map(layer).collect::<Result<_>>()?,
            post_layernorm: w.layer_norm("post_layernorm", hidden, cfg.layer_norm_eps)?,
            patch_size: cfg.patch_size,
            side,
        })
    }

    /// `pixel_values` [N, 3, height, width] -> [N, T, hidden], patches row by row.
    pub(crate) fn forward(&self, pixel_values: &Tensor<B>, cancel: &Cancel) -> Tensor<B> {
        let (rows, columns) = (pixel_values.shape()[2] / self.patch_size, pixel_values.shape()[3] / self.patch_size);
        let patches = pixel_values.unfold_patches(self.patch_size); // [N, T, 3 × patch × patch]
        let positions = self.position_embedding.gather_rows(&position_ids(rows, columns, self.side));
        let mut x = self.patch_embedding.forward(&patches).add_repeated(&positions); // [N, T, hidden]
        for layer in &self.layers {
            if cancel.is_cancelled() {
                break;
            }
            x = layer.forward(&x);
        }
        self.post_layernorm.forward(&x)
    }
}

/// Place in a table of `side` × `side` positions for every patch of a grid: each axis is stretched over the table. The
/// reference divides in single precision, which comes to the same for the published tables (26, 27 and 32).
fn position_ids(rows: usize, columns: usize, side: usize) -> Vec<usize> {
    let stretch = |at: usize, count: usize| at * side / count;
    let row = |r| (0..columns).map(move |c| stretch(r, rows) * side + stretch(c, columns));
    (0..rows).flat_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::position_ids;

    #[test]
    fn a_full_tile_takes_every_position_in_order() {
        for side in [1, 4, 27, 32] {
            assert_eq!(position_ids(side, side, side), (0..side * side).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_smaller_tile_spreads_over_the_table() {
        // Computed with the reference, for the published tables of 32 and 27.
        let axis = |count, side| position_ids(1, count, side);
        let of_32 = [0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 16, 17, 18, 20, 21, 22, 24, 25, 26, 28, 29, 30];
        assert_eq!(axis(24, 32), of_32);
        assert_eq!(axis(20, 32), [0, 1, 3, 4, 6, 8, 9, 11, 12, 14, 16, 17, 19, 20, 22, 24, 25, 27, 28, 30]);
        assert_eq!(axis(18, 27), [0, 1, 3, 4, 6, 7, 9, 10, 12, 13, 15, 16, 18, 19, 21, 22, 24, 25]);
        assert_eq!(axis(12, 27), [0, 2, 4, 6, 9, 11, 13, 15, 18, 20, 22, 24]);
        assert_eq!(position_ids(1, 2, 4), [0, 2]);
        assert_eq!(position_ids(2, 1, 4), [0, 8]);
    }
}
