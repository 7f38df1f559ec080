//! One form for `config.json`, whatever wrote it: published checkpoints of the transformers 4 era, transformers 5, MLX.
//!
//! | written as | canonical |
//! |---|---|
//! | `rope_parameters: {rope_type, rope_theta, ..}` | `rope_theta`, `rope_scaling` (null when there is none) |
//! | `rope_scaling.type` | `rope_scaling.rope_type` |
//! | `rope_type: default` beside `mrope_section` | `rope_type: mrope` |
//! | `rope_parameters.partial_rotary_factor` | `partial_rotary_factor` |
//! | `rope_parameters: {full_attention: {..}, sliding_attention: {..}}` | kept; see below |
//! | `dtype`, `torch.bfloat16` | `torch_dtype`, `bfloat16` |
//! | Qwen2-VL and Qwen2.5-VL text keys at the root | under `text_config` |
//! | `vision_config.model_type: qwen2_vl_vision` | `qwen2_vl` |
//! | `image_token_index` or `image_token_id` (and `video_`) | both |
//! | MLX's sizes of Whisper, `n_audio_state` and so on | `d_model` and so on |
//!
//! Settings per kind of layer also give `rope_theta` and `rope_scaling` (those of full attention) and
//! `rope_local_base_freq` (of sliding attention), the keys published Gemma 3 checkpoints use.
//!
//! A key that already has its canonical name wins over one that would be renamed to it.

use serde_json::{Map, Value, json};

type Object = Map<String, Value>;

/// Rewrites a configuration in place.
pub(crate) fn canonicalise(root: &mut Object) {
    nest_text_keys(root);
    name_whisper_sizes(root);
    for media in ["image", "video"] {
        alias(root, &format!("{media}_token_id"), &format!("{media}_token_index"));
    }
    if let Some(Value::Object(vision)) = root.get_mut("vision_config") {
        strip_vision_suffix(vision);
    }
    canonicalise_section(root);
}

/// Applies what holds for every object that describes a network, nested ones included.
fn canonicalise_section(section: &mut Object) {
    rename(section, "dtype", "torch_dtype");
    if let Some(Value::String(dtype)) = section.get_mut("torch_dtype")
        && let Some(short) = dtype.strip_prefix("torch.")
    {
        *dtype = short.into();
    }
    unpack_rope_parameters(section);
    tidy_rope_scaling(section);
    for (key, value) in section.iter_mut() {
        if let (Some("config"), Value::Object(nested)) = (key.rsplit('_').next(), value) {
            canonicalise_section(nested);
        }
    }
}

fn unpack_rope_parameters(section: &mut Object) {
    let Some(Value::Object(parameters)) = section.get("rope_parameters").cloned() else { return };
    let layered = parameters.values().any(Value::is_object);
    if layered {
        if let Some(theta) = parameters.get("sliding_attention").and_then(|sliding| sliding.get("rope_theta")) {
            section.entry("rope_local_base_freq").or_insert(theta.clone());
        }
        if let Some(Value::Object(full)) = parameters.get("full_attention") {
            unpack_one_rope(section, full.clone());
        }
    } else {
        section.remove("rope_parameters");
        let mut parameters = parameters;
        if let Some(factor) = parameters.remove("partial_rotary_factor") {
            section.entry("partial_rotary_factor").or_insert(factor);
        }
        unpack_one_rope(section, parameters);
    }
}

fn unpack_one_rope(section: &mut Object, mut parameters: Object) {
    if let Some(theta) = parameters.remove("rope_theta") {
        section.entry("rope_theta").or_insert(theta);
    }
    if section.get("rope_scaling").is_none_or(Value::is_null) {
        section.insert("rope_scaling".into(), Value::Object(parameters));
    }
}

fn tidy_rope_scaling(section: &mut Object) {
    if section.contains_key("rope_theta") {
        section.entry("rope_scaling").or_insert(Value::Null);
    }
    let Some(value) = section.get_mut("rope_scaling") else { return };
    let Value::Object(scaling) = value else { return };
    match scaling.remove("type") {
        Some(legacy) if scaling.get("rope_type").is_none_or(|kind| kind == "default") => {
            scaling.insert("rope_type".into(), legacy);
        }
        _ => {}
    }
    let is_default = scaling.get("rope_type").is_none_or(|kind| kind.is_null() || kind == "default");
    if is_default && scaling.contains_key("mrope_section") {
        scaling.insert("rope_type".into(), json!("mrope"));
    } else if is_default && scaling.keys().all(|key| key == "rope_type") {
        *value = Value::Null;
    }
}

