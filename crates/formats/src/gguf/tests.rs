//! Tests of reading GGUF files.

use ocelli_testkit::{GgufWriter, gguf_type};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{Checkpoint, Config, ModelFiles, WeightData};

fn parse(bytes: Vec<u8>) -> Result<Gguf> {
    Gguf::parse(bytes.into(), "m.gguf")
}

fn message(bytes: Vec<u8>) -> String {
    parse(bytes).expect_err("the file is malformed").to_string()
}

fn words(values: &[&str]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

fn half(value: f32) -> [u8; 2] {
    half::f16::from_f32(value).to_le_bytes()
}

#[test]
fn metadata_of_every_type() {
    let nested =
        [&9u32.to_le_bytes()[..], &1u64.to_le_bytes(), &0u32.to_le_bytes(), &2u64.to_le_bytes(), &[7, 8]].concat();
    let file = GgufWriter::default()
        .entry("a", 0, &[200])
        .entry("b", 1, &[0xff])
        .entry("c", 2, &[1, 1])
        .entry("d", 3, &(-2i16).to_le_bytes())
        .number("e", 5)
        .entry("f", 5, &7i32.to_le_bytes())
        .float("g", 0.5)
        .flag("h", true)
        .text("i", "hello")
        .entry("j", 9, &nested)
        .entry("k", 10, &u64::MAX.to_le_bytes())
        .entry("l", 11, &(-9i64).to_le_bytes())
        .entry("m", 12, &0.25f64.to_le_bytes());
    let gguf = parse(file.finish()).unwrap();
    let expected = [
        GgufValue::Unsigned(200),
        GgufValue::Negative(-1),
        GgufValue::Unsigned(257),
        GgufValue::Negative(-2),
        GgufValue::Unsigned(5),
        GgufValue::Unsigned(7),
        GgufValue::Float(0.5),
        GgufValue::Bool(true),
        GgufValue::Text("hello".into()),
        GgufValue::Array(vec![GgufValue::Array(vec![GgufValue::Unsigned(7), GgufValue::Unsigned(8)])]),
        GgufValue::Unsigned(u64::MAX),
        GgufValue::Negative(-9),
        GgufValue::Float(0.25),
    ];
    for (key, expected) in gguf.keys().zip(&expected) {
        assert_eq!(gguf.value(key), Some(expected), "{key}");
    }
    assert_eq!((gguf.keys().count(), gguf.names().count(), gguf.label()), (13, 0, "m.gguf"));
}

#[test]
fn malformed_headers() {
    let good = GgufWriter::default().text("general.name", "x").finish();
    let with = |at: usize, bytes: &[u8]| {
        let mut file = good.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    assert_eq!(message(b"GGU".to_vec()), "m.gguf: it ends within the magic number, at byte 3");
    assert_eq!(message(with(0, b"GGML")), "m.gguf: it does not start with `GGUF`");
    assert!(message(with(4, &1u32.to_le_bytes())).contains("version 1 is not supported"));
    assert!(parse(with(4, &2u32.to_le_bytes())).is_ok());
    assert!(message(with(8, &u64::MAX.to_le_bytes())).contains("it ends within"));
    assert!(message(with(16, &u64::MAX.to_le_bytes())).contains("it ends within"));
    assert!(message(with(24, &u64::MAX.to_le_bytes())).contains("it ends within a metadata key"));
    assert!(message(with(32, &[0xff])).contains("a metadata key is not UTF-8"));
    assert!(message(with(44, &99u32.to_le_bytes())).contains("metadata type 99 is unknown"));
    let twice = GgufWriter::default().number("a", 1).number("a", 2).finish();
    assert_eq!(message(twice), "m.gguf: metadata `a` is there twice");
    let deep: Vec<u8> = (0..10).flat_map(|_| [&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat()).collect();
    assert!(message(GgufWriter::default().entry("a", 9, &deep).finish()).contains("nest too deeply"));
    let long = [&0u32.to_le_bytes()[..], &(1u64 << 40).to_le_bytes()].concat();
    assert!(message(GgufWriter::default().entry("a", 9, &long).finish()).contains("too many for one array"));
    let odd = GgufWriter::default().number("general.alignment", 24).finish();
    assert!(message(odd).contains("general.alignment is no power of two"));
}

#[test]
fn malformed_tensors() {
    let tensor = |shape: &[usize], kind, length: usize| GgufWriter::default().tensor("w", shape, kind, vec![0; length]);
    assert!(parse(tensor(&[2, 32], gguf_type::Q4_0, 36).finish()).is_ok());
    let kind = message(tensor(&[2, 32], 10, 36).finish());
    assert_eq!(kind, "m.gguf: tensor `w`: type Q2_K is not supported");
    assert!(parse(tensor(&[1], 99, 0).finish()).unwrap_err().hint().unwrap().contains("Q4_K"));
    assert!(message(tensor(&[2, 33], gguf_type::Q4_0, 36).finish()).contains("no whole blocks"));
    assert!(message(tensor(&[usize::MAX, 32], gguf_type::Q4_0, 36).finish()).contains("too large"));
    assert!(message(tensor(&[1, 1, 1, 1, 1], 0, 4).finish()).contains("5 extents are too many"));
    assert!(message(tensor(&[64], 0, 32).finish()).contains("ends after the file"));
    let twice = tensor(&[8], 0, 32).tensor("w", &[8], 0, vec![0; 32]).finish();
    assert!(message(twice).contains("it is there twice"));
    let entries = [("a", 0), ("b", 4)].map(|(name, offset)| Entry {
        name: name.into(),
        extents: vec![2],
        kind: gguf_type::F32,
        offset,
    });
    assert_eq!(check_overlap(&entries, "m").unwrap_err().to_string(), "m: tensor `a`: it overlaps `b`");
    let unaligned = entries[1].view(&vec![0; 64].into(), 32, "m").unwrap_err();
    assert_eq!(unaligned.to_string(), "m: tensor `b`: its offset 4 is not aligned");
}

/// One block whose codes, scale 2 and offset 1 or symmetric are known.
#[test]
fn simple_blocks_decode() {
    // Codes 0..16 in the low halves, 15..0 in the high ones; every third fifth bit set.
    let nibbles: Vec<u8> = (0..16u8).map(|at| at | (15 - at) << 4).collect();
    let fifths = 0b1001_0010_0100_1001_0010_0100_1001_0010u32;
    let low = |at: usize| if at < 16 { at as f32 } else { (31 - at) as f32 };
    let five = move |at: usize| low(at) + if fifths >> at & 1 == 1 { 16.0 } else { 0.0 };
    let fifths = fifths.to_le_bytes();
    let eight: Vec<u8> = (0..32i16).map(|at| (at * 8 - 128) as u8).collect();
    type Expected = Box<dyn Fn(usize) -> f32>;
    let cases: Vec<(u32, Vec<u8>, Expected)> = vec![
        (2, [&half(2.0)[..], &nibbles].concat(), Box::new(move |at| (low(at) - 8.0) * 2.0)),
        (3, [&half(2.0)[..], &half(1.0), &nibbles].concat(), Box::new(move |at| low(at) * 2.0 + 1.0)),
        (6, [&half(2.0)[..], &fifths, &nibbles].concat(), Box::new(move |at| (five(at) - 16.0) * 2.0)),
        (7, [&half(2.0)[..], &half(1.0), &fifths, &nibbles].concat(), Box::new(move |at| five(at) * 2.0 + 1.0)),
        (8, [&half(2.0)[..], &eight].concat(), Box::new(move |at| (at as f32 * 8.0 - 128.0) * 2.0)),
    ];
    for (kind, block, expected) in cases {
        let gguf = parse(GgufWriter::default().tensor("w", &[1, 32], kind, block).finish()).unwrap();
        let stored = gguf.stored("w").unwrap();
        assert!(stored.is_quantized() && stored.is_float());
        let loaded = stored.load().unwrap();
        assert!(matches!(loaded, WeightData::Grouped(_)));
        let expected: Vec<f32> = (0..32).map(expected).collect();
        assert_eq!(loaded.to_f32().unwrap(), expected, "{}", stored.kind());
    }
}

#[test]
fn scales_that_no_f16_holds_become_bfloat16() {
    // -128 times the scale overflows.
    let block = [&half(1000.0)[..], &[1; 32]].concat();
    let gguf = parse(GgufWriter::default().tensor("w", &[1, 32], gguf_type::Q8_0, block).finish()).unwrap();
    let WeightData::Float(loaded) = gguf.stored("w").unwrap().load().unwrap() else { panic!("it fits no f16") };
    assert_eq!(loaded.to_f32().unwrap(), [1000.0; 32]);
}

/// Found by fuzzing: no rows, each of which claims to be longer than any memory.
#[test]
fn tensors_without_rows_take_no_memory() {
    for kind in [gguf_type::Q4_0, gguf_type::Q8_0, 12, 14] {
        let gguf = parse(GgufWriter::default().tensor("w", &[0, 1 << 52], kind, Vec::new()).finish()).unwrap();
        assert_eq!(gguf.stored("w").unwrap().load().unwrap().n_elements(), 0);
    }
}

/// A two-layer file whose every matrix is told by its first number.
fn model(architecture: &str) -> GgufWriter {
    let key = |name: &str| format!("{architecture}.{name}");
    let mut tokens = words(&["a", "b", "ab", "<s>", "<|im_end|>"]);
    tokens.extend((5..8).map(|at| format!("t{at}")));
    let mut writer = GgufWriter::default()
        .text("general.architecture", architecture)
        .number(&key("context_length"), 64)
        .number(&key("embedding_length"), 8)
        .number(&key("block_count"), 1)
        .number(&key("feed_forward_length"), 4)
        .number(&key("attention.head_count"), 2)
        .number(&key("attention.head_count_kv"), 1)
        .float(&key("attention.layer_norm_rms_epsilon"), 1e-5)
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "smollm")
        .texts("tokenizer.ggml.tokens", &tokens)
        .texts("tokenizer.ggml.merges", &words(&["a b"]))
        .numbers("tokenizer.ggml.token_type", &[1, 1, 1, 3, 4, 1, 1, 1])
        .number("tokenizer.ggml.bos_token_id", 3)
        .number("tokenizer.ggml.eos_token_id", 3)
        .flag("tokenizer.ggml.add_bos_token", true)
        .text("tokenizer.chat_template", "{{ messages }}")
        .floats("token_embd.weight", &[8, 8], &[1.0; 64])
        .floats("output_norm.weight", &[8], &[2.0; 8]);
    let rows = |rows: usize| -> Vec<f32> { (0..rows * 8).map(|at| (at / 8) as f32).collect() };
    for (name, shape) in [("attn_q", [8, 8]), ("attn_k", [4, 8]), ("attn_v", [4, 8])] {
        writer = writer.floats(&format!("blk.0.{name}.weight"), &shape, &rows(shape[0]));
    }
    writer.floats("blk.0.attn_q.bias", &[8], &[0., 1., 2., 3., 4., 5., 6., 7.])
}

fn open(writer: GgufWriter) -> Result<ModelFiles> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("model.gguf"), writer.finish()).unwrap();
    std::fs::write(folder.path().join("mmproj-model.gguf"), "").unwrap();
    // The only model in a folder is meant by the folder.
    ModelFiles::open(folder.path())
}

