//! The parts of BERT's layer (transformers `modeling_blip_text.py`, `modeling_blip_2.py`), of which BLIP's text models and
//! the Q-Former are made. R rows, S rows that are looked at, H heads, D head size.
//!
//! Surprise: norms come last, after the residual sum (post-norm), unlike in every decoder of today.

use ocelli_backend::{Activation, Backend, LayerNorm, Linear, Tensor, Weights};

use crate::error::Result;

/// Sizes of a layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dims {
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) num_attention_heads: usize,
    pub(crate) layer_norm_eps: f64,
}

impl Dims {
    pub(crate) fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads.max(1)
    }
}

/// Attention with everything around it but the attending itself.
pub(crate) struct Attention<B: Backend> {
    query: Linear<B>,
    key: Linear<B>,
    value: Linear<B>,
    output: Output<B>,
    n_heads: usize,
    pub(crate) scale: f32,
}

impl<B: Backend> Attention<B> {
    /// `inner` is where the projections are; `looked_at` is the width of what keys and values are made of: `hidden_size`,
    /// unless it attends to something else.
    pub(crate) fn load(w: &Weights<B>, inner: &str, dims: &Dims, looked_at: usize) -> Result<Self> {
        let (own, hidden) = (w.at(inner), dims.hidden_size);
        Ok(Self {
            query: own.linear_bias("query", hidden, hidden)?,
            key: own.linear_bias("key", looked_at, hidden)?,
            value: own.linear_bias("value", looked_at, hidden)?,
            output: Output::load(&w.at("output"), hidden, dims)?,
            n_heads: dims.num_attention_heads,
            scale: (dims.head_dim() as f32).sqrt().recip(),
        })
    }

    /// `x` [R, hidden] -> queries, keys and values [R, H, D] of the same rows.
    pub(crate) fn project(&self, x: &Tensor<B>) -> [Tensor<B>; 3] {
        let projected = Linear::forward_many([&self.query, &self.key, &self.value], x);
        projected.map(|projection| projection.split_heads(self.n_heads))
    }

    /// `x` [R, hidden] -> queries [R, H, D].
    pub(crate) fn queries(&self, x: &Tensor<B>) -> Tensor<B> {
        self.query.forward(x).split_heads(self.n_heads)
    }

    /// `states` [S, width] -> keys and values [S, H, D].
    pub(crate) fn keys_values(&self, states: &Tensor<B>) -> (Tensor<B>, Tensor<B>) {
        let [k, v] = Linear::forward_many([&self.key, &self.value], states);
        (k.split_heads(self.n_heads), v.split_heads(self.n_heads))
    }

    /// What was attended to [R, H, D] and the layer's input [R, hidden] -> [R, hidden].
    pub(crate) fn finish(&self, attended: &Tensor<B>, x: &Tensor<B>) -> Tensor<B> {
        self.output.forward(&attended.merge_heads(), x)
    }

    /// `x` [R, hidden] -> [R, hidden], all rows seeing each other.
    pub(crate) fn forward_all(&self, x: &Tensor<B>) -> Tensor<B> {
        let [q, k, v] = self.project(x);
        self.finish(&q.attend_all(&k, &v, 1, self.scale), x)
    }

    /// `x` [R, hidden] -> [R, hidden], all rows seeing all of `states` [S, width].
    pub(crate) fn forward_across(&self, x: &Tensor<B>, states: &Tensor<B>) -> Tensor<B> {
        let (k, v) = self.keys_values(states);
        self.finish(&self.queries(x).attend_all(&k, &v, 1, self.scale), x)
    }
}

/// `norm(output(gelu(intermediate(x))) + x)`.
pub(crate) struct FeedForward<B: Backend> {
    intermediate: Linear<B>,
    output: Output<B>,
}

impl<B: Backend> FeedForward<B> {
    /// Loads `intermediate` and `output`, with this behind both names.
    pub(crate) fn load(w: &Weights<B>, suffix: &str, dims: &Dims) -> Result<Self> {
        let intermediate = w.at(&format!("intermediate{suffix}"));
        Ok(Self {
            intermediate: intermediate.linear_bias("dense", dims.hidden_size, dims.intermediate_size)?,
            output: Output::load(&w.at(&format!("output{suffix}")), dims.intermediate_size, dims)?,
        })
    }

    /// [R, hidden] -> [R, hidden].
    pub(crate) fn forward(&self, x: &Tensor<B>) -> Tensor<B> {
        self.output.forward(&self.intermediate.forward_then(x, Activation::Gelu), x)
    }
}

/// `norm(dense(hidden) + residual)`.
struct Output<B: Backend> {
    dense: Linear<B>,
    layer_norm: LayerNorm<B>,
}

impl<B: Backend> Output<B> {
    fn load(w: &Weights<B>, inputs: usize, dims: &Dims) -> Result<Self> {
        Ok(Self {
            dense: w.linear_bias("dense", inputs, dims.hidden_size)?,
            layer_norm: w.layer_norm("LayerNorm", dims.hidden_size, dims.layer_norm_eps)?,
        })
    }

    fn forward(&self, hidden: &Tensor<B>, residual: &Tensor<B>) -> Tensor<B> {
        self.layer_norm.forward(&self.dense.forward_add(hidden, residual))
    }
}
