//! Layers: a weight and the operation it is used in. Loading checks shapes; `forward` cannot fail.

use std::sync::Arc;

use crate::ops::{Activation, Backend, Epilogue};
use crate::tensor::Tensor;

/// `x · Wᵀ + b`.
pub struct Linear<B: Backend> {
    pub(crate) weight: Arc<B::Weight>,
    pub(crate) bias: Option<Tensor<B>>,
    pub(crate) out_features: usize,
    pub(crate) in_features: usize,
}

impl<B: Backend> Linear<B> {
    /// `[…, in]` -> `[…, out]`.
    #[track_caller]
    pub fn forward(&self, x: &Tensor<B>) -> Tensor<B> {
        self.run(x, Activation::None, None)
    }

    /// `activation(x · Wᵀ + b)`.
    #[track_caller]
    pub fn forward_then(&self, x: &Tensor<B>, activation: Activation) -> Tensor<B> {
        self.run(x, activation, None)
    }

    /// `x · Wᵀ + b + residual`.
    #[track_caller]
    pub fn forward_add(&self, x: &Tensor<B>, residual: &Tensor<B>) -> Tensor<B> {
        assert_eq!(residual.width(), self.out_features, "residual {:?} does not fit", residual.shape());
        self.run(x, Activation::None, Some(residual))
    }

    /// [`Self::forward`] of several layers on the same `x`, in one operation.
    #[track_caller]
    pub fn forward_many<const N: usize>(layers: [&Self; N], x: &Tensor<B>) -> [Tensor<B>; N] {
        let products = layers.map(|layer| {
            layer.check(x);
            (&*layer.weight, layer.epilogue(Activation::None, None))
        });
        let mut results = x.backend().linears(x.buffer(), x.rows(), &products).into_iter();
        layers.map(|layer| layer.wrap(x, results.next().expect("one result per layer")))
    }

    #[track_caller]
    fn run(&self, x: &Tensor<B>, activation: Activation, residual: Option<&Tensor<B>>) -> Tensor<B> {
        self.check(x);
        let epilogue = self.epilogue(activation, residual);
        self.wrap(x, x.backend().linear(x.buffer(), x.rows(), &self.weight, epilogue))
    }

    #[track_caller]
    fn check(&self, x: &Tensor<B>) {
        assert_eq!(x.width(), self.in_features, "{:?} does not end in {} features", x.shape(), self.in_features);
    }

    fn epilogue<'a>(&'a self, activation: Activation, residual: Option<&'a Tensor<B>>) -> Epilogue<'a, B> {
        let bias = self.bias.as_ref().map(Tensor::buffer);
        Epilogue { bias, activation, residual: residual.map(Tensor::buffer) }
    }

    /// A product with `x`: the shape of `x`, but for the last dimension.
    fn wrap(&self, x: &Tensor<B>, product: B::Buffer) -> Tensor<B> {
        let mut shape = x.shape().to_vec();
        *shape.last_mut().expect("a tensor has a dimension") = self.out_features;
        Tensor::wrap(x.backend(), product, shape)
    }
}

/// A table of rows by token id.
pub struct Embedding<B: Backend> {
    pub(crate) backend: B,
    pub(crate) weight: Arc<B::Weight>,
    pub(crate) count: usize,
    pub(crate) width: usize,
}

impl<B: Backend> Embedding<B> {
    /// Token ids -> `[ids, width]`.
    #[track_caller]
    pub fn forward(&self, ids: &[u32]) -> Tensor<B> {
        assert!(ids.iter().all(|&id| (id as usize) < self.count), "token id beyond the vocabulary of {}", self.count);
        Tensor::wrap(&self.backend, self.backend.embed(&self.weight, ids), vec![ids.len(), self.width])
    }

    /// The same weight as an output layer (tied embeddings).
    pub fn as_linear(&self) -> Linear<B> {
        Linear { weight: Arc::clone(&self.weight), bias: None, out_features: self.count, in_features: self.width }
    }

    /// Rows of the table: the vocabulary, as the checkpoint pads it.
    pub fn count(&self) -> usize {
        self.count
    }
}

/// Root-mean-square normalisation (Zhang and Sennrich 2019).
pub struct RmsNorm<B: Backend> {
    pub(crate) weight: Tensor<B>,
    pub(crate) eps: f32,
}

impl<B: Backend> RmsNorm<B> {
    /// `[…, width]` -> the same shape.
    #[track_caller]
    pub fn forward(&self, x: &Tensor<B>) -> Tensor<B> {
        assert_eq!(x.width(), self.weight.width(), "{:?} is not normalised over {}", x.shape(), self.weight.width());
        x.like(x.backend().rms_norm(x.buffer(), self.weight.buffer(), self.eps))
    }
}

