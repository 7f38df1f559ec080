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

    /// [`Self::forward`] of a layer that is several side by side: `[…, widths[i]]` each.
    #[track_caller]
    pub fn forward_parts<const N: usize>(&self, x: &Tensor<B>, widths: [usize; N]) -> [Tensor<B>; N] {
        self.check(x);
        assert_eq!(widths.iter().sum::<usize>(), self.out_features, "{widths:?} are not all features");
        let epilogue = self.epilogue(Activation::None, None);
        let mut parts = x.backend().linear_parts(x.buffer(), x.rows(), &self.weight, epilogue, &widths).into_iter();
        widths.map(|width| self.wrap(x, parts.next().expect("a part per width"), width))
    }

    /// [`Self::forward`] of several layers on the same `x`, in one operation.
    #[track_caller]
    pub fn forward_many<const N: usize>(layers: [&Self; N], x: &Tensor<B>) -> [Tensor<B>; N] {
        let products = layers.map(|layer| {
            layer.check(x);
            (&*layer.weight, layer.epilogue(Activation::None, None))
        });
        let mut results = x.backend().linears(x.buffer(), x.rows(), &products).into_iter();
        layers.map(|layer| layer.wrap(x, results.next().expect("one result per layer"), layer.out_features))
    }

    #[track_caller]
    fn run(&self, x: &Tensor<B>, activation: Activation, residual: Option<&Tensor<B>>) -> Tensor<B> {
        self.check(x);
        let epilogue = self.epilogue(activation, residual);
        self.wrap(x, x.backend().linear(x.buffer(), x.rows(), &self.weight, epilogue), self.out_features)
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
    fn wrap(&self, x: &Tensor<B>, product: B::Buffer, width: usize) -> Tensor<B> {
        let mut shape = x.shape().to_vec();
        *shape.last_mut().expect("a tensor has a dimension") = width;
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
    /// Elements that are normalised together.
    pub fn width(&self) -> usize {
        self.weight.width()
    }

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
    /// `[…, hidden]` -> the same shape.
    #[track_caller]
    pub fn forward(&self, x: &Tensor<B>) -> Tensor<B> {
        self.down.forward(&self.gated(x))
    }

    /// `[…, hidden]` -> the same shape, `residual` added.
    #[track_caller]
    pub fn forward_add(&self, x: &Tensor<B>, residual: &Tensor<B>) -> Tensor<B> {
        self.down.forward_add(&self.gated(x), residual)
    }

    #[track_caller]
    fn gated(&self, x: &Tensor<B>) -> Tensor<B> {
        self.gate.check(x);
        let gated = x.backend().swiglu(x.buffer(), x.rows(), &self.gate.weight, &self.up.weight);
        self.gate.wrap(x, gated, self.gate.out_features)
    }
}
