//! Qwen3 text decoder as vision-language models embed it (transformers `modeling_qwen3_vl.py`, `Qwen3VLTextModel`).
//! R rows, H query heads, K key/value heads, D head size.
//!
//! Llama with a norm over every query and key head before they are rotated. Surprises: `head_dim` is 128 whatever
//! `hidden_size / num_attention_heads` is, and the first layers may get features of their own (DeepStack).

use ocelli_backend::{
    Backend, Embedding, KvCache, KvShape, LayerKv, Linear, RmsNorm, RopeRows, Step, SwiGlu, Tensor, Weights,
};
use ocelli_formats::Section;
use serde::Deserialize;

use crate::error::{Result, require};

/// The fields of `text_config` that the decoder needs; defaults are those of transformers.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Config {
    pub(crate) hidden_size: usize,
    intermediate_size: usize,
    pub(crate) num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    #[serde(default = "default_head_dim")]
    pub(crate) head_dim: usize,
    pub(crate) vocab_size: usize,
    #[serde(default = "default_max_position_embeddings")]
    pub(crate) max_position_embeddings: usize,
    #[serde(default = "default_rms_norm_eps")]
    rms_norm_eps: f64,
    #[serde(default = "default_rope_theta")]
    pub(crate) rope_theta: f64,
    #[serde(default)]
    pub(crate) tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    use_sliding_window: bool,
}

impl Config {
    /// Reads and checks the decoder's part of a config; how it rotates is the family's business.
    pub(crate) fn parse(section: &Section) -> Result<Self> {
        let config: Self = section.parse()?;
        if let Some(act) = section.string("hidden_act")? {
            require(section, act == "silu", "hidden_act", act, "silu")?;
        }
        require(section, !config.attention_bias, "attention_bias", true, "false")?;
        require(section, !config.use_sliding_window, "use_sliding_window", true, "false")?;
        let (heads, kv_heads, head_dim) = (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
        let divides = kv_heads > 0 && heads.is_multiple_of(kv_heads);
        require(section, divides, "num_key_value_heads", kv_heads, "a divisor of num_attention_heads")?;
        require(section, head_dim > 0 && head_dim.is_multiple_of(2), "head_dim", head_dim, "an even number")?;
        Ok(config)
    }

    pub(crate) fn kv_shape(&self) -> KvShape {
        KvShape { layers: self.num_hidden_layers, kv_heads: self.num_key_value_heads, head_dim: self.head_dim }
    }
}

/// Everything but the output layer.
pub(crate) struct Decoder<B: Backend> {
    pub(crate) embed_tokens: Embedding<B>,
    layers: Vec<DecoderLayer<B>>,
    norm: RmsNorm<B>,
}

impl<B: Backend> Decoder<B> {
    pub(crate) fn load(w: &Weights<B>, cfg: &Config) -> Result<Self> {
        let layer = |layer_idx| DecoderLayer::load(&w.at(&format!("layers.{layer_idx}")), cfg);
        Ok(Self {
            embed_tokens: w.embedding("embed_tokens", cfg.vocab_size, cfg.hidden_size)?,
            layers: (0..cfg.num_hidden_layers).map(layer).collect::<Result<_>>()?,
            norm: w.rms_norm("norm", cfg.hidden_size, cfg.rms_norm_eps)?,
        })
    }

    /// The output layer: a weight of its own, or the embedding table once more.
    pub(crate) fn lm_head(&self, w: &Weights<B>, cfg: &Config) -> Result<Linear<B>> {
        if cfg.tie_word_embeddings {
            return Ok(self.embed_tokens.as_linear());
        }
        Ok(w.output("lm_head", cfg.hidden_size, cfg.vocab_size)?)
    }

