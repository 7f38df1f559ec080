//! A GGUF file as a published model: `config.json`, tokenizer files and tensor names as the hub has them.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::tokenizer;
use super::{Gguf, GgufValue};
use crate::bytes::SharedBytes;
use crate::error::{Error, Result};
use crate::stored::StoredTensor;

/// What a model folder would hold.
#[derive(Clone, Debug)]
pub(crate) struct GgufModel {
    files: BTreeMap<&'static str, SharedBytes>,
    tensors: BTreeMap<String, StoredTensor>,
}

impl GgufModel {
    /// Translates a language model of an architecture that is known here.
    ///
    /// # Errors
    /// [`Error::Value`] naming the metadata that is missing or not supported; [`Error::BadGgufTensor`].
    pub(crate) fn new(gguf: &Gguf) -> Result<Self> {
        let about = About { gguf };
        let architecture = match about.text("general.architecture")? {
            known @ ("llama" | "qwen2") => known,
            "clip" => {
                let message = "this file is the vision part of a model, which cannot be used on its own";
                return Err(about.error("general.architecture", message));
            }
            other => {
                let message = format!("`{other}` is not supported; known: llama, qwen2");
                return Err(about.error("general.architecture", &message));
            }
        };
        let config = about.config(architecture)?;
        let heads = |key: &str| config[key].as_u64().and_then(|heads| usize::try_from(heads).ok()).unwrap_or(0);
        let (query_heads, key_heads) = (heads("num_attention_heads"), heads("num_key_value_heads"));
        let mut tensors = BTreeMap::new();
        for name in gguf.names().filter(|name| *name != FREQUENCIES) {
            let Some(mut tensor) = gguf.tensor(name).cloned() else { continue };
            // llama.cpp turns neighbouring elements of these, and so stores their rows in another order.
            if architecture == "llama" && name.contains(".attn_q.") {
                tensor = tensor.with_published_rows(query_heads);
            } else if architecture == "llama" && name.contains(".attn_k.") {
                tensor = tensor.with_published_rows(key_heads);
            }
            tensors.insert(published_name(name), StoredTensor::blocks(tensor));
        }
        let mut files = tokenizer::files(gguf)?;
        files.insert("config.json", config);
        let files = files.into_iter().map(|(name, value)| (name, value.to_string().into_bytes().into()));
        Ok(Self { files: files.collect(), tensors })
    }

    /// The names of the files there would be, sorted.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.files.keys().copied()
    }

    pub(crate) fn bytes(&self, name: &str) -> Option<SharedBytes> {
        self.files.get(name).cloned()
    }

    /// Every tensor by its published name.
    pub(crate) fn tensors(&self) -> &BTreeMap<String, StoredTensor> {
        &self.tensors
    }
}

/// The metadata of a model.
pub(super) struct About<'a> {
    pub(super) gguf: &'a Gguf,
}

impl<'a> About<'a> {
    fn config(&self, architecture: &str) -> Result<Value> {
        let key = |name: &str| format!("{architecture}.{name}");
        let number = |name: &str| self.number(&key(name));
        if number("expert_count")?.is_some_and(|experts| experts > 0) {
            return Err(self.error(&key("expert_count"), "models with experts are not supported"));
        }
        let (heads, width) = (self.required(&key(HEADS))?, self.required(&key("embedding_length"))?);
        let per_head = number("attention.key_length")?.or_else(|| width.checked_div(heads));
        let head_dim = per_head.ok_or_else(|| self.error(&key(HEADS), "0 heads"))?;
        let mut config = Map::new();
        let mut set = |name: &str, value: Value| config.insert(name.into(), value);
        set("model_type", json!(architecture));
        set("hidden_size", json!(width));
        set("intermediate_size", json!(self.required(&key("feed_forward_length"))?));
        set("num_hidden_layers", json!(self.required(&key("block_count"))?));
        set("num_attention_heads", json!(heads));
        set("num_key_value_heads", json!(number("attention.head_count_kv")?.unwrap_or(heads)));
        set("head_dim", json!(head_dim));
        set("vocab_size", json!(self.vocabulary()?));
        set("max_position_embeddings", json!(self.required(&key("context_length"))?));
        let epsilon = key("attention.layer_norm_rms_epsilon");
        set("rms_norm_eps", json!(self.float(&epsilon)?.ok_or_else(|| self.error(&epsilon, "missing"))?));
        let theta = self.float(&key("rope.freq_base"))?.unwrap_or(10_000.0);
        set("rope_theta", json!(theta));
        set("rope_scaling", self.rope_scaling(architecture, theta, head_dim)?);
        set("tie_word_embeddings", json!(self.gguf.tensor("output.weight").is_none()));
        if architecture == "llama" {
            set("attention_bias", json!(self.gguf.tensor("blk.0.attn_q.bias").is_some()));
            set("mlp_bias", json!(self.gguf.tensor("blk.0.ffn_up.bias").is_some()));
        }
        if let Some(end) = self.number("tokenizer.ggml.eos_token_id")? {
            set("eos_token_id", json!(end));
        }
        Ok(Value::Object(config))
    }

