//! Vision tower of BLIP, BLIP-2 (EVA ViT-g) and InstructBLIP (transformers `modeling_blip.py`, `BlipVisionModel`;
//! `modeling_blip_2.py`). T patches of a picture, H heads, D head size.
//!
//! Pre-norm ViT with a class token and learned positions. Surprises: queries, keys and values are one matrix; positions
//! are stored with a batch dimension; the class token's feature is kept like every other.

use ocelli_backend::{Activation, Backend, Cancel, LayerNorm, Linear, Tensor, Weights};
use serde::Deserialize;

use crate::error::{Result, require};

/// `vision_config`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Config {
    pub(crate) hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    image_size: usize,
    patch_size: usize,
    layer_norm_eps: f64,
}

/// The defaults of transformers for BLIP.
pub(crate) const BLIP: Config = Config {
    hidden_size: 768,
    intermediate_size: 3072,
    num_hidden_layers: 12,
    num_attention_heads: 12,
    image_size: 384,
    patch_size: 16,
    layer_norm_eps: 1e-5,
};

/// The defaults of transformers for BLIP-2 and InstructBLIP: EVA's ViT-g.
pub(crate) const VIT_G: Config = Config {
    hidden_size: 1408,
    intermediate_size: 6144,
    num_hidden_layers: 39,
    num_attention_heads: 16,
    image_size: 224,
    patch_size: 14,
    layer_norm_eps: 1e-6,
};

/// What a file may say; the rest is a family's own.
#[derive(Debug, Default, Deserialize)]
struct RawConfig {
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    image_size: Option<usize>,
    patch_size: Option<usize>,
    hidden_act: Option<String>,
    layer_norm_eps: Option<f64>,
    qkv_bias: Option<bool>,
}

impl Config {
    /// Reads and checks `vision_config`.
    pub(crate) fn parse(config: &ocelli_formats::Config, defaults: &Self) -> Result<Self> {
        let Some(section) = config.section("vision_config") else { return Ok(*defaults) };
        let raw: RawConfig = section.parse()?;
        let act = raw.hidden_act.as_deref().unwrap_or("gelu");
        require(&section, act == "gelu", "hidden_act", act, "gelu")?;
        require(&section, raw.qkv_bias != Some(false), "qkv_bias", false, "true")?;
        let config = Self {
            hidden_size: raw.hidden_size.unwrap_or(defaults.hidden_size),
            intermediate_size: raw.intermediate_size.unwrap_or(defaults.intermediate_size),
            num_hidden_layers: raw.num_hidden_layers.unwrap_or(defaults.num_hidden_layers),
            num_attention_heads: raw.num_attention_heads.unwrap_or(defaults.num_attention_heads),
            image_size: raw.image_size.unwrap_or(defaults.image_size),
            patch_size: raw.patch_size.unwrap_or(defaults.patch_size),
            layer_norm_eps: raw.layer_norm_eps.unwrap_or(defaults.layer_norm_eps),
        };
        let (hidden, heads) = (config.hidden_size, config.num_attention_heads);
        require(&section, heads > 0 && hidden % heads == 0, "num_attention_heads", heads, "a divisor of hidden_size")?;
        let (side, patch) = (config.image_size, config.patch_size);
        require(&section, patch > 0 && side >= patch, "patch_size", patch, "at least 1 and at most image_size")?;
        Ok(config)
    }
}

/// Pixels -> one feature per patch, the class token's first.
pub(crate) struct VisionTower<B: Backend> {
    patch_embedding: Linear<B>,
    class_embedding: Tensor<B>,
    position_embedding: Tensor<B>,
    layers: Vec<Layer<B>>,
    post_layernorm: LayerNorm<B>,
    patch_size: usize,
}

impl<B: Backend> VisionTower<B> {
    pub(crate) fn load(w: &Weights<B>, cfg: &Config) -> Result<Self> {
        let embeddings = w.at("embeddings");
        let (hidden, patch, per_side) = (cfg.hidden_size, cfg.patch_size, cfg.image_size / cfg.patch_size);
        let positions = per_side * per_side + 1;
        let layer = |layer_idx| Layer::load(&w.at(&format!("encoder.layers.{layer_idx}")), cfg);
        Ok(Self {
            patch_embedding: embeddings.patch_embedding("patch_embedding", 3, patch, hidden)?,
            class_embedding: embeddings.values("class_embedding", &[1, 1, hidden])?.reshape(&[1, hidden]),
            position_embedding: embeddings
                .values("position_embedding", &[1, positions, hidden])?
                .reshape(&[positions, hidden]),
            layers: (0..cfg.num_hidden_layers).map(layer).collect::<Result<_>>()?,
            post_layernorm: w.layer_norm("post_layernorm", hidden, cfg.layer_norm_eps)?,
            patch_size: patch,
        })
    }

    /// `pixel_values` [1, 3, height, width] -> [1 + T, hidden]: the picture has the size of the position table.
    #[track_caller]
    pub(crate) fn forward(&self, pixel_values: &Tensor<B>, cancel: &Cancel) -> Tensor<B> {
        let patches = self.patch_embedding.forward(&pixel_values.unfold_patches(self.patch_size)); // [1, T, hidden]
        let patches = patches.reshape(&[patches.rows(), patches.width()]);
        let mut x = &Tensor::concat_rows(&[&self.class_embedding, &patches]) + &self.position_embedding;
        for layer in &self.layers {
            if cancel.is_cancelled() {
                break;
            }
            x = layer.forward(&x);
        }
        self.post_layernorm.forward(&x)
    }
}

struct Layer<B: Backend> {
    layer_norm1: LayerNorm<B>,
    qkv: Linear<B>,
    projection: Linear<B>,
    layer_norm2: LayerNorm<B>,
    fc1: Linear<B>,
    fc2: Linear<B>,
    n_heads: usize,
    scale: f32,
}

impl<B: Backend> Layer<B> {
    fn load(w: &Weights<B>, cfg: &Config) -> Result<Self> {
        let (attention, mlp, hidden) = (w.at("self_attn"), w.at("mlp"), cfg.hidden_size);
        Ok(Self {
            layer_norm1: w.layer_norm("layer_norm1", hidden, cfg.layer_norm_eps)?,
            qkv: attention.linear_bias("qkv", hidden, 3 * hidden)?,
            projection: attention.linear_bias("projection", hidden, hidden)?,
            layer_norm2: w.layer_norm("layer_norm2", hidden, cfg.layer_norm_eps)?,
            fc1: mlp.linear_bias("fc1", hidden, cfg.intermediate_size)?,
            fc2: mlp.linear_bias("fc2", cfg.intermediate_size, hidden)?,
            n_heads: cfg.num_attention_heads,
            scale: ((hidden / cfg.num_attention_heads) as f32).sqrt().recip(),
        })
    }

    /// `x` [1 + T, hidden] -> the same shape.
    fn forward(&self, x: &Tensor<B>) -> Tensor<B> {
        let hidden = x.width();
        let qkv = self.qkv.forward_parts(&self.layer_norm1.forward(x), [hidden; 3]);
        let [q, k, v] = qkv.map(|part| part.split_heads(self.n_heads)); // [1 + T, H, D]
        let attended = q.attend_all(&k, &v, 1, self.scale);
        let x = self.projection.forward_add(&attended.merge_heads(), x);
        let hidden = self.fc1.forward_then(&self.layer_norm2.forward(&x), Activation::Gelu);
        self.fc2.forward_add(&hidden, &x)
    }
}
