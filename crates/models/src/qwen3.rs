//! Qwen3 text decoder (transformers `modeling_qwen3.py`; as vision-language models embed it, `modeling_qwen3_vl.py`).
//!
//! Llama with a norm over every query and key head before they are rotated. Surprises: `head_dim` is 128 whatever
//! `hidden_size / num_attention_heads` is, and as part of Qwen3-VL the first layers may get features of their own
//! (DeepStack).

use ocelli_backend::{Backend, Rope, WeightSource, Weights};
use ocelli_formats::Section;
use serde::Deserialize;

use crate::decoder::{CausalLm, DecoderDims, Rotation};
use crate::error::{Result, require};
use crate::llama;

/// The fields of `config.json` (or its `text_config`) that the decoder needs; defaults are those of transformers.
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
    /// Its default depends on the family.
    pub(crate) rope_theta: Option<f64>,
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

    pub(crate) fn dims(&self) -> DecoderDims {
        DecoderDims {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            vocab_size: self.vocab_size,
            rms_norm_eps: self.rms_norm_eps,
            tied: self.tie_word_embeddings,
            has_bias: false,
            has_head_norms: true,
        }
    }
}

/// Loads a checkpoint that holds nothing but the decoder.
pub(crate) fn load<B: Backend>(
    backend: &B,
    config: &ocelli_formats::Config,
    source: WeightSource<'_>,
) -> Result<CausalLm<B>> {
    let root = config.root();
    let config = Config::parse(root)?;
    let scaling = root.get("rope_scaling");
    require(root, scaling.is_none(), "rope_scaling", scaling.unwrap_or_default(), "null")?;
    let weights = Weights::new(backend, source, |name| llama::rename(name, config.tie_word_embeddings))?;
    let rope = Rope::new(config.head_dim, config.rope_theta.unwrap_or(ROPE_THETA), None);
    let (dims, rotation) = (config.dims(), Rotation::Running(rope));
    let model = CausalLm::load(&weights, &weights.at("model"), dims, rotation, config.max_position_embeddings)?;
    weights.finish()?;
    Ok(model)
}

/// Of a config that does not say.
const ROPE_THETA: f64 = 10_000.0;

fn default_head_dim() -> usize {
    128
}

fn default_max_position_embeddings() -> usize {
    128_000
}

fn default_rms_norm_eps() -> f64 {
    1e-6
}
