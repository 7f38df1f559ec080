//! Qwen2 text decoder (transformers `modeling_qwen2.py`): Qwen2, Qwen2.5, DeepSeek-R1-Distill-Qwen.
//! R rows, H query heads, K key/value heads, D head size.
//!
//! Llama with biases on q, k and v. Surprises: `tie_word_embeddings` differs between sizes of one series, and
//! `use_sliding_window` is false in every published checkpoint although `sliding_window` is set.

use ocelli_backend::{
    Backend, Embedding, KvCache, KvShape, LayerKv, Linear, Renamed, RmsNorm, Rope, RopeRows, Step, SwiGlu, Tensor,
    WeightSource, Weights,
};
use ocelli_formats::Section;
use serde::Deserialize;

use crate::Model;
use crate::error::{Result, require};

/// The fields of `config.json` that the decoder needs; defaults are those of transformers.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Config {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: Option<usize>,
    vocab_size: usize,
    #[serde(default = "default_max_position_embeddings")]
    max_position_embeddings: usize,
    #[serde(default = "default_rms_norm_eps")]
    rms_norm_eps: f64,
    #[serde(default = "default_rope_theta")]
    rope_theta: f64,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    use_sliding_window: bool,
}

impl Config {
    fn parse(section: &Section) -> Result<Self> {
        let config: Self = section.parse()?;
        if let Some(act) = section.string("hidden_act")? {
            require(section, act == "silu", "hidden_act", act, "silu")?;
        }
        require(section, !config.use_sliding_window, "use_sliding_window", true, "false")?;
        let scaling = section.get("rope_scaling");
        require(section, scaling.is_none(), "rope_scaling", scaling.unwrap_or_default(), "null")?;
        let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        let divides = kv_heads > 0 && heads.is_multiple_of(kv_heads);
        require(section, divides, "num_key_value_heads", kv_heads, "a divisor of num_attention_heads")?;
        let head_dim = config.head_dim();
        require(section, head_dim > 0 && head_dim.is_multiple_of(2), "head_dim", head_dim, "an even number")?;
        Ok(config)
    }

    fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or_else(|| self.hidden_size / self.num_attention_heads.max(1))
    }
}

/// A Qwen2 decoder with its output layer.
pub(crate) struct Qwen2<B: Backend> {
    embed_tokens: Embedding<B>,
    layers: Vec<DecoderLayer<B>>,
    norm: RmsNorm<B>,
    lm_head: Linear<B>,
    rope: Rope,
    config: Config,
}

impl<B: Backend> Qwen2<B> {
    /// Loads a checkpoint that holds nothing but the decoder.
    pub(crate) fn load(backend: &B, config: &ocelli_formats::Config, source: WeightSource<'_>) -> Result<Self> {
        let config = Config::parse(config.root())?;
        let weights = Weights::new(backend, source, |name| rename(name, config.tie_word_embeddings))?;
        let w = weights.at("model");
        let layer = |layer_idx| DecoderLayer::load(&w.at(&format!("layers.{layer_idx}")), &config);
        let embed_tokens = w.embedding("embed_tokens", config.vocab_size, config.hidden_size)?;
        let lm_head = if config.tie_word_embeddings {
            embed_tokens.as_linear()
        } else {
            weights.output("lm_head", config.hidden_size, config.vocab_size)?
        };
        let model = Self {
            embed_tokens,
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?,
            norm: w.rms_norm("norm", config.hidden_size, config.rms_norm_eps)?,
            lm_head,
            rope: Rope::new(config.head_dim(), config.rope_theta, None),
            config,
        };
        weights.finish()?;
        Ok(model)
    }
}

impl<B: Backend> Model<B> for Qwen2<B> {
    fn kv_shape(&self) -> KvShape {
        let config = &self.config;
        let (kv_heads, head_dim) = (config.num_key_value_heads, config.head_dim());
        KvShape { layers: config.num_hidden_layers, kv_heads, head_dim }
    }

    fn max_positions(&self) -> usize {
        self.config.max_position_embeddings
    }

    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn embed(&self, ids: &[u32]) -> Tensor<B> {
        self.embed_tokens.forward(ids)
    }

    fn forward(&self, x: &Tensor<B>, step: &Step, kv: &mut KvCache<B>) -> Tensor<B> {
        let rope = self.rope.rows(x.backend(), step.positions());
        let mut x = x.clone();
        for (layer_idx, layer) in self.layers.iter().enumerate() {
            if step.is_cancelled() {
                break;
            }
            x = layer.forward(&x, &rope, step, kv.layer(layer_idx));
        }
        self.norm.forward(&x)
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
    o_proj: Linear<B>,
    n_heads: usize,
    n_kv_heads: usize,
    scale: f32,
}

impl<B: Backend> Attention<B> {
    fn load(w: &Weights<B>, cfg: &Config) -> Result<Self> {
        let (n_heads, n_kv_heads, head_dim) = (cfg.num_attention_heads, cfg.num_key_value_heads, cfg.head_dim());
        Ok(Self {
            q_proj: w.linear_bias("q_proj", cfg.hidden_size, n_heads * head_dim)?,
            k_proj: w.linear_bias("k_proj", cfg.hidden_size, n_kv_heads * head_dim)?,
            v_proj: w.linear_bias("v_proj", cfg.hidden_size, n_kv_heads * head_dim)?,
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
        let q = q.split_heads(self.n_heads).rope(rope); // [R, H, D]
        let (k, v) = (k.split_heads(self.n_kv_heads).rope(rope), v.split_heads(self.n_kv_heads)); // [R, K, D]
        let attended = q.attend(kv.append(&k, &v, step), self.scale, step);
        self.o_proj.forward_add(&attended.merge_heads(), residual) // [R, hidden]
    }
}

fn rename(name: &str, tied: bool) -> Renamed {
    if name.ends_with("rotary_emb.inv_freq") || (tied && name == "lm_head.weight") {
        return Renamed::Ignored;
    }
    Renamed::To(name.to_owned())
}

fn default_max_position_embeddings() -> usize {
    32_768
}

fn default_rms_norm_eps() -> f64 {
    1e-6
}

fn default_rope_theta() -> f64 {
    10_000.0
}