/// Published Qwen2-VL and Qwen2.5-VL keep the language model's keys at the root. Some re-saves hold both forms; then
/// the nested value wins.
fn nest_text_keys(root: &mut Object) {
    let Some(model_type @ ("qwen2_vl" | "qwen2_5_vl")) = root.get("model_type").and_then(Value::as_str) else { return };
    let text_type = format!("{model_type}_text");
    let mut text = match root.remove("text_config") {
        Some(Value::Object(text)) => text,
        Some(Value::Null) | None => Object::new(),
        Some(malformed) => {
            // Left as it is: reading the section will say what is wrong.
            root.insert("text_config".into(), malformed);
            return;
        }
    };
    let flat: Vec<String> = root.keys().filter(|key| !QWEN_ROOT_KEYS.contains(&key.as_str())).cloned().collect();
    for key in flat {
        let value = root.remove(&key).unwrap_or_default();
        // A nested rope_parameters is the newer spelling of what the flat keys would say.
        let superseded = key.starts_with("rope_") && text.contains_key("rope_parameters");
        if !superseded {
            text.entry(key).or_insert(value);
        }
    }
    if let Some(tied) = root.get("tie_word_embeddings") {
        text.entry("tie_word_embeddings").or_insert(tied.clone());
    }
    text.insert("model_type".into(), Value::String(text_type));
    root.insert("text_config".into(), Value::Object(text));
}

/// OpenAI's names of Whisper's sizes, which MLX keeps.
fn name_whisper_sizes(root: &mut Object) {
    for (from, to) in WHISPER_SIZES {
        rename(root, from, to);
    }
    // They say nothing about what is the same for all sizes.
    for (width, inner) in [("n_audio_state", "encoder_ffn_dim"), ("n_text_state", "decoder_ffn_dim")] {
        if let Some(width) = root.remove(width) {
            if let Some(inner_width) = width.as_u64().and_then(|width| width.checked_mul(4)) {
                root.entry(inner).or_insert(inner_width.into());
            }
            root.entry("d_model").or_insert(width);
        }
    }
}

fn strip_vision_suffix(vision: &mut Object) {
    if let Some(Value::String(model_type)) = vision.get_mut("model_type")
        && let Some(short) = model_type.strip_suffix("_vision")
        && short.starts_with("qwen")
    {
        *model_type = short.into();
    }
}

fn rename(object: &mut Object, from: &str, to: &str) {
    if let Some(value) = object.remove(from) {
        object.entry(to).or_insert(value);
    }
}

fn alias(object: &mut Object, one: &str, other: &str) {
    match (object.get(one).cloned(), object.get(other).cloned()) {
        (Some(value), None) => drop(object.insert(other.into(), value)),
        (None, Some(value)) => drop(object.insert(one.into(), value)),
        _ => {}
    }
}

/// MLX's names of sizes, and those of transformers.
const WHISPER_SIZES: &[(&str, &str)] = &[
    ("n_mels", "num_mel_bins"),
    ("n_audio_ctx", "max_source_positions"),
    ("n_audio_head", "encoder_attention_heads"),
    ("n_audio_layer", "encoder_layers"),
    ("n_vocab", "vocab_size"),
    ("n_text_ctx", "max_target_positions"),
    ("n_text_head", "decoder_attention_heads"),
    ("n_text_layer", "decoder_layers"),
];
/// What stays at the root of a Qwen2-VL or Qwen2.5-VL configuration.
const QWEN_ROOT_KEYS: &[&str] = &[
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",
    "image_token_id",
    "image_token_index",
    "model_type",
    "quantization",
    "quantization_config",
    "tie_word_embeddings",
    "torch_dtype",
    "transformers_version",
    "video_token_id",
    "video_token_index",
    "vision_config",
    "vision_end_token_id",
    "vision_start_token_id",
    "vision_token_id",
];
