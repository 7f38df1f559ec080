//! `config.json` as published, as transformers 5 writes it and as MLX converts it: all three read the same.

use std::path::Path;

use ocelli_formats::{Config, Error};
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};

fn load(name: &str) -> Config {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/configs").join(name);
    let json = std::fs::read(path).expect("the file is part of the repository");
    Config::parse(&json, name).expect("the file is a valid configuration")
}

fn parse(value: &Value) -> Result<Config, Error> {
    Config::parse(value.to_string().as_bytes(), "config.json")
}

/// Removes what transformers 5 adds and older writers did not say: it follows from the rest.
fn without_layer_types(config: &Config) -> Value {
    let mut value = config.root().value().clone();
    for pointer in ["", "/text_config"] {
        if let Some(Value::Object(section)) = value.pointer_mut(pointer) {
            section.remove("layer_types");
        }
    }
    value
}

#[test]
fn sizes_beyond_all_models_are_refused_by_key() {
    for (key, most) in [("hidden_size", 1 << 20), ("num_hidden_layers", 4096), ("image_size", 1 << 14)] {
        let of = |value: u64| parse(&json!({"model_type": "any", "vision_config": {key: value}}));
        assert!(of(most).is_ok(), "{key}");
        let error = of(99_999_999_999).unwrap_err().to_string();
        assert!(error.starts_with(&format!("config.json: vision_config.{key}: 99999999999 is more than")), "{error}");
        assert!(of(most + 1).is_err(), "{key}");
    }
    // A base of rotations is no size, and a long context costs nothing before it is used.
    assert!(parse(&json!({"model_type": "any", "rope_theta": 5_000_000_000_u64})).is_ok());
}

#[test]
fn published_and_transformers_5_forms_are_equal() {
    for family in ["idefics3", "smolvlm", "llama3", "qwen2", "qwen2_vl", "qwen2_5_vl", "llava", "gemma3", "qwen3_vl"] {
        let published = without_layer_types(&load(&format!("{family}.json")));
        let saved_by_5 = without_layer_types(&load(&format!("{family}.tf5.json")));
        assert_eq!(published, saved_by_5, "{family}");
    }
}

#[test]
fn mlx_form_is_the_published_one_plus_quantization() {
    for (mlx, family, bits, group_size) in
        [("idefics3_mlx4_gs32", "idefics3", 4, 32), ("qwen2_5_vl_mlx8", "qwen2_5_vl", 8, 64)]
    {
        let (mlx, published) = (load(&format!("{mlx}.json")), load(&format!("{family}.json")));
        let found = mlx.quantization().unwrap();
        assert_eq!((found.bits, found.group_size), (bits, group_size), "{family}");
        assert_eq!(published.quantization(), None);
        let mut value = mlx.root().value().clone();
        let root = value.as_object_mut().unwrap();
        root.remove("quantization");
        root.remove("quantization_config");
        assert_eq!(&value, published.root().value(), "{family}");
    }
}

#[test]
fn qwen_text_keys_move_under_text_config() {
    for (file, family) in [("qwen2_vl.json", "qwen2_vl"), ("qwen2_5_vl.tf5.json", "qwen2_5_vl")] {
        let config = load(file);
        assert_eq!(config.model_type(), family);
        let (text, vision) = (config.section("text_config").unwrap(), config.section("vision_config").unwrap());
        assert_eq!(text.get("hidden_size"), Some(&json!(64)));
        assert_eq!(text.get("rope_theta"), Some(&json!(1e6)));
        assert_eq!(text.get("rope_scaling"), Some(&json!({"rope_type": "mrope", "mrope_section": [4, 6, 6]})));
        assert_eq!(text.string("model_type").unwrap(), Some(format!("{family}_text").as_str()));
        assert_eq!(vision.string("model_type").unwrap(), Some(family));
        assert_eq!(config.root().get("hidden_size"), None);
        assert_eq!(config.root().get("image_token_index"), Some(&json!(425)));
    }
}

#[test]
fn a_nested_qwen_value_wins_over_a_flat_one() {
    let config = parse(&json!({
        "model_type": "qwen2_vl", "hidden_size": 1, "num_hidden_layers": 3, "rope_theta": 1.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [1]},
        "text_config": {"hidden_size": 2, "rope_parameters": {"rope_theta": 9.0, "rope_type": "default"}},
    }));
    let text = config.unwrap().section("text_config").unwrap();
    assert_eq!((text.get("hidden_size"), text.get("num_hidden_layers")), (Some(&json!(2)), Some(&json!(3))));
    assert_eq!((text.get("rope_theta"), text.get("rope_scaling")), (Some(&json!(9.0)), None));
}

