//! The decoder of Llama, Qwen2 and Qwen3, which differ in whether queries, keys and values have biases, whether query and
//! key heads are normalised, and how they are rotated. R rows, H query heads, K key/value heads, D head size.

use ocelli_backend::{
    Backend, Embedding, KvCache, KvShape, LayerKv, Linear, RmsNorm, Rope, RopeRows, Step, SwiGlu, Tensor, Weights,
};

use crate::Model;
use crate::error::Result;
use crate::mrope::MRope;

/// Sizes of a decoder, and what its attention has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DecoderDims {
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) vocab_size: usize,
    pub(crate) rms_norm_eps: f64,
    /// The output layer is the embedding table once more.
    pub(crate) tied: bool,
    /// Queries, keys and values have biases.
    pub(crate) has_bias: bool,
    /// Query and key heads are normalised before they are rotated.
    pub(crate) has_head_norms: bool,
}

impl DecoderDims {
    pub(crate) fn kv_shape(&self) -> KvShape {
        KvShape { layers: self.layers, kv_heads: self.kv_heads, head_dim: self.head_dim }
    }
}

/// How heads turn with their tokens' places.
pub(crate) enum Rotation {
    /// By running numbers.
    Running(Rope),
    /// By places on three axes.
    Axes(MRope),
}

impl Rotation {
    fn rows<B: Backend>(&self, backend: &B, step: &Step) -> RopeRows<B> {
        match self {
            Self::Running(rope) => rope.rows(backend, step.positions()),
            Self::Axes(rope) => rope.rows(backend, step.places()),
        }
    }
}

/// Everything but the output layer: what vision-language models embed as their text half.
pub(crate) struct Decoder<B: Backend> {
    pub(crate) embed_tokens: Embedding<B>,
    layers: Vec<DecoderLayer<B>>,
    norm: RmsNorm<B>,
    rotation: Rotation,
}

impl<B: Backend> Decoder<B> {
    fn load(w: &Weights<B>, embed_tokens: Embedding<B>, dims: &DecoderDims, rotation: Rotation) -> Result<Self> {
        let layer = |layer_idx| DecoderLayer::load(&w.at(&format!("layers.{layer_idx}")), dims);
        Ok(Self {
            embed_tokens,
            layers: (0..dims.layers).map(layer).collect::<Result<_>>()?,
            norm: w.rms_norm("norm", dims.hidden_size, dims.rms_norm_eps)?,
            rotation,
        })
    }

    /// `x` [R, hidden] -> [R, hidden], normalised.
    pub(crate) fn forward(&self, x: &Tensor<B>, step: &Step, kv: &mut KvCache<B>) -> Tensor<B> {
        self.forward_deeper(x, &[], step, kv)
    }

    /// As [`Self::forward`]; `deeper` holds what is added behind the first layers, [R, hidden] each.
    pub(crate) fn forward_deeper(
        &self,
        x: &Tensor<B>,
        deeper: &[Tensor<B>],
        step: &Step,
        kv: &mut KvCache<B>,
    ) -> Tensor<B> {
        let rope = self.rotation.rows(x.backend(), step);
        let mut x = x.clone();
        for (layer_idx, layer) in self.layers.iter().enumerate() {
            if step.is_cancelled() {
                break;
            }
            x = layer.forward(&x, &rope, step, kv.layer(layer_idx));
            if let Some(deeper) = deeper.get(layer_idx) {
                x = &x + deeper;
            }
        }
        self.norm.forward(&x)
    }
}

/// A decoder with its output layer: a language model by itself, or the text half of one that sees.
pub(crate) struct CausalLm<B: Backend> {
    pub(crate) decoder: Decoder<B>,
    lm_head: Linear<B>,
    pub(crate) dims: DecoderDims,
    max_positions: usize,
}

impl<B: Backend> CausalLm<B> {
    /// Reads the output layer from `w` (unless it is the embedding table once more), everything else from `decoder`.
    ///
    /// The two largest matrices come first: what it takes to turn a matrix into codes is not needed on top of all
    /// other weights then.
    pub(crate) fn load(
        w: &Weights<B>,
        decoder: &Weights<B>,
        dims: DecoderDims,
        rotation: Rotation,
        max_positions: usize,
    ) -> Result<Self> {
        let embed_tokens = decoder.embedding("embed_tokens", dims.vocab_size, dims.hidden_size)?;
        let lm_head =
            if dims.tied { embed_tokens.as_linear() } else { w.output("lm_head", dims.hidden_size, dims.vocab_size)? };
        let decoder = Decoder::load(decoder, embed_tokens, &dims, rotation)?;
        Ok(Self { lm_head, decoder, dims, max_positions })
    }
}

