//! Vision transformer in the names of timm (`vision_transformer.py`) as DeepSeek-VL2 uses it: SigLIP without a class
//! token and without pooling. N tiles, T patches of one tile, H heads, D head size.
//!
//! Surprises: queries, keys and values come from one matrix, and the hidden size of a block is a ratio, cut off.

use ocelli_backend::{Activation, Backend, Cancel, LayerNorm, Linear, Tensor, Weights};
use ocelli_formats::Section;
use serde::Deserialize;

use crate::error::{Result, require};

/// `vision_config`; defaults are those of the published code.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub(crate) struct Config {
    pub(crate) width: usize,
    layers: usize,
    heads: usize,
    mlp_ratio: f64,
    image_size: usize,
    pub(crate) patch_size: usize,
    class_token: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { width: 1024, layers: 24, heads: 16, mlp_ratio: 4.0, image_size: 384, patch_size: 16, class_token: false }
    }
}

impl Config {
    /// Reads and checks `vision_config`.
    pub(crate) fn parse(section: &Section) -> Result<Self> {
        let config: Self = section.parse()?;
        let (width, heads) = (config.width, config.heads);
        require(section, heads > 0 && width.is_multiple_of(heads), "heads", heads, "a divisor of width")?;
        let (image, patch) = (config.image_size, config.patch_size);
        require(section, patch > 0 && image >= patch, "patch_size", patch, "at least 1 and at most image_size")?;
        let ratio = config.mlp_ratio;
        require(section, ratio.is_finite() && ratio > 0.0 && ratio < 100.0, "mlp_ratio", ratio, "0 to 100")?;
        require(section, !config.class_token, "class_token", true, "false")?;
        Ok(config)
    }

    /// Patches along one side of a tile.
    pub(crate) fn side(&self) -> usize {
        self.image_size / self.patch_size
    }
}

/// The tower: tiles -> one feature per patch.
pub(crate) struct VisionTransformer<B: Backend> {
    patch_embed: Linear<B>,
    pos_embed: Tensor<B>,
    blocks: Vec<Block<B>>,
    norm: LayerNorm<B>,
    patch_size: usize,
}

impl<B: Backend> VisionTransformer<B> {
    pub(crate) fn load(w: &Weights<B>, cfg: &Config) -> Result<Self> {
        let block = |idx| Block::load(&w.at(&format!("blocks.{idx}")), cfg);
        let positions = w.values("pos_embed", &[1, cfg.side() * cfg.side(), cfg.width])?;
        Ok(Self {
            patch_embed: w.at("patch_embed").patch_embedding("proj", 3, cfg.patch_size, cfg.width)?,
            pos_embed: positions,
            blocks: (0..cfg.layers).map(block).collect::<Result<_>>()?,
            norm: w.layer_norm("norm", cfg.width, NORM_EPS)?,
            patch_size: cfg.patch_size,
        })
    }

    /// `pixel_values` [N, 3, side, side] -> [N, T, width], patches row by row.
    pub(crate) fn forward(&self, pixel_values: &Tensor<B>, cancel: &Cancel) -> Tensor<B> {
        let patches = pixel_values.unfold_patches(self.patch_size); // [N, T, 3 × patch × patch]
        let mut x = self.patch_embed.forward(&patches).add_repeated(&self.pos_embed);
        for block in &self.blocks {
            if cancel.is_cancelled() {
                break;
            }
            x = block.forward(&x);
        }
        self.norm.forward(&x)
    }
}

struct Block<B: Backend> {
    norm1: LayerNorm<B>,
    qkv: Linear<B>,
    proj: Linear<B>,
    norm2: LayerNorm<B>,
    fc1: Linear<B>,
    fc2: Linear<B>,
    heads: usize,
    scale: f32,
}

impl<B: Backend> Block<B> {
    fn load(w: &Weights<B>, cfg: &Config) -> Result<Self> {
        let (attention, mlp, width) = (w.at("attn"), w.at("mlp"), cfg.width);
        let inner = (width as f64 * cfg.mlp_ratio) as usize;
        Ok(Self {
            norm1: w.layer_norm("norm1", width, NORM_EPS)?,
            qkv: attention.linear_bias("qkv", width, 3 * width)?,
            proj: attention.linear_bias("proj", width, width)?,
            norm2: w.layer_norm("norm2", width, NORM_EPS)?,
            fc1: mlp.linear_bias("fc1", width, inner)?,
            fc2: mlp.linear_bias("fc2", inner, width)?,
            heads: cfg.heads,
            scale: ((width / cfg.heads) as f32).sqrt().recip(),
        })
    }

    /// `x` [N, T, width] -> the same shape.
    fn forward(&self, x: &Tensor<B>) -> Tensor<B> {
        let width = x.width();
        let qkv = self.qkv.forward_parts(&self.norm1.forward(x), [width; 3]); // [N, T, width] each
        let [q, k, v] = qkv.map(|part| part.split_heads(self.heads));
        let attended = q.attend_all(&k, &v, x.shape()[0], self.scale);
        let x = self.proj.forward_add(&attended.merge_heads().reshape(x.shape()), x);
        let hidden = self.fc1.forward_then(&self.norm2.forward(&x), Activation::GeluTanh);
        self.fc2.forward_add(&hidden, &x)
    }
}

const NORM_EPS: f64 = 1e-6;