#[test]
fn a_model_has_the_published_names_and_config() {
    let files = open(model("llama")).unwrap();
    let config = Config::load(&files).unwrap();
    let names = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"];
    assert_eq!((files.names().unwrap(), config.model_type()), (words(&names), "llama"));
    for (key, expected) in [
        ("hidden_size", json!(8)),
        ("num_key_value_heads", json!(1)),
        ("head_dim", json!(4)),
        ("vocab_size", json!(8)),
        ("rope_theta", json!(10_000.0)),
        ("tie_word_embeddings", json!(true)),
        ("attention_bias", json!(true)),
    ] {
        assert_eq!(config.root().get(key), Some(&expected), "{key}");
    }
    let checkpoint = Checkpoint::open(&files).unwrap();
    assert!(checkpoint.contains("model.embed_tokens.weight") && checkpoint.contains("model.norm.weight"));
    let first = |name: &str| -> Vec<f32> {
        let loaded = checkpoint.matrix(&format!("model.layers.0.self_attn.{name}")).unwrap().unwrap();
        let width = loaded.n_elements() / loaded.shape()[0];
        loaded.to_f32().unwrap().into_iter().step_by(width).collect()
    };
    // Rows 0 and 1 turn together in the file, 0 and 2 of four in a published checkpoint.
    assert_eq!(first("q_proj.weight"), [0., 2., 1., 3., 4., 6., 5., 7.]);
    assert_eq!(first("q_proj.bias"), [0., 2., 1., 3., 4., 6., 5., 7.]);
    assert_eq!(first("k_proj.weight"), [0., 2., 1., 3.]);
    assert_eq!(first("v_proj.weight"), [0., 1., 2., 3.]);
    let qwen = Checkpoint::open(&open(model("qwen2")).unwrap()).unwrap();
    let rows = qwen.matrix("model.layers.0.self_attn.k_proj.weight").unwrap().unwrap().to_f32().unwrap();
    assert_eq!(rows[8], 1.0, "the rows of other architectures stay");
}