#[test]
fn rope_settings() {
    let rope = |section: Value| {
        let mut root = section;
        root["model_type"] = json!("any");
        let config = parse(&root).unwrap();
        let root = config.root();
        ["rope_theta", "rope_scaling", "partial_rotary_factor", "rope_local_base_freq", "rope_parameters"]
            .map(|key| root.get(key).cloned().unwrap_or_default())
    };
    let null = Value::Null;
    assert_eq!(rope(json!({"rope_theta": 1.0})), [json!(1.0), null.clone(), null.clone(), null.clone(), null.clone()]);
    let partial = json!({"rope_type": "yarn", "rope_theta": 2.0, "factor": 4.0, "partial_rotary_factor": 0.5});
    let partial = json!({ "rope_parameters": partial });
    let yarn = json!({"rope_type": "yarn", "factor": 4.0});
    assert_eq!(rope(partial), [json!(2.0), yarn, json!(0.5), null.clone(), null.clone()]);
    let legacy = json!({"rope_theta": 3.0, "rope_scaling": {"type": "linear", "factor": 2.0}});
    let linear = json!({"rope_type": "linear", "factor": 2.0});
    assert_eq!(rope(legacy), [json!(3.0), linear, null.clone(), null.clone(), null.clone()]);
    let both =
        json!({"rope_theta": 3.0, "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [1]}});
    assert_eq!(rope(both)[1], json!({"rope_type": "mrope", "mrope_section": [1]}));
    let full = json!({"rope_theta": 1e6, "rope_type": "default"});
    let layers = json!({"full_attention": full, "sliding_attention": {"rope_theta": 1e4}});
    let layered = rope(json!({ "rope_parameters": layers }));
    assert_eq!(layered, [json!(1e6), null.clone(), null, json!(1e4), layers]);
}

#[test]
fn names_types_and_aliases() {
    let config = parse(&json!({
        "model_type": "llava", "dtype": "torch.bfloat16", "architectures": ["A", "B"], "image_token_index": 5,
        "video_token_id": 6, "text_config": {"dtype": "float16"}, "vision_config": {"model_type": "clip_vision_model"},
    }))
    .unwrap();
    assert_eq!((config.torch_dtype(), config.architectures()), (Some("bfloat16"), vec!["A", "B"]));
    assert_eq!(config.section("text_config").unwrap().get("torch_dtype"), Some(&json!("float16")));
    assert_eq!(
        (config.root().get("image_token_id"), config.root().get("video_token_index")),
        (Some(&json!(5)), Some(&json!(6)))
    );
    assert_eq!(config.section("vision_config").unwrap().get("model_type"), Some(&json!("clip_vision_model")));
    assert!(config.section("audio_config").is_none() && config.section("model_type").is_none());
}

#[derive(Debug, Deserialize)]
struct Text {
    #[expect(dead_code, reason = "only its type matters")]
    hidden_size: usize,
    #[expect(dead_code, reason = "only its type matters")]
    nested: Option<Nested>,
}

#[derive(Debug, Deserialize)]
struct Nested {
    #[expect(dead_code, reason = "only its type matters")]
    values: Vec<f32>,
}

#[test]
fn wrong_values_name_the_whole_path() {
    let message = |text: Value| {
        let config = parse(&json!({"model_type": "any", "text_config": text})).unwrap();
        config.section("text_config").unwrap().parse::<Text>().unwrap_err().to_string()
    };
    assert_eq!(
        message(json!({"hidden_size": "64"})),
        "config.json: text_config.hidden_size: invalid type: string \"64\", expected usize"
    );
    assert_eq!(message(json!({})), "config.json: text_config.hidden_size: missing");
    assert_eq!(message(json!({"hidden_size": 1, "nested": {}})), "config.json: text_config.nested.values: missing");
    let element = message(json!({"hidden_size": 1, "nested": {"values": [1, "x"]}}));
    assert!(element.starts_with("config.json: text_config.nested.values[1]: invalid type"), "{element}");
    let root = parse(&json!({"model_type": "any"})).unwrap().root().parse::<Text>().unwrap_err();
    assert_eq!(root.to_string(), "config.json: hidden_size: missing");
    let whole = parse(&json!({"model_type": "any"})).unwrap().root().parse::<Vec<u8>>().unwrap_err();
    assert!(whole.to_string().starts_with("config.json: (root): invalid type"), "{whole}");
}

#[test]
fn files_that_are_no_configuration() {
    assert!(matches!(Config::parse(b"", "c"), Err(Error::NotJson { .. })));
    assert!(matches!(Config::parse(b"[1]", "c"), Err(Error::Value { key, .. }) if key == "(root)"));
    assert_eq!(parse(&json!({})).unwrap_err().to_string(), "config.json: model_type: missing");
    let wrong = parse(&json!({"model_type": 3})).unwrap_err().to_string();
    assert_eq!(wrong, "config.json: model_type: expected a string, got 3");
    let awq = parse(&json!({"model_type": "any", "quantization_config": {"quant_method": "awq"}})).unwrap_err();
    assert!(matches!(&awq, Error::UnsupportedQuantization { method, .. } if method == "awq"));
    assert!(awq.hint().is_some());
}

proptest! {
    #[test]
    fn damaged_configurations_never_panic(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/configs/qwen2_vl.tf5.json");
        let mut bytes = std::fs::read(path).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        drop(Config::parse(&bytes, "config.json"));
        bytes.truncate(at);
        drop(Config::parse(&bytes, "config.json"));
    }

}

#[test]
fn canonicalising_twice_changes_nothing() {
    for name in ["qwen2_vl.json", "gemma3.tf5.json", "llama3.tf5.json", "llava.json", "idefics3_mlx4_gs32.json"] {
        let once = load(name);
        let twice = parse(once.root().value()).unwrap();
        assert_eq!(once.root().value(), twice.root().value(), "{name}");
    }
}