/// Layer normalisation with weight and bias.
pub struct LayerNorm<B: Backend> {
    pub(crate) weight: Tensor<B>,
    pub(crate) bias: Tensor<B>,
    pub(crate) eps: f32,
}

impl<B: Backend> LayerNorm<B> {
    /// `[…, width]` -> the same shape.
    #[track_caller]
    pub fn forward(&self, x: &Tensor<B>) -> Tensor<B> {
        assert_eq!(x.width(), self.weight.width(), "{:?} is not normalised over {}", x.shape(), self.weight.width());
        x.like(x.backend().layer_norm(x.buffer(), self.weight.buffer(), self.bias.buffer(), self.eps))
    }
}

/// The gated feed-forward part of Llama: `down(silu(gate(x)) * up(x))`.
pub struct SwiGlu<B: Backend> {
    pub(crate) gate: Linear<B>,
    pub(crate) up: Linear<B>,
    pub(crate) down: Linear<B>,
}

impl<B: Backend> SwiGlu<B> {
    /// `[…, hidden]` -> the same shape, `residual` added.
    #[track_caller]
    pub fn forward_add(&self, x: &Tensor<B>, residual: &Tensor<B>) -> Tensor<B> {
        self.gate.check(x);
        let hidden = x.backend().swiglu(x.buffer(), x.rows(), &self.gate.weight, &self.up.weight);
        self.down.forward_add(&self.gate.wrap(x, hidden), residual)
    }
}

/// Rotary position embedding (Su et al. 2021): the angle of each pair of elements per position.
pub struct Rope {
    inverse_frequencies: Vec<f32>,
}

/// How a model stretches its rotary frequencies beyond the context that it was first trained with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Llama 3.1's: long waves are slowed by `factor`, short ones kept, those between blended
    /// (transformers `modeling_rope_utils.py`, `_compute_llama3_parameters`).
    Llama3 {
        /// How far long waves are stretched.
        factor: f64,
        /// Waves longer than the original context over this are stretched fully.
        low_freq_factor: f64,
        /// Waves shorter than the original context over this are kept.
        high_freq_factor: f64,
        /// The original context in tokens.
        original_max_position_embeddings: f64,
    },
    /// All positions divided by a factor.
    Linear {
        /// The divisor.
        factor: f64,
    },
}

/// The rotation angles of one step's rows, shared by all layers.
pub struct RopeRows<B: Backend> {
    pub(crate) cos: Tensor<B>,
    pub(crate) sin: Tensor<B>,
}

impl Rope {
    /// Frequencies for heads of `head_dim` elements.
    pub fn new(head_dim: usize, theta: f64, scaling: Option<RopeScaling>) -> Self {
        let plain = (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64));
        let scaled = plain.map(|frequency| scaling.map_or(frequency, |scaling| scaling.apply(frequency)));
        Self { inverse_frequencies: scaled.map(|frequency| frequency as f32).collect() }
    }

    /// Angles for rows at these positions.
    pub fn rows<B: Backend>(&self, backend: &B, positions: &[usize]) -> RopeRows<B> {
        let angles = positions.iter().flat_map(|&position| {
            // The reference multiplies in float32; a float64 product would differ at large positions.
            self.inverse_frequencies.iter().map(move |frequency| position as f32 * frequency)
        });
        let (sin, cos): (Vec<f32>, Vec<f32>) = angles.map(f32::sin_cos).unzip();
        let shape = [positions.len(), self.inverse_frequencies.len()];
        RopeRows { cos: Tensor::new(backend, &cos, &shape), sin: Tensor::new(backend, &sin, &shape) }
    }
}

impl RopeScaling {
    fn apply(self, frequency: f64) -> f64 {
        match self {
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let waves = original_max_position_embeddings * frequency / std::f64::consts::TAU;
                let blend = ((waves - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                (1.0 - blend) * frequency / factor + blend * frequency
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_scaling_keeps_short_waves_and_slows_long_ones() {
        let scaling = RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192.0,
        };
        assert_eq!(scaling.apply(1.0), 1.0);
        assert_eq!(scaling.apply(1e-5), 1e-5 / 32.0);
        let between = scaling.apply(std::f64::consts::TAU / 8192.0 * 2.5);
        assert!((between / (std::f64::consts::TAU / 8192.0 * 2.5) - (0.5 + 0.5 / 32.0)).abs() < 1e-12);
    }
}