#[test]
fn a_tokenizer_is_spelled_out() {
    let files = open(model("llama")).unwrap();
    let tokenizer = files.json("tokenizer.json").unwrap().unwrap();
    assert_eq!(tokenizer["model"]["vocab"]["ab"], 2);
    assert_eq!(tokenizer["model"]["merges"], json!(["a b"]));
    let added = tokenizer["added_tokens"].as_array().unwrap();
    assert_eq!((added.len(), &added[0]["special"], &added[1]["special"]), (2, &json!(true), &json!(false)));
    assert_eq!(tokenizer["post_processor"]["type"], "TemplateProcessing");
    assert_eq!(tokenizer["pre_tokenizer"]["pretokenizers"][0]["type"], "Digits");
    let about = files.json("tokenizer_config.json").unwrap().unwrap();
    assert_eq!((&about["bos_token"], &about["chat_template"]), (&json!("<s>"), &json!("{{ messages }}")));
    let generation = files.json("generation_config.json").unwrap().unwrap();
    assert_eq!(generation["eos_token_id"], json!([3, 4]), "also the end of a turn");
}

#[test]
fn what_is_not_supported_is_named() {
    let error = |writer: GgufWriter| open(writer).unwrap_err().to_string();
    let ends = |text: String, end: &str| assert!(text.ends_with(end), "{text}");
    ends(error(GgufWriter::default()), "general.architecture: missing");
    ends(error(model("gemma")), "general.architecture: `gemma` is not supported; known: llama, qwen2");
    assert!(error(model("clip")).contains("the vision part of a model"));
    let experts = model("llama").number("llama.expert_count", 8);
    ends(error(experts), "llama.expert_count: models with experts are not supported");
    let partial = model("llama").number("llama.rope.dimension_count", 2);
    ends(error(partial), "llama.rope.dimension_count: expected the 4 of a whole head");
    let yarn = model("qwen2").text("qwen2.rope.scaling.type", "yarn");
    ends(error(yarn), "qwen2.rope.scaling.type: `yarn` is not supported");
    let strange = model("llama").floats("rope_freqs.weight", &[2], &[1.0, 0.5]);
    assert!(error(strange).contains("tensor `rope_freqs.weight`: its factors are not those of any Llama 3"));
    let bare = GgufWriter::default().text("general.architecture", "llama");
    ends(error(bare), "llama.attention.head_count: missing");
}

