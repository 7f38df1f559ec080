//! Llama text decoder (transformers `modeling_llama.py`): Llama 2 and 3.x, SmolLM, and the text half of many
//! vision-language models. R rows, H query heads, K key/value heads, D head size.
//!
//! Surprises: `head_dim` may differ from `hidden_size / num_attention_heads`; `rope_scaling` of Llama 3 changes the
//! frequencies themselves and thus every position, not only long ones.

use ocelli_backend::{
    Backend, Embedding, KvCache, KvShape, LayerKv, Linear, Renamed, RmsNorm, Rope, RopeRows, RopeScaling, Step, SwiGlu,
    Tensor, WeightSource, Weights,
};
use ocelli_formats::Section;
use serde::Deserialize;

use crate::Model;
use crate::error::{Error, Result, require};

/// The fields of `config.json` (or its `text_config`) that a decoder needs; defaults are those of transformers.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Config {
    #[serde(default = "default_hidden_size")]
    pub(crate) hidden_size: usize,
    #[serde(default = "default_intermediate_size")]
    pub(crate) intermediate_size: usize,
    #[serde(default = "default_layers_and_heads")]
    pub(crate) num_hidden_layers: usize,
    #[serde(default = "default_layers_and_heads")]
    pub(crate) num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    #[serde(default = "default_vocab_size")]
    pub(crate) vocab_size: usize,
    #[serde(default = "default_max_position_embeddings")]
    pub(crate) max_position_embeddings: usize,
    #[serde(default = "default_rms_norm_eps")]
    pub(crate) rms_norm_eps: f64,
    #[serde(default = "default_rope_theta")]
    rope_theta: f64,
    rope_scaling: Option<RopeScalingConfig>,
    #[serde(default)]
    pub(crate) tie_word_embeddings: bool,
    #[serde(default = "default_hidden_act")]
    hidden_act: String,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
}

#[derive(Clone, Debug, Deserialize)]
struct RopeScalingConfig {
    rope_type: String,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

impl Config {
    /// Reads and checks the decoder's part of a config.
    pub(crate) fn parse(section: &Section) -> Result<Self> {
        let config: Self = section.parse()?;
        require(section, config.hidden_act == "silu", "hidden_act", &config.hidden_act, "silu")?;
        require(section, !config.attention_bias, "attention_bias", true, "false")?;
        require(section, !config.mlp_bias, "mlp_bias", true, "false")?;
        let kv_heads = config.kv_heads();
        let divides = kv_heads > 0 && config.num_attention_heads.is_multiple_of(kv_heads);
        require(section, divides, "num_key_value_heads", kv_heads, "a divisor of num_attention_heads")?;
        let head_dim = config.head_dim();
        require(section, head_dim > 0 && head_dim.is_multiple_of(2), "head_dim", head_dim, "an even number")?;
        Ok(config)
    }

    pub(crate) fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    pub(crate) fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or_else(|| self.hidden_size / self.num_attention_heads.max(1))
    }

    pub(crate) fn rope(&self, section: &Section) -> Result<Rope> {
        let scaling = self.rope_scaling.as_ref().map(|scaling| scaling.parse(section)).transpose()?;
        Ok(Rope::new(self.head_dim(), self.rope_theta, scaling.flatten()))
    }

    pub(crate) fn kv_shape(&self) -> KvShape {
        KvShape { layers: self.num_hidden_layers, kv_heads: self.kv_heads(), head_dim: self.head_dim() }
    }
}

impl RopeScalingConfig {
    fn parse(&self, section: &Section) -> Result<Option<RopeScaling>> {
        let number = |name: &str, value: Option<f64>| {
            let key = format!("rope_scaling.{name}");
            let shown = value.map_or_else(|| "missing".to_owned(), |value| value.to_string());
            require(section, value.is_some_and(|value| value > 0.0), &key, shown, "a positive number")?;
            Ok::<_, Error>(value.unwrap_or(1.0))
        };
        match self.rope_type.as_str() {
            "default" => Ok(None),
            "linear" => Ok(Some(RopeScaling::Linear { factor: number("factor", self.factor)? })),
            "llama3" => {
                let original = self.original_max_position_embeddings;
                Ok(Some(RopeScaling::Llama3 {
                    factor: number("factor", self.factor)?,
                    low_freq_factor: number("low_freq_factor", self.low_freq_factor)?,
                    high_freq_factor: number("high_freq_factor", self.high_freq_factor)?,
                    original_max_position_embeddings: number("original_max_position_embeddings", original)?,
                }))
            }
            other => {
                require(section, false, "rope_scaling.rope_type", other, "default, linear or llama3")?;
                Ok(None)
            }
        }
    }
}

/// A Llama decoder with its output layer.
pub(crate) struct Llama<B: Backend> {
    decoder: Decoder<B>,
    lm_head: Linear<B>,
    config: Config,
}

