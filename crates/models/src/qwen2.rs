//! Qwen2 text decoder (transformers `modeling_qwen2.py`): Qwen2, Qwen2.5, DeepSeek-R1-Distill-Qwen.
//!
//! Llama with biases on q, k and v; also the text half of vision-language models. Surprises: `tie_word_embeddings`
//! differs between sizes of one series, and `use_sliding_window` is false in every published checkpoint although
//! `sliding_window` is set.

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
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: Option<usize>,
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
    use_sliding_window: bool,
}

impl Config {
    /// Reads and checks the decoder's part of a config.
    pub(crate) fn parse(section: &Section) -> Result<Self> {
        let scaling = section.get("rope_scaling");
        require(section, scaling.is_none(), "rope_scaling", scaling.unwrap_or_default(), "null")?;
        Self::parse_besides_rope(section)
    }

    /// As [`Self::parse`], for families that rotate in their own way.
    pub(crate) fn parse_besides_rope(section: &Section) -> Result<Self> {
        let config: Self = section.parse()?;
        if let Some(act) = section.string("hidden_act")? {
            require(section, act == "silu", "hidden_act", act, "silu")?;
        }
        require(section, !config.use_sliding_window, "use_sliding_window", true, "false")?;
        let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        let divides = kv_heads > 0 && heads.is_multiple_of(kv_heads);
        require(section, divides, "num_key_value_heads", kv_heads, "a divisor of num_attention_heads")?;
        let head_dim = config.head_dim();
        require(section, head_dim > 0 && head_dim.is_multiple_of(2), "head_dim", head_dim, "an even number")?;
        Ok(config)
    }

    pub(crate) fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or_else(|| self.hidden_size / self.num_attention_heads.max(1))
    }

    pub(crate) fn dims(&self) -> DecoderDims {
        DecoderDims {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim(),
            vocab_size: self.vocab_size,
            rms_norm_eps: self.rms_norm_eps,
            tied: self.tie_word_embeddings,
            has_bias: true,
            has_head_norms: false,
        }
    }

    /// The language model that this config describes, rotated by running numbers: the output layer from `w`, the
    /// decoder from another place.
    pub(crate) fn causal_lm<B: Backend>(&self, w: &Weights<B>, decoder: &Weights<B>) -> Result<CausalLm<B>> {
        let rope = Rope::new(self.head_dim(), self.rope_theta, None);
        CausalLm::load(w, decoder, self.dims(), Rotation::Running(rope), self.max_position_embeddings)
    }
}

/// Loads a checkpoint that holds nothing but the decoder.
pub(crate) fn load<B: Backend>(
    backend: &B,
    config: &ocelli_formats::Config,
    source: WeightSource<'_>,
) -> Result<CausalLm<B>> {
    let config = Config::parse(config.root())?;
    let weights = Weights::new(backend, source, |name| llama::rename(name, config.tie_word_embeddings))?;
    let model = config.causal_lm(&weights, &weights.at("model"))?;
    weights.finish()?;
    Ok(model)
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
