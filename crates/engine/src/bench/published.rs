//! Published models as their `config.json` has them: enough to build them with random weights.

use ocelli_formats::Config;
use serde_json::{Value, json};

use crate::error::{Error, Result};

/// Names of all models that can be built with random weights.
pub const PUBLISHED: &[&str] =
    &["smolvlm-256m", "smolvlm-500m", "smolvlm-2.2b", "qwen2.5-0.5b", "qwen2.5-1.5b", "llama-3.2-1b", "llama-3.2-3b"];

/// The config of a model in [`PUBLISHED`].
///
/// # Errors
/// [`Error::InvalidOption`] for any other name.
pub(crate) fn config(name: &str) -> Result<Config> {
    let value = match name {
        "smolvlm-256m" => smolvlm(&Smolvlm { text: [576, 1536, 30, 9, 3], rope_theta: 1e5, ..SMOLVLM }),
        "smolvlm-500m" => smolvlm(&Smolvlm { text: [960, 2560, 32, 15, 5], rope_theta: 1e5, ..SMOLVLM }),
        "smolvlm-2.2b" => smolvlm(&Smolvlm {
            text: [2048, 8192, 24, 32, 32],
            vocab_size: 49_155,
            image_token_id: 49_153,
            rope_theta: 273_768.0,
            scale_factor: 3,
            vision: [1152, 4304, 27, 16],
            image_size: 384,
            patch_size: 14,
        }),
        "qwen2.5-0.5b" => qwen([896, 4864, 24, 14, 2]),
        "qwen2.5-1.5b" => qwen([1536, 8960, 28, 12, 2]),
        "llama-3.2-1b" => llama([2048, 8192, 16, 32, 8], 64),
        "llama-3.2-3b" => llama([3072, 8192, 28, 24, 8], 128),
        _ => {
            let expected = "one of the published models' names";
            return Err(Error::InvalidOption { name: "random_weights", value: name.to_owned(), expected });
        }
    };
    Ok(Config::parse(value.to_string().as_bytes(), name)?)
}

/// What differs between the sizes of SmolVLM.
struct Smolvlm {
    /// Hidden size, intermediate size, layers, heads, key/value heads.
    text: [usize; 5],
    vocab_size: usize,
    image_token_id: u32,
    rope_theta: f64,
    scale_factor: usize,
    /// Hidden size, intermediate size, layers, heads.
    vision: [usize; 4],
    image_size: usize,
    patch_size: usize,
}

/// The small ones' common part.
const SMOLVLM: Smolvlm = Smolvlm {
    text: [0; 5],
    vocab_size: 49_280,
    image_token_id: 49_190,
    rope_theta: 0.0,
    scale_factor: 4,
    vision: [768, 3072, 12, 12],
    image_size: 512,
    patch_size: 16,
};

fn smolvlm(size: &Smolvlm) -> Value {
    let mut text = decoder(size.text, size.vocab_size, 1e-5, size.rope_theta);
    text["max_position_embeddings"] = json!(8192);
    let [hidden_size, intermediate_size, layers, heads] = size.vision;
    json!({
        "model_type": "idefics3",
        "image_token_id": size.image_token_id,
        "scale_factor": size.scale_factor,
        "tie_word_embeddings": false,
        "text_config": text,
        "vision_config": {
            "hidden_size": hidden_size,
            "intermediate_size": intermediate_size,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "image_size": size.image_size,
            "patch_size": size.patch_size,
        },
    })
}

fn qwen(shape: [usize; 5]) -> Value {
    let mut config = decoder(shape, 151_936, 1e-6, 1e6);
    config["model_type"] = json!("qwen2");
    config["max_position_embeddings"] = json!(32_768);
    config["tie_word_embeddings"] = json!(true);
    config
}

fn llama(shape: [usize; 5], head_dim: usize) -> Value {
    let mut config = decoder(shape, 128_256, 1e-5, 5e5);
    config["max_position_embeddings"] = json!(131_072);
    config["tie_word_embeddings"] = json!(true);
    config["head_dim"] = json!(head_dim);
    config["rope_scaling"] = json!({
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    config
}

fn decoder([hidden, intermediate, layers, heads, kv_heads]: [usize; 5], vocab: usize, eps: f64, theta: f64) -> Value {
    json!({
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "rms_norm_eps": eps,
        "rope_theta": theta,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_a_config_of_a_supported_family() {
        for name in PUBLISHED {
            let config = config(name).unwrap();
            ocelli_models::architecture(config.model_type()).unwrap();
        }
        let error = config("gpt-5").unwrap_err();
        assert_eq!(error.to_string(), "random_weights is gpt-5, expected one of the published models' names");
    }
}