impl<B: Backend> Llama<B> {
    /// Loads a checkpoint that holds nothing but the decoder.
    pub(crate) fn load(backend: &B, config: &ocelli_formats::Config, source: WeightSource<'_>) -> Result<Self> {
        let section = config.root();
        let config = Config::parse(section)?;
        let weights = Weights::new(backend, source, |name| rename(name, config.tie_word_embeddings))?;
        let decoder = Decoder::load(&weights.at("model"), &config, config.rope(section)?)?;
        let lm_head = decoder.lm_head(&weights, &config)?;
        weights.finish()?;
        Ok(Self { decoder, lm_head, config })
    }
}

impl<B: Backend> Model<B> for Llama<B> {
    fn kv_shape(&self) -> KvShape {
        self.config.kv_shape()
    }

    fn max_positions(&self) -> usize {
        self.config.max_position_embeddings
    }

    fn vocab_size(&self) -> usize {
        self.config.vocab_size
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

/// Everything but the output layer: what vision-language models embed as their `text_model`.
pub(crate) struct Decoder<B: Backend> {
    pub(crate) embed_tokens: Embedding<B>,
    layers: Vec<DecoderLayer<B>>,
    norm: RmsNorm<B>,
    rope: Rope,
}

impl<B: Backend> Decoder<B> {
    pub(crate) fn load(w: &Weights<B>, cfg: &Config, rope: Rope) -> Result<Self> {
        let layer = |layer_idx| DecoderLayer::load(&w.at(&format!("layers.{layer_idx}")), cfg);
        Ok(Self {
            embed_tokens: w.embedding("embed_tokens", cfg.vocab_size, cfg.hidden_size)?,
            layers: (0..cfg.num_hidden_layers).map(layer).collect::<Result<_>>()?,
            norm: w.rms_norm("norm", cfg.hidden_size, cfg.rms_norm_eps)?,
            rope,
        })
    }

    /// The output layer: a weight of its own, or the embedding table once more.
    pub(crate) fn lm_head(&self, w: &Weights<B>, cfg: &Config) -> Result<Linear<B>> {
        if cfg.tie_word_embeddings {
            return Ok(self.embed_tokens.as_linear());
        }
        Ok(w.output("lm_head", cfg.hidden_size, cfg.vocab_size)?)
    }

    /// `x` [R, hidden] -> [R, hidden], normalised.
    pub(crate) fn forward(&self, x: &Tensor<B>, step: &Step, kv: &mut KvCache<B>) -> Tensor<B> {
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

pub(crate) struct Attention<B: Backend> {
    q_proj: Linear<B>,
    k_proj: Linear<B>,
    v_proj: Linear<B>,
    o_proj: Linear<B>,
    n_heads: usize,
    n_kv_heads: usize,
    scale: f32,
}

impl<B: Backend> Attention<B> {
    pub(crate) fn load(w: &Weights<B>, cfg: &Config) -> Result<Self> {
        let (n_heads, n_kv_heads, head_dim) = (cfg.num_attention_heads, cfg.kv_heads(), cfg.head_dim());
        Ok(Self {
            q_proj: w.linear("q_proj", cfg.hidden_size, n_heads * head_dim)?,
            k_proj: w.linear("k_proj", cfg.hidden_size, n_kv_heads * head_dim)?,
            v_proj: w.linear("v_proj", cfg.hidden_size, n_kv_heads * head_dim)?,
            o_proj: w.linear("o_proj", n_heads * head_dim, cfg.hidden_size)?,
            n_heads,
            n_kv_heads,
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
        let q = q.split_heads(self.n_heads).rope(rope); // [R, H, D]
        let (k, v) = (k.split_heads(self.n_kv_heads).rope(rope), v.split_heads(self.n_kv_heads)); // [R, K, D]
        let attended = q.attend(kv.append(&k, &v, step), self.scale, step);
        self.o_proj.forward_add(&attended.merge_heads(), residual) // [R, hidden]
    }
}

/// Names of every layout -> the published ones.
fn rename(name: &str, tied: bool) -> Renamed {
    if name.ends_with("rotary_emb.inv_freq") || (tied && name == "lm_head.weight") {
        return Renamed::Ignored;
    }
    Renamed::To(name.to_owned())
}

fn default_hidden_size() -> usize {
    4096
}

fn default_intermediate_size() -> usize {
    11_008
}

fn default_layers_and_heads() -> usize {
    32
}

fn default_vocab_size() -> usize {
    32_000
}

fn default_max_position_embeddings() -> usize {
    2048
}

fn default_rms_norm_eps() -> f64 {
    1e-6
}

fn default_rope_theta() -> f64 {
    10_000.0
}

fn default_hidden_act() -> String {
    "silu".to_owned()
}