#[test]
fn llama_3_is_recognised_by_its_factors() {
    let (theta, factor) = (500_000f64, 32f64);
    let factors: Vec<f32> = (0..64)
        .map(|at| {
            let wavelength = std::f64::consts::TAU * theta.powf(f64::from(at) / 64.0);
            let smooth = ((8192.0 / wavelength - 1.0) / 3.0).clamp(0.0, 1.0);
            (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
        })
        .collect();
    let mut heads = model("llama").float("llama.rope.freq_base", theta as f32);
    heads = heads.floats("rope_freqs.weight", &[64], &factors);
    let scaling = Config::load(&open(heads).unwrap()).unwrap().root().get("rope_scaling").unwrap().clone();
    assert_eq!((scaling["rope_type"].as_str(), scaling["factor"].as_f64()), (Some("llama3"), Some(32.0)));
    assert_eq!(scaling["original_max_position_embeddings"], 8192.0);
}

#[test]
fn heads_that_do_not_divide_the_rows() {
    let writer = model("llama").floats("blk.1.attn_q.weight", &[6, 8], &[0.0; 48]);
    let checkpoint = Checkpoint::open(&open(writer).unwrap()).unwrap();
    let error = checkpoint.matrix("model.layers.1.self_attn.q_proj.weight").unwrap_err();
    assert!(error.to_string().contains("its 6 rows are not those of 2 heads"));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse([&b"GGUF\x03\0\0\0"[..], &bytes].concat());
    }

    #[test]
    fn damaged_models_never_panic(at in 0usize..4096, value: u8, cut in 0usize..4096) {
        let mut bytes = model("llama").finish();
        let length = bytes.len();
        bytes[at % length] = value;
        bytes.truncate(length.saturating_sub(cut % 64));
        if let Ok(gguf) = parse(bytes) && let Ok(model) = GgufModel::new(&gguf) {
            for tensor in model.tensors().values() {
                let _ = tensor.load();
            }
        }
    }
}
