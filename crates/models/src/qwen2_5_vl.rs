//! Vision tower of Qwen2.5-VL (transformers `modeling_qwen2_5_vl.py`, `Qwen2_5_VisionTransformerPretrainedModel`). T
//! patches of a picture or video, s the side of the square of patches that becomes one token.
//!
//! Most layers look at windows of a few tokens per side only, so tokens are put window by window first and back at the
//! end. Surprises: windows at the right and at the bottom are smaller, nothing is padded; norms are those of Llama, but
//! every layer of the gated feed-forward part has a bias.

use ocelli_backend::{Activation, Backend, Cancel, Linear, RmsNorm, RopeRows, Tensor, Weights};
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
    hidden_size: usize,
    #[serde(default = "default_intermediate_size")]
    intermediate_size: usize,
    out_hidden_size: Option<usize>,
    #[serde(default = "default_window_size")]
    window_size: usize,
    #[serde(default = "default_fullatt_block_indexes")]
    fullatt_block_indexes: Vec<usize>,
    /// Places on the axis of time.
    #[serde(default = "default_tokens_per_second")]
    tokens_per_second: f32,
}

/// The tower: patches -> one feature per token.
pub(crate) struct Tower<B: Backend> {
    patch_embedding: Linear<B>,
    blocks: Vec<Block<B>>,
    ln_q: RmsNorm<B>,
    merger: Merger<B>,
    patches: PatchConfig,
    config: Config,
}

impl<B: Backend> qwen_vl::Tower<B> for Tower<B> {
    fn load(w: &Weights<B>, section: &Section, text_hidden: usize) -> Result<Self> {
        let config: Config = section.parse()?;
        let hidden = config.hidden_size;
        let patches = PatchConfig::parse(section, hidden)?;
        if let Some(act) = section.string("hidden_act")? {
            require(section, act == "silu", "hidden_act", act, "silu")?;
        }
        let out = config.out_hidden_size.unwrap_or(text_hidden);
        require(section, out == text_hidden, "out_hidden_size", out, "the decoder's hidden_size")?;
        let window = patches.tokens_per_side(config.window_size);
        require(section, window > 0, "window_size", config.window_size, "at least one token")?;
        let block = |block_idx| Block::load(&w.at(&format!("blocks.{block_idx}")), &config, &patches);
        Ok(Self {
            patch_embedding: patches.embedding(w, hidden, false)?,
            blocks: (0..config.depth).map(block).collect::<Result<_>>()?,
            ln_q: w.rms_norm("merger.ln_q", hidden, NORM_EPS)?,
            merger: patches.merger(&w.at("merger.mlp"), ["0", "2"], hidden, out)?,
            patches,
            config,
        })
    }

    fn merge(&self) -> usize {
        self.patches.merge()
    }

    fn frame_step(&self, seconds: f32) -> f32 {
        self.config.tokens_per_second * seconds
    }

    fn forward(&self, patches: &Tensor<B>, grid: Grid, cancel: &Cancel) -> Tensor<B> {
        let per_token = self.merge() * self.merge();
        let windows = Windows::new(grid.tokens(), self.patches.tokens_per_side(self.config.window_size));
        let order: Vec<usize> =
            windows.order.iter().flat_map(|&token| token * per_token..(token + 1) * per_token).collect();
        let segments: Vec<usize> = windows.starts.iter().map(|start| start * per_token).collect();
        let places = grid.places();
        let places: Vec<[usize; 2]> = order.iter().map(|&patch| places[patch]).collect();
        let rope = self.patches.rope(patches.backend(), &places, self.config.hidden_size);

        let frames = grid.frame_starts();
        let mut x = self.patch_embedding.forward(patches).gather_rows(&order); // [T, hidden]
        for (block_idx, block) in self.blocks.iter().enumerate() {
            if cancel.is_cancelled() {
                break;
            }
            let sees_all = self.config.fullatt_block_indexes.contains(&block_idx);
            x = block.forward(&x, &rope, if sees_all { &frames } else { &segments });
        }
        let merged = self.merger.forward(&self.merger.fold(&self.ln_q.forward(&x))); // [T / s², text hidden]
        merged.gather_rows(&windows.inverse())
    }
}

