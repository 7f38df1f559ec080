//! The layer of CLIP and SigLIP vision towers (transformers `modeling_clip.py`, `modeling_siglip.py`), which differ in
//! its activation only. N pictures, T tokens of one, H heads, D head size.

use ocelli_backend::{Activation, Backend, LayerNorm, Linear, Tensor, Weights};

use crate::error::Result;

/// Sizes of a layer.
pub(crate) struct LayerDims {
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) num_attention_heads: usize,
    pub(crate) layer_norm_eps: f64,
    pub(crate) activation: Activation,
}

/// A pre-norm layer.
pub(crate) struct EncoderLayer<B: Backend> {
    layer_norm1: LayerNorm<B>,
    attention: Attention<B>,
    layer_norm2: LayerNorm<B>,
    fc1: Linear<B>,
    fc2: Linear<B>,
    activation: Activation,
}

impl<B: Backend> EncoderLayer<B> {
    pub(crate) fn load(w: &Weights<B>, dims: &LayerDims) -> Result<Self> {
        let mlp = w.at("mlp");
        Ok(Self {
            layer_norm1: w.layer_norm("layer_norm1", dims.hidden_size, dims.layer_norm_eps)?,
            attention: Attention::load(&w.at("self_attn"), dims)?,
            layer_norm2: w.layer_norm("layer_norm2", dims.hidden_size, dims.layer_norm_eps)?,
            fc1: mlp.linear_bias("fc1", dims.hidden_size, dims.intermediate_size)?,
            fc2: mlp.linear_bias("fc2", dims.intermediate_size, dims.hidden_size)?,
            activation: dims.activation,
        })
    }

    /// `x` [N, T, hidden] -> the same shape.
    pub(crate) fn forward(&self, x: &Tensor<B>) -> Tensor<B> {
        let x = self.attention.forward_add(&self.layer_norm1.forward(x), x);
        let hidden = self.fc1.forward_then(&self.layer_norm2.forward(&x), self.activation);
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
    fn load(w: &Weights<B>, dims: &LayerDims) -> Result<Self> {
        let linear = |name| w.linear_bias(name, dims.hidden_size, dims.hidden_size);
        Ok(Self {
            q_proj: linear("q_proj")?,
            k_proj: linear("k_proj")?,
            v_proj: linear("v_proj")?,
            out_proj: linear("out_proj")?,
            n_heads: dims.num_attention_heads,
            scale: ((dims.hidden_size / dims.num_attention_heads) as f32).sqrt().recip(),
        })
    }

    fn forward_add(&self, x: &Tensor<B>, residual: &Tensor<B>) -> Tensor<B> {
        let projections = Linear::forward_many([&self.q_proj, &self.k_proj, &self.v_proj], x);
        let [q, k, v] = projections.map(|projection| projection.split_heads(self.n_heads)); // [N × T, H, D]
        let attended = q.attend_all(&k, &v, x.shape()[0], self.scale);
        self.out_proj.forward_add(&attended.merge_heads().reshape(x.shape()), residual)
    }
}
