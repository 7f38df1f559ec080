//! SigLIP vision tower as Idefics3 and SmolVLM use it (transformers `modeling_idefics3.py`,
//! `Idefics3VisionTransformer`). N tiles, T patches of one tile, H heads, D head size.
//!
//! Pre-norm ViT with learned positions and no class token. Surprise: a tile that is smaller than the tower was
//! trained for takes its positions from the whole table, spread evenly.

use ocelli_backend::{Activation, Backend, Cancel, LayerNorm, Linear, Tensor, Weights};
use ocelli_formats::Section;
use serde::Deserialize;

use crate::error::{Result, require};

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

    /// Patches along one side of the position table.
    fn side(&self) -> usize {
        self.image_size / self.patch_size
    }
}

/// The tower: pixels -> one feature per patch.
pub(crate) struct Siglip<B: Backend> {
    patch_embedding: Linear<B>,
    position_embedding: Tensor<B>,
    layers: Vec<EncoderLayer<B>>,
    post_layernorm: LayerNorm<B>,
    patch_size: usize,
    side: usize,
}

impl<B: Backend> Siglip<B> {
    pub(crate) fn load(w: &Weights<B>, cfg: &Config) -> Result<Self> {
        let embeddings = w.at("embeddings");
        let (hidden, side) = (cfg.hidden_size, cfg.side());
        let layer = |layer_idx| EncoderLayer::load(&w.at(&format!("encoder.layers.{layer_idx}")), cfg);
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

/// Place in a table of `side` × `side` positions for every patch of a grid: each axis is stretched over the table.
fn position_ids(rows: usize, columns: usize, side: usize) -> Vec<usize> {
    let stretch = |at: usize, count: usize| at * side / count;
    let row = |r| (0..columns).map(move |c| stretch(r, rows) * side + stretch(c, columns));
    (0..rows).flat_map(row).collect()
}

struct EncoderLayer<B: Backend> {
    layer_norm1: LayerNorm<B>,
    attention: Attention<B>,
    layer_norm2: LayerNorm<B>,
    fc1: Linear<B>,
    fc2: Linear<B>,
}

impl<B: Backend> EncoderLayer<B> {
    fn load(w: &Weights<B>, cfg: &Config) -> Result<Self> {
        let mlp = w.at("mlp");
        Ok(Self {
            layer_norm1: w.layer_norm("layer_norm1", cfg.hidden_size, cfg.layer_norm_eps)?,
            attention: Attention::load(&w.at("self_attn"), cfg)?,
            layer_norm2: w.layer_norm("layer_norm2", cfg.hidden_size, cfg.layer_norm_eps)?,
            fc1: mlp.linear_bias("fc1", cfg.hidden_size, cfg.intermediate_size)?,
            fc2: mlp.linear_bias("fc2", cfg.intermediate_size, cfg.hidden_size)?,
        })
    }

    /// `x` [N, T, hidden] -> the same shape.
    fn forward(&self, x: &Tensor<B>) -> Tensor<B> {
        let x = self.attention.forward_add(&self.layer_norm1.forward(x), x);
        let hidden = self.fc1.forward_then(&self.layer_norm2.forward(&x), Activation::GeluTanh);
        self.fc2.forward_add(&hidden, &x)
    }
}

struct Attention<B: Backend> {
    q_proj: Linear<B>,
    k_proj: Linear<B>,
    v_proj: Linear<B>,
    out_proj: Linear<B>,
    n_heads: usize,
    scale: f32,
}

impl<B: Backend> Attention<B> {
    fn load(w: &Weights<B>, cfg: &Config) -> Result<Self> {
        let linear = |name| w.linear_bias(name, cfg.hidden_size, cfg.hidden_size);
        Ok(Self {
            q_proj: linear("q_proj")?,
            k_proj: linear("k_proj")?,
            v_proj: linear("v_proj")?,
            out_proj: linear("out_proj")?,
            n_heads: cfg.num_attention_heads,
            scale: ((cfg.hidden_size / cfg.num_attention_heads) as f32).sqrt().recip(),
        })
    }

    fn forward_add(&self, x: &Tensor<B>, residual: &Tensor<B>) -> Tensor<B> {
        let projections = Linear::forward_many([&self.q_proj, &self.k_proj, &self.v_proj], x);
        let [q, k, v] = projections.map(|projection| projection.split_heads(self.n_heads)); // [N × T, H, D]
        let attended = q.attend_all(&k, &v, x.shape()[0], self.scale);
        self.out_proj.forward_add(&attended.merge_heads().reshape(x.shape()), residual)
    }
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
        assert_eq!(position_ids(1, 2, 4), [0, 2]);
        assert_eq!(position_ids(2, 1, 4), [0, 8]);
    }
}