struct Block<B: Backend> {
    norm1: RmsNorm<B>,
    attention: Attention<B>,
    norm2: RmsNorm<B>,
    gate_proj: Linear<B>,
    up_proj: Linear<B>,
    down_proj: Linear<B>,
}

impl<B: Backend> Block<B> {
    fn load(w: &Weights<B>, cfg: &Config, patches: &PatchConfig) -> Result<Self> {
        let (hidden, inner, mlp) = (cfg.hidden_size, cfg.intermediate_size, w.at("mlp"));
        Ok(Self {
            norm1: w.rms_norm("norm1", hidden, NORM_EPS)?,
            attention: patches.attention(&w.at("attn"), hidden)?,
            norm2: w.rms_norm("norm2", hidden, NORM_EPS)?,
            gate_proj: mlp.linear_bias("gate_proj", hidden, inner)?,
            up_proj: mlp.linear_bias("up_proj", hidden, inner)?,
            down_proj: mlp.linear_bias("down_proj", inner, hidden)?,
        })
    }

    /// `x` [T, hidden] -> the same shape.
    fn forward(&self, x: &Tensor<B>, rope: &RopeRows<B>, segments: &[usize]) -> Tensor<B> {
        let x = self.attention.forward_add(&self.norm1.forward(x), x, rope, segments);
        let normed = self.norm2.forward(&x);
        let gate = self.gate_proj.forward_then(&normed, Activation::Silu);
        self.down_proj.forward_add(&(&gate * &self.up_proj.forward(&normed)), &x)
    }
}

/// Tokens window by window.
struct Windows {
    /// Which token comes when.
    order: Vec<usize>,
    /// Where each window begins.
    starts: Vec<usize>,
}

impl Windows {
    fn new([frames, rows, columns]: [usize; 3], side: usize) -> Self {
        let (mut order, mut starts) = (Vec::with_capacity(frames * rows * columns), Vec::new());
        for frame in 0..frames {
            for top in (0..rows).step_by(side) {
                for left in (0..columns).step_by(side) {
                    starts.push(order.len());
                    for row in top..rows.min(top + side) {
                        let first = (frame * rows + row) * columns;
                        order.extend(first + left..first + columns.min(left + side));
                    }
                }
            }
        }
        Self { order, starts }
    }

    /// Where each token went.
    fn inverse(&self) -> Vec<usize> {
        let mut inverse = vec![0; self.order.len()];
        for (place, &token) in self.order.iter().enumerate() {
            inverse[token] = place;
        }
        inverse
    }
}

const NORM_EPS: f64 = 1e-6;

fn default_depth() -> usize {
    32
}

fn default_intermediate_size() -> usize {
    3420
}

fn default_window_size() -> usize {
    112
}

fn default_fullatt_block_indexes() -> Vec<usize> {
    vec![7, 15, 23, 31]
}

fn default_tokens_per_second() -> f32 {
    4.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_at_the_edges_are_smaller() {
        let windows = Windows::new([1, 3, 5], 2);
        assert_eq!(windows.order, [0, 1, 5, 6, 2, 3, 7, 8, 4, 9, 10, 11, 12, 13, 14]);
        assert_eq!(windows.starts, [0, 4, 8, 10, 12, 14]);
        let back: Vec<usize> = windows.inverse().iter().map(|&place| windows.order[place]).collect();
        assert_eq!(back, (0..15).collect::<Vec<_>>());
    }

    #[test]
    fn frames_have_windows_of_their_own() {
        let windows = Windows::new([2, 2, 2], 4);
        assert_eq!(windows.order, [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(windows.starts, [0, 4]);
    }
}
