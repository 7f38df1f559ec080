//! CLIP vision tower as LLaVA uses it (transformers `modeling_clip.py`, `CLIPVisionTransformer`). N pictures, T patches of
//! one.
//!
//! Pre-norm ViT with a class token in front, learned positions and a norm before the first layer. Surprises: the patch
//! convolution has no bias, and what is wanted is the output of an inner layer, without the last norm.

use ocelli_backend::{Activation, Backend, Cancel, LayerNorm, Linear, Tensor, Weights};
use ocelli_formats::Section;
use serde::Deserialize;

use crate::error::{Result, require};
use crate::vit::{EncoderLayer, LayerDims};

/// `vision_config`; defaults are those of transformers.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub(crate) struct Config {
    pub(crate) hidden_size: usize,
    intermediate_size: usize,
    pub(crate) num_hidden_layers: usize,
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
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            patch_size: 32,
            hidden_act: "quick_gelu".to_owned(),
            layer_norm_eps: 1e-5,
        }
    }
}

impl Config {
    /// Reads and checks `vision_config`.
    pub(crate) fn parse(section: &Section) -> Result<Self> {
        let config: Self = section.parse()?;
        let (act, hidden, heads) = (&config.hidden_act, config.hidden_size, config.num_attention_heads);
        require(section, config.activation().is_some(), "hidden_act", act, "quick_gelu or gelu")?;
        require(section, heads > 0 && hidden % heads == 0, "num_attention_heads", heads, "a divisor of hidden_size")?;
        let (side, patch) = (config.image_size, config.patch_size);
        require(section, patch > 0 && side >= patch, "patch_size", patch, "at least 1 and at most image_size")?;
        Ok(config)
    }

    fn activation(&self) -> Option<Activation> {
        match self.hidden_act.as_str() {
            "quick_gelu" => Some(Activation::QuickGelu),
            "gelu" => Some(Activation::Gelu),
            _ => None,
        }
    }
}

/// The first layers of the tower: pixels -> one feature per patch, the class token's first.
pub(crate) struct Clip<B: Backend> {
    patch_embedding: Linear<B>,
    class_embedding: Tensor<B>,
    position_embedding: Tensor<B>,
    pre_layernorm: LayerNorm<B>,
    layers: Vec<EncoderLayer<B>>,
    patch_size: usize,
}

impl<B: Backend> Clip<B> {
    /// Loads `n_layers` layers of the tower.
    pub(crate) fn load(w: &Weights<B>, cfg: &Config, n_layers: usize) -> Result<Self> {
        let embeddings = w.at("embeddings");
        let (hidden, patch) = (cfg.hidden_size, cfg.patch_size);
        let positions = (cfg.image_size / patch) * (cfg.image_size / patch) + 1;
        let dims = LayerDims {
            hidden_size: hidden,
            intermediate_size: cfg.intermediate_size,
            num_attention_heads: cfg.num_attention_heads,
            layer_norm_eps: cfg.layer_norm_eps,
            activation: cfg.activation().unwrap_or(Activation::QuickGelu),
        };
        let layer = |layer_idx| EncoderLayer::load(&w.at(&format!("encoder.layers.{layer_idx}")), &dims);
        Ok(Self {
            patch_embedding: embeddings.patch_embedding_no_bias("patch_embedding", cfg.num_channels, patch, hidden)?,
            class_embedding: embeddings.values("class_embedding", &[hidden])?.reshape(&[1, hidden]),
            position_embedding: embeddings.values("position_embedding.weight", &[positions, hidden])?,
            // Sic: the published name has a typing error.
            pre_layernorm: w.layer_norm("pre_layrnorm", hidden, cfg.layer_norm_eps)?,
            layers: (0..n_layers).map(layer).collect::<Result<_>>()?,
            patch_size: patch,
        })
    }

    /// `pixel_values` [1, 3, height, width] -> [1, 1 + T, hidden]: the picture has the size of the position table.
    #[track_caller]
    pub(crate) fn forward(&self, pixel_values: &Tensor<B>, cancel: &Cancel) -> Tensor<B> {
        let patches = self.patch_embedding.forward(&pixel_values.unfold_patches(self.patch_size)); // [1, T, hidden]
        let (n_patches, hidden) = (patches.rows(), patches.width());
        let x = Tensor::concat_rows(&[&self.class_embedding, &patches.reshape(&[n_patches, hidden])]);
        let x = (&x + &self.position_embedding).reshape(&[1, n_patches + 1, hidden]);
        let mut x = self.pre_layernorm.forward(&x);
        for layer in &self.layers {
            if cancel.is_cancelled() {
                break;
            }
            x = layer.forward(&x);
        }
        x
    }
}