    /// `x` [R, hidden] -> [R, hidden], normalised. `deeper` holds what is added behind the first layers, [R, hidden]
    /// each.
    pub(crate) fn forward(
        &self,
        x: &Tensor<B>,
        deeper: &[Tensor<B>],
        rope: &RopeRows<B>,
        step: &Step,
        kv: &mut KvCache<B>,
    ) -> Tensor<B> {
        let mut x = x.clone();
        for (layer_idx, layer) in self.layers.iter().enumerate() {
            if step.is_cancelled() {
                break;
            }
            x = layer.forward(&x, rope, step, kv.layer(layer_idx));
            if let Some(deeper) = deeper.get(layer_idx) {
                x = &x + deeper;
            }
        }
        self.norm.forward(&x)
    }
}

struct DecoderLayer<B: Backend> {
    attention_norm: RmsNorm<B>,
    attention: Attention<B>,
    mlp_norm: RmsNorm<B>,
    mlp: SwiGlu<B>,
}

impl<B: Backend> DecoderLayer<B> {
    fn load(w: &Weights<B>, cfg: &Config) -> Result<Self> {
        Ok(Self {
            attention_norm: w.rms_norm("input_layernorm", cfg.hidden_size, cfg.rms_norm_eps)?,
            attention: Attention::load(&w.at("self_attn"), cfg)?,
            mlp_norm: w.rms_norm("post_attention_layernorm", cfg.hidden_size, cfg.rms_norm_eps)?,
            mlp: w.at("mlp").swiglu(cfg.hidden_size, cfg.intermediate_size)?,
        })
    }

    /// `x` [R, hidden] -> [R, hidden]; appends this layer's keys and values to `kv`.
    fn forward(&self, x: &Tensor<B>, rope: &RopeRows<B>, step: &Step, kv: &mut LayerKv<B>) -> Tensor<B> {
        let x = self.attention.forward_add(&self.attention_norm.forward(x), x, rope, step, kv);
        self.mlp.forward_add(&self.mlp_norm.forward(&x), &x)
    }
}

struct Attention<B: Backend> {
    q_proj: Linear<B>,
    k_proj: Linear<B>,
    v_proj: Linear<B>,
    q_norm: RmsNorm<B>,
    k_norm: RmsNorm<B>,
    o_proj: Linear<B>,
    n_heads: usize,
    n_kv_heads: usize,
    scale: f32,
}

impl<B: Backend> Attention<B> {
    fn load(w: &Weights<B>, cfg: &Config) -> Result<Self> {
        let (n_heads, n_kv_heads, head_dim) = (cfg.num_attention_heads, cfg.num_key_value_heads, cfg.head_dim);
        Ok(Self {
            q_proj: w.linear("q_proj", cfg.hidden_size, n_heads * head_dim)?,
            k_proj: w.linear("k_proj", cfg.hidden_size, n_kv_heads * head_dim)?,
            v_proj: w.linear("v_proj", cfg.hidden_size, n_kv_heads * head_dim)?,
            q_norm: w.rms_norm("q_norm", head_dim, cfg.rms_norm_eps)?,
            k_norm: w.rms_norm("k_norm", head_dim, cfg.rms_norm_eps)?,
            o_proj: w.linear("o_proj", n_heads * head_dim, cfg.hidden_size)?,
            n_heads,
            n_kv_heads,
            scale: (head_dim as f32).sqrt().recip(),
        })
    }

    fn forward_add(
        &self,
        x: &Tensor<B>,
        residual: &Tensor<B>,
        rope: &RopeRows<B>,
        step: &Step,
        kv: &mut LayerKv<B>,
    ) -> Tensor<B> {
        let [q, k, v] = Linear::forward_many([&self.q_proj, &self.k_proj, &self.v_proj], x);
        let q = self.q_norm.forward(&q.split_heads(self.n_heads)).rope(rope); // [R, H, D]
        let k = self.k_norm.forward(&k.split_heads(self.n_kv_heads)).rope(rope); // [R, K, D]
        let v = v.split_heads(self.n_kv_heads);
        let attended = q.attend(kv.append(&k, &v, step), self.scale, step);
        self.o_proj.forward_add(&attended.merge_heads(), residual) // [R, hidden]
    }
}

fn default_head_dim() -> usize {
    128
}

fn default_max_position_embeddings() -> usize {
    128_000
}

fn default_rms_norm_eps() -> f64 {
    1e-6
}

fn default_rope_theta() -> f64 {
    500_000.0
}