impl<B: Backend> Model<B> for CausalLm<B> {
    fn kv_shape(&self) -> KvShape {
        self.dims.kv_shape()
    }

    fn max_positions(&self) -> usize {
        self.max_positions
    }

    fn vocab_size(&self) -> usize {
        self.dims.vocab_size
    }

    fn embed(&self, ids: &[u32]) -> Tensor<B> {
        self.decoder.embed_tokens.forward(ids)
    }

    fn forward(&self, x: &Tensor<B>, step: &Step, kv: &mut KvCache<B>) -> Tensor<B> {
        self.decoder.forward(x, step, kv)
    }

    fn logits(&self, hidden: &Tensor<B>) -> Tensor<B> {
        self.lm_head.forward(hidden)
    }
}

struct DecoderLayer<B: Backend> {
    attention_norm: RmsNorm<B>,
    attention: Attention<B>,
    mlp_norm: RmsNorm<B>,
    mlp: SwiGlu<B>,
}

impl<B: Backend> DecoderLayer<B> {
    fn load(w: &Weights<B>, dims: &DecoderDims) -> Result<Self> {
        Ok(Self {
            attention_norm: w.rms_norm("input_layernorm", dims.hidden_size, dims.rms_norm_eps)?,
            attention: Attention::load(&w.at("self_attn"), dims)?,
            mlp_norm: w.rms_norm("post_attention_layernorm", dims.hidden_size, dims.rms_norm_eps)?,
            mlp: w.at("mlp").swiglu(dims.hidden_size, dims.intermediate_size)?,
        })
    }

    /// `x` [R, hidden] -> [R, hidden]; appends this layer's keys and values to `kv`.
    fn forward(&self, x: &Tensor<B>, rope: &RopeRows<B>, step: &Step, kv: &mut LayerKv<B>) -> Tensor<B> {
        let x = self.attention.forward_add(&self.attention_norm.forward(x), x, rope, step, kv);
        self.mlp.forward_add(&self.mlp_norm.forward(&x), &x)
    }
}

/// Attention of grouped queries.
pub(crate) struct Attention<B: Backend> {
    q_proj: Linear<B>,
    k_proj: Linear<B>,
    v_proj: Linear<B>,
    /// Of queries and of keys.
    head_norms: Option<[RmsNorm<B>; 2]>,
    o_proj: Linear<B>,
    heads: usize,
    kv_heads: usize,
    scale: f32,
}

impl<B: Backend> Attention<B> {
    pub(crate) fn load(w: &Weights<B>, dims: &DecoderDims) -> Result<Self> {
        let &DecoderDims { hidden_size, heads, kv_heads, head_dim, .. } = dims;
        let projection = |name, heads: usize| {
            let outputs = heads * head_dim;
            if dims.has_bias { w.linear_bias(name, hidden_size, outputs) } else { w.linear(name, hidden_size, outputs) }
        };
        let norm = |name| w.rms_norm(name, head_dim, dims.rms_norm_eps);
        Ok(Self {
            q_proj: projection("q_proj", heads)?,
            k_proj: projection("k_proj", kv_heads)?,
            v_proj: projection("v_proj", kv_heads)?,
            head_norms: if dims.has_head_norms { Some([norm("q_norm")?, norm("k_norm")?]) } else { None },
            o_proj: w.linear("o_proj", heads * head_dim, hidden_size)?,
            heads,
            kv_heads,
            scale: (head_dim as f32).sqrt().recip(),
        })
    }

    pub(crate) fn forward_add(
        &self,
        x: &Tensor<B>,
        residual: &Tensor<B>,
        rope: &RopeRows<B>,
        step: &Step,
        kv: &mut LayerKv<B>,
    ) -> Tensor<B> {
        let [q, k, v] = Linear::forward_many([&self.q_proj, &self.k_proj, &self.v_proj], x);
        let (mut q, mut k) = (q.split_heads(self.heads), k.split_heads(self.kv_heads)); // [R, H, D], [R, K, D]
        if let Some([q_norm, k_norm]) = &self.head_norms {
            (q, k) = (q_norm.forward(&q), k_norm.forward(&k));
        }
        let (q, k, v) = (q.rope(rope), k.rope(rope), v.split_heads(self.kv_heads));
        let attended = q.attend(kv.append(&k, &v, step), self.scale, step);
        self.o_proj.forward_add(&attended.merge_heads(), residual) // [R, hidden]
    }
}
