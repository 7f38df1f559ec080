//! Llama text decoder (transformers `modeling_llama.py`): Llama 2 and 3.x, SmolLM, and the text half of many
//! vision-language models.
//!
//! Surprises: `head_dim` may differ from `hidden_size / num_attention_heads`; `rope_scaling` of Llama 3 changes the
//! frequencies themselves and thus every position, not only long ones.

use ocelli_backend::{Backend, Renamed, Rope, RopeScaling, WeightSource, Weights};
use ocelli_formats::Section;
use serde::Deserialize;

use crate::decoder::{CausalLm, DecoderDims, Rotation};
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

    pub(crate) fn dims(&self) -> DecoderDims {
        DecoderDims {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            kv_heads: self.kv_heads(),
            head_dim: self.head_dim(),
            vocab_size: self.vocab_size,
            rms_norm_eps: self.rms_norm_eps,
            tied: self.tie_word_embeddings,
            has_bias: false,
            has_head_norms: false,
        }
    }

    /// The language model that this config describes: the output layer from `w`, the decoder from another place.
    pub(crate) fn causal_lm<B: Backend>(
        &self,
        w: &Weights<B>,
        decoder: &Weights<B>,
        section: &Section,
    ) -> Result<CausalLm<B>> {
        let rotation = Rotation::Running(self.rope(section)?);
        CausalLm::load(w, decoder, self.dims(), rotation, self.max_position_embeddings)
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

/// Loads a checkpoint that holds nothing but the decoder.
pub(crate) fn load<B: Backend>(
    backend: &B,
    config: &ocelli_formats::Config,
    source: WeightSource<'_>,
) -> Result<CausalLm<B>> {
    let section = config.root();
    let config = Config::parse(section)?;
    let weights = Weights::new(backend, source, |name| rename(name, config.tie_word_embeddings))?;
    let model = config.causal_lm(&weights, &weights.at("model"), section)?;
    weights.finish()?;
    Ok(model)
}

/// Names of every layout -> the published ones.
pub(crate) fn rename(name: &str, tied: bool) -> Renamed {
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
