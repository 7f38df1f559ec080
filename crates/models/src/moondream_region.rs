//! Moondream's region head (upstream `region.py`): places and sizes, read off hidden states and given back as embeddings.
//!
//! A place on an axis is one of so many bins; a size is a power of two between 2^-10 and 1, one bin each for width and
//! height. Their embeddings are linear in the sines and cosines of learned frequencies. Surprise: a size is `2^(bin / 1023 ·
//! 10 - 10)` however many bins there are.

use std::f32::consts::TAU;

use ocelli_backend::{Backend, Linear, Tensor, Weights};
use serde::Deserialize;

use crate::Locator;
use crate::error::Result;
use crate::moondream::Mlp;

/// `config.region`, with upstream's defaults.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub(crate) struct Config {
    coord_feat_dim: usize,
    coord_out_dim: usize,
    size_feat_dim: usize,
    size_out_dim: usize,
    inner_dim: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { coord_feat_dim: 256, coord_out_dim: 1024, size_feat_dim: 512, size_out_dim: 2048, inner_dim: 8192 }
    }
}

/// The head.
pub(crate) struct Region<B: Backend> {
    coordinate: Number<B>,
    size: Number<B>,
}

/// A number or two: from hidden states to bins, and from values to embeddings.
struct Number<B: Backend> {
    decoder: Mlp<B>,
    encoder: Linear<B>,
    /// `[values, frequencies]`.
    frequencies: Vec<f32>,
    backend: B,
}

impl<B: Backend> Region<B> {
    /// Loads the head of a model whose hidden states have so many numbers.
    pub(crate) fn load(w: &Weights<B>, cfg: &Config, hidden: usize) -> Result<Self> {
        let number = |name: &str, values: usize, features: usize, bins: usize| -> Result<Number<B>> {
            let (plain, older) = (format!("{name}_features"), format!("{name}_features.weight"));
            let frequencies = if w.has(&older) {
                transposed(&w.values(&older, &[features / 2, values])?.to_vec(), values)
            } else {
                w.values(&plain, &[values, features / 2])?.to_vec()
            };
            Ok(Number {
                decoder: Mlp::load(&w.at(&format!("{name}_decoder")), hidden, cfg.inner_dim, bins)?,
                encoder: w.linear_bias(&format!("{name}_encoder"), features / 2 * 2, hidden)?,
                frequencies,
                backend: w.backend().clone(),
            })
        };
        Ok(Self {
            coordinate: number("coord", 1, cfg.coord_feat_dim, cfg.coord_out_dim)?,
            size: number("size", 2, cfg.size_feat_dim, cfg.size_out_dim)?,
        })
    }
}

impl<B: Backend> Locator<B> for Region<B> {
    fn read_place(&self, hidden: &Tensor<B>) -> f32 {
        let bins = self.coordinate.decoder.forward(hidden).to_vec();
        largest(&bins) as f32 / bins.len() as f32
    }

    fn embed_place(&self, place: f32) -> Tensor<B> {
        self.coordinate.embed(&[place])
    }

    fn read_size(&self, hidden: &Tensor<B>) -> [f32; 2] {
        let bins = self.size.decoder.forward(hidden).to_vec();
        let (width, height) = bins.split_at(bins.len() / 2);
        [width, height].map(|bins| (largest(bins) as f32 / 1023.0 * 10.0 - 10.0).exp2())
    }

    fn embed_size(&self, size: [f32; 2]) -> Tensor<B> {
        self.size.embed(&size)
    }
}

impl<B: Backend> Number<B> {
    /// Values -> [1, hidden].
    fn embed(&self, values: &[f32]) -> Tensor<B> {
        let count = self.frequencies.len() / values.len();
        let angle = |at: usize| -> f32 {
            values.iter().enumerate().map(|(row, value)| TAU * value * self.frequencies[row * count + at]).sum()
        };
        let angles: Vec<f32> = (0..count).map(angle).collect();
        let features: Vec<f32> =
            angles.iter().map(|angle| angle.cos()).chain(angles.iter().map(|angle| angle.sin())).collect();
        self.encoder.forward(&Tensor::new(&self.backend, &features, &[1, features.len()]))
    }
}

/// `[rows, width]` -> `[width, rows]`: as a layer, which it was in 2024, keeps frequencies.
fn transposed(values: &[f32], width: usize) -> Vec<f32> {
    (0..width).flat_map(|column| values.iter().skip(column).step_by(width).copied()).collect()
}

/// The first of the largest.
fn largest(values: &[f32]) -> usize {
    (1..values.len()).fold(0, |best, at| if values[at] > values[best] { at } else { best })
}