    fn vocabulary(&self) -> Result<usize> {
        let embedding = self.gguf.tensor("token_embd.weight").and_then(|tensor| tensor.shape().first().copied());
        embedding.ok_or_else(|| Error::BadGgufTensor {
            file: self.gguf.label().into(),
            tensor: "token_embd.weight".into(),
            message: "it is missing".into(),
        })
    }

    fn rope_scaling(&self, architecture: &str, theta: f64, head_dim: u64) -> Result<Value> {
        let key = |name: &str| format!("{architecture}.{name}");
        let turned = self.number(&key("rope.dimension_count"))?;
        if turned.is_some_and(|turned| turned != head_dim) {
            return Err(self.error(&key("rope.dimension_count"), &format!("expected the {head_dim} of a whole head")));
        }
        if let Some(tensor) = self.gguf.tensor(FREQUENCIES) {
            let factors = tensor.load()?.to_f32()?;
            return llama3_scaling(&factors, theta).ok_or_else(|| Error::BadGgufTensor {
                file: self.gguf.label().into(),
                tensor: FREQUENCIES.into(),
                message: "its factors are not those of any Llama 3".into(),
            });
        }
        let kind = self.gguf.value(&key("rope.scaling.type")).and_then(GgufValue::as_text).unwrap_or("none");
        match (kind, self.float(&key("rope.scaling.factor"))?) {
            ("none", _) => Ok(Value::Null),
            ("linear", Some(factor)) => Ok(json!({"rope_type": "linear", "factor": factor})),
            (other, _) => Err(self.error(&key("rope.scaling.type"), &format!("`{other}` is not supported"))),
        }
    }

    fn required(&self, key: &str) -> Result<u64> {
        self.number(key)?.ok_or_else(|| self.error(key, "missing"))
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<u64>> {
        let Some(value) = self.gguf.value(key) else { return Ok(None) };
        value.as_u64().map(Some).ok_or_else(|| self.error(key, "expected one number that is not negative"))
    }

    fn float(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.gguf.value(key) else { return Ok(None) };
        let finite = value.as_f64().filter(|value| value.is_finite());
        finite.map(Some).ok_or_else(|| self.error(key, "expected a number"))
    }

    pub(super) fn text(&self, key: &str) -> Result<&'a str> {
        let value = self.gguf.value(key).ok_or_else(|| self.error(key, "missing"))?;
        value.as_text().ok_or_else(|| self.error(key, "expected a text"))
    }

    pub(super) fn texts(&self, key: &str) -> Result<Vec<&'a str>> {
        let value = self.gguf.value(key).ok_or_else(|| self.error(key, "missing"))?;
        let texts = value.as_array().and_then(|values| values.iter().map(GgufValue::as_text).collect());
        texts.ok_or_else(|| self.error(key, "expected a list of texts"))
    }

    pub(super) fn error(&self, key: &str, message: &str) -> Error {
        Error::Value { file: self.gguf.label().into(), key: key.into(), message: message.into() }
    }
}

/// GGUF keeps the factor of every frequency, `config.json` the rule that makes them. All of Llama 3 share the rule's
/// numbers but two: the largest factor, and the length it was first trained for.
fn llama3_scaling(factors: &[f32], theta: f64) -> Option<Value> {
    let (low, high) = (1.0f64, 4.0f64);
    let factor = f64::from(factors.iter().fold(0f32, |largest, factor| largest.max(*factor)));
    let fits = |original: f64| {
        let expected = |at: usize| {
            let turns = theta.powf(-(at as f64) / factors.len() as f64) * original / std::f64::consts::TAU;
            let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            1.0 / ((1.0 - smooth) / factor + smooth)
        };
        factors.iter().enumerate().all(|(at, found)| (f64::from(*found) / expected(at) - 1.0).abs() < 1e-3)
    };
    // The published length comes first: several may fit where the head is small.
    let lengths = [8192].into_iter().chain((5..=20).map(|power| 1u32 << power)).map(f64::from);
    let original = lengths.filter(|_| factor >= 1.0 && factor.is_finite()).find(|length| fits(*length))?;
    Some(json!({
        "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }))
}

/// `blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`. Names that are not known stay: the load lists
/// them.
fn published_name(name: &str) -> String {
    match name {
        "token_embd.weight" => return "model.embed_tokens.weight".into(),
        "output_norm.weight" => return "model.norm.weight".into(),
        "output.weight" => return "lm_head.weight".into(),
        _ => {}
    }
    let parts = || {
        let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
        let (module, leaf) = rest.rsplit_once('.')?;
        let module = MODULES.iter().find(|(theirs, _)| *theirs == module)?.1;
        Some(format!("model.layers.{layer}.{module}.{leaf}"))
    };
    parts().unwrap_or_else(|| name.to_owned())
}

const HEADS: &str = "attention.head_count";
const FREQUENCIES: &str = "rope_freqs.weight";
const MODULES: [(&str, &str); 9] = [
    ("attn_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];
