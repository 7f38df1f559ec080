//! Vision tower of Qwen2-VL (transformers `modeling_qwen2_vl.py`, `Qwen2VisionTransformerPretrainedModel`). T patches of
//! a picture, s the side of the square of patches that becomes one token.
//!
//! Surprises: the width is called `embed_dim`, and `hidden_size` is the decoder's; the feed-forward part uses
//! quick_gelu, the merger gelu.

use ocelli_backend::{Activation, Backend, Cancel, LayerNorm, Linear, RopeRows, Tensor, Weights};
use ocelli_formats::Section;
use serde::Deserialize;

use crate::error::{Result, require};
use crate::qwen_vision::{Attention, Grid, Merger, PatchConfig};
use crate::qwen_vl;

/// `vision_config`; defaults are those of transformers.
#[derive(Clone, Debug, Deserialize)]
struct Config {
    #[serde(default = "default_depth")]
    depth: usize,
    #[serde(default = "default_embed_dim")]
    embed_dim: usize,
    #[serde(default = "default_mlp_ratio")]
    mlp_ratio: usize,
    hidden_size: Option<usize>,
    #[serde(default = "default_hidden_act")]
    hidden_act: String,
}

/// The tower: patches -> one feature per token.
pub(crate) struct Tower<B: Backend> {
    patch_embedding: Linear<B>,
    blocks: Vec<Block<B>>,
    ln_q: LayerNorm<B>,
    merger: Merger<B>,
    patches: PatchConfig,
    embed_dim: usize,
}

impl<B: Backend> qwen_vl::Tower<B> for Tower<B> {
    fn load(w: &Weights<B>, section: &Section, text_hidden: usize) -> Result<Self> {
        let config: Config = section.parse()?;
        let embed_dim = config.embed_dim;
        let patches = PatchConfig::parse(section, embed_dim)?;
        let act = &config.hidden_act;
        require(section, act == "quick_gelu", "hidden_act", act, "quick_gelu")?;
        let out = config.hidden_size.unwrap_or(text_hidden);
        require(section, out == text_hidden, "hidden_size", out, "the decoder's hidden_size")?;
        let inner = embed_dim.checked_mul(config.mlp_ratio).filter(|&inner| inner > 0);
        require(section, inner.is_some(), "mlp_ratio", config.mlp_ratio, "a small positive number")?;
        let sizes = (embed_dim, inner.unwrap_or(embed_dim));
        let block = |block_idx| Block::load(&w.at(&format!("blocks.{block_idx}")), sizes, &patches);
        Ok(Self {
            patch_embedding: patches.embedding(w, embed_dim, false)?,
            blocks: (0..config.depth).map(block).collect::<Result<_>>()?,
            ln_q: w.layer_norm("merger.ln_q", embed_dim, NORM_EPS)?,
            merger: patches.merger(&w.at("merger.mlp"), ["0", "2"], embed_dim, out)?,
            patches,
            embed_dim,
        })
    }

    fn merge(&self) -> usize {
        self.patches.merge()
    }

    fn forward(&self, patches: &Tensor<B>, grid: Grid, cancel: &Cancel) -> Tensor<B> {
        let rope = self.patches.rope(patches.backend(), &grid.places(), self.embed_dim);
        let frames = grid.frame_starts();
        let mut x = self.patch_embedding.forward(patches); // [T, embed_dim]
        for block in &self.blocks {
            if cancel.is_cancelled() {
                break;
            }
            x = block.forward(&x, &rope, &frames);
        }
        self.merger.forward(&self.merger.fold(&self.ln_q.forward(&x))) // [T / s², text hidden]
    }
}

struct Block<B: Backend> {
    norm1: LayerNorm<B>,
    attention: Attention<B>,
    norm2: LayerNorm<B>,
    fc1: Linear<B>,
    fc2: Linear<B>,
}

impl<B: Backend> Block<B> {
    fn load(w: &Weights<B>, (hidden, inner): (usize, usize), patches: &PatchConfig) -> Result<Self> {
        let mlp = w.at("mlp");
        Ok(Self {
            norm1: w.layer_norm("norm1", hidden, NORM_EPS)?,
            attention: patches.attention(&w.at("attn"), hidden)?,
            norm2: w.layer_norm("norm2", hidden, NORM_EPS)?,
            fc1: mlp.linear_bias("fc1", hidden, inner)?,
            fc2: mlp.linear_bias("fc2", inner, hidden)?,
        })
    }

    /// `x` [T, hidden] -> the same shape.
    fn forward(&self, x: &Tensor<B>, rope: &RopeRows<B>, segments: &[usize]) -> Tensor<B> {
        let x = self.attention.forward_add(&self.norm1.forward(x), x, rope, segments);
        self.fc2.forward_add(&self.fc1.forward_then(&self.norm2.forward(&x), Activation::QuickGelu), &x)
    }
}

const NORM_EPS: f64 = 1e-6;

fn default_depth() -> usize {
    32
}

fn default_embed_dim() -> usize {
    1280
}

fn default_mlp_ratio() -> usize {
    4
}

fn default_hidden_act() -> String {
    "quick_gelu".to_owned()
}
