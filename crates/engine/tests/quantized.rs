//! Quantised models in every layout: what `quantize` writes, and GGUF files.

#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;

use ocelli_engine::{Cancel, EngineOptions, Error, LoadProgress, LoadedModel, LogitRows, Prefill, Quant, quantize};
use ocelli_formats::{Checkpoint, ModelFiles, Safetensors};
use ocelli_testkit::{GgufWriter, gguf_type};
use serde_json::Value;

fn go_on(_: LoadProgress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn fixture(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(family)
}

/// The logits of a fixture's prompt.
fn logits(model: &mut LoadedModel, family: &str) -> Vec<f32> {
    let folder = fixture(family);
    let reference: Value = serde_json::from_slice(&std::fs::read(folder.join("reference.json")).unwrap()).unwrap();
    let files = (0..).map_while(|number| std::fs::read(folder.join(format!("image{number}.png"))).ok());
    let images: Vec<_> = files.map(|bytes| model.processor.decode_image(&bytes).unwrap()).collect();
    let prompt = model.processor.raw_prompt(reference["prompt"].as_str().unwrap(), &images).unwrap();
    let cancel = Cancel::new();
    let encode = |image| model.session.encode_image(image, &cancel).unwrap();
    let features: Vec<_> = prompt.images.iter().map(encode).collect();
    let sequence = model.session.start();
    let prefill = Prefill { ids: &prompt.ids, images: &features, rows: LogitRows::All, cancel: &cancel };
    let logits = model.session.prefill(sequence, prefill).unwrap();
    model.session.end(sequence);
    logits
}

/// The largest error over the largest number.
fn difference(found: &[f32], expected: &[f32]) -> f32 {
    let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    expected.iter().zip(found).fold(0f32, |worst, (a, b)| worst.max((a - b).abs())) / largest
}

fn load(path: &Path, options: &EngineOptions) -> LoadedModel {
    LoadedModel::load(&ModelFiles::open(path).unwrap(), options).unwrap()
}

fn options(quant: Quant, quant_vision: Quant, quant_group: Option<usize>) -> EngineOptions {
    EngineOptions { quant, quant_vision, quant_group, threads: Some(2), ..EngineOptions::new() }
}

#[test]
fn a_written_model_answers_as_one_quantised_on_load() {
    for (family, options) in [
        ("llama3", options(Quant::Q4, Quant::None, None)),
        ("qwen2", options(Quant::Q8, Quant::None, Some(32))),
        ("idefics3", options(Quant::Q4, Quant::None, Some(32))),
        ("smolvlm", options(Quant::Q8, Quant::None, None)),
        ("llava", options(Quant::Q4, Quant::Q8, None)),
        ("qwen2_vl", options(Quant::Q4, Quant::None, None)),
        ("qwen2_5_vl", options(Quant::Q8, Quant::None, Some(32))),
        ("qwen3_vl", options(Quant::Q4, Quant::None, None)),
        // MLX has no such family.
        ("blip2_opt", options(Quant::Q4, Quant::None, None)),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("written");
        let files = ModelFiles::open(fixture(family)).unwrap();
        let report = quantize(&files, &target, &options, false, &go_on).unwrap();
        let expected = logits(&mut load(&fixture(family), &options), family);
        let found = logits(&mut load(&target, &EngineOptions { threads: Some(2), ..EngineOptions::new() }), family);
        assert!(found == expected, "{family}: the logits differ");
        assert!(report.bytes_after < report.bytes_before, "{report:?}");
        assert_eq!(
            report.bytes_after,
            Checkpoint::open(&ModelFiles::open(&target).unwrap()).unwrap().total_bytes() as u64
        );
        let embedding = report.kinds.iter().find(|kind| kind.kind == "embedding").unwrap();
        assert!(embedding.stored.starts_with("8-bit/") && embedding.relative_error < 1e-4, "{embedding:?}");
        let decoder = report.kinds.iter().find(|kind| kind.kind == "decoder").unwrap();
        assert!((1e-6..1e-2).contains(&decoder.relative_error), "{decoder:?}");
        assert!(target.join("tokenizer.json").is_file());
        // Nothing is left beside it.
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        let again =
            quantize(&ModelFiles::open(&target).unwrap(), &folder.path().join("twice"), &options, false, &go_on);
        assert!(matches!(again, Err(Error::AlreadyQuantized { .. })));
    }
}

/// Against what MLX itself wrote of the same models.
#[test]
fn a_written_model_has_the_tensors_of_mlx() {
    for (family, mlx, quant, group, floats) in [
        ("llava", "llava_mlx8", Quant::Q8, 64, None),
        ("llava", "llava_mlx4", Quant::Q4, 64, None),
        ("qwen2_vl", "qwen2_vl_mlx8_bf16", Quant::Q8, 64, None),
        ("qwen2_5_vl", "qwen2_5_vl_mlx4_gs32", Quant::Q4, 32, None),
        ("qwen3_vl", "qwen3_vl_mlx4_bf16", Quant::Q4, 64, None),
        ("deepseek_vl_v2", "deepseek_vl_v2_mlx8", Quant::Q8, 64, Some("projector.")),
        ("deepseek_vl_v2", "deepseek_vl_v2_mlx4", Quant::Q4, 64, Some("projector.")),
        // MLX counts what leads from the tower to the decoder with the decoder, `--quant-vision` with the tower.
        ("idefics3", "idefics3_mlx4_gs32", Quant::Q4, 32, Some("connector.")),
        ("smolvlm", "smolvlm_mlx8", Quant::Q8, 64, Some("connector.")),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("written");
        let files = ModelFiles::open(fixture(family)).unwrap();
        let report = quantize(&files, &target, &options(quant, Quant::None, Some(group)), false, &go_on).unwrap();
        assert!(report.mlx_package.is_some(), "{family}");
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/data/mlx").join(mlx);
        let [found, expected] = [tensors(&target, None), tensors(&data, floats)];
        for (name, tensor) in &expected {
            assert_eq!(found.get(name), Some(tensor), "{mlx}: {name}");
        }
        let more: Vec<&String> = found.keys().filter(|name| !expected.contains_key(*name)).collect();
        assert!(more.is_empty(), "{mlx} has no {more:?}");
        let [found, expected] =
            [&target, &fixture(family)].map(|folder| logits(&mut load(folder, &EngineOptions::new()), family));
        let (worst, tolerance) = (difference(&found, &expected), if quant == Quant::Q8 { 0.06 } else { 0.5 });
        assert!(found.len() == expected.len() && worst > 0.0 && worst < tolerance, "{mlx}: {worst}");
    }
}

/// The file's tensors by name: the extents of floats, and of codes those of the matrices that they are of, however many
/// bits they have. Codes below `floats` count as the floats that they are made of.
fn tensors(folder: &Path, floats: Option<&str>) -> BTreeMap<String, (&'static str, Vec<usize>)> {
    let files = ModelFiles::open(folder).unwrap();
    let checkpoint = Checkpoint::open(&files).unwrap();
    let file = Safetensors::parse(files.bytes("model.safetensors").unwrap().unwrap(), "model").unwrap();
    let names = file.names().filter_map(|name| {
        let is_part = name.ends_with(".scales") || name.ends_with(".biases");
        let are_floats = floats.is_some_and(|prefix| name.starts_with(prefix));
        let stored = checkpoint.stored(name).filter(|stored| stored.is_quantized());
        let tensor = match stored {
            Some(stored) => (if are_floats { "floats" } else { "codes" }, stored.shape().to_vec()),
            None => ("floats", file.tensor(name).unwrap().shape().to_vec()),
        };
        (!is_part || !are_floats).then(|| (name.to_owned(), tensor))
    });
    names.collect()
}

/// Rows of 48 weights are no whole groups: MLX has no form for their codes, and they stay floats.
#[test]
fn a_vision_tower_is_quantised_where_its_rows_are_whole_groups() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("written");
    let files = ModelFiles::open(fixture("smolvlm")).unwrap();
    let report = quantize(&files, &target, &options(Quant::None, Quant::Q8, None), false, &go_on).unwrap();
    let vision: Vec<&str> =
        report.kinds.iter().filter(|kind| kind.kind == "vision").map(|kind| kind.stored.as_str()).collect();
    assert!(vision.contains(&"8-bit/64") && vision.contains(&"8-bit/32") && vision.contains(&"F32"), "{vision:?}");
    let found = logits(&mut load(&target, &EngineOptions::new()), "smolvlm");
    let expected = logits(&mut load(&fixture("smolvlm"), &EngineOptions::new()), "smolvlm");
    let worst = difference(&found, &expected);
    assert!(worst > 0.0 && worst < 5e-2, "{worst}");
}

/// Checkpoints that MLX quantised, on the backend that people use: x is quantised to 8 bits there, too, and attention is in
/// bfloat16. How their codes are read is held to 3e-3 and less by `ocelli-models`, in float32 throughout.
#[test]
fn codes_of_mlx_stay_near_what_they_stand_for() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/data/mlx");
    let mut count = 0;
    for entry in std::fs::read_dir(data).unwrap() {
        let (codes, folder) = (entry.unwrap().path(), tempfile::tempdir().unwrap());
        let name = codes.file_name().unwrap().to_str().unwrap();
        let (family, _) = name.split_once("_mlx").unwrap();
        for source in [fixture(family), codes.clone()] {
            for entry in std::fs::read_dir(source).unwrap() {
                let path = entry.unwrap().path();
                std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
            }
        }
        // The form of other versions says what the float checkpoint is.
        std::fs::remove_file(folder.path().join("config.tf5.json")).ok();
        let expected = ModelFiles::open(&codes).unwrap().bytes("reference_mlx.safetensors").unwrap().unwrap();
        let expected = Safetensors::parse(expected, name).unwrap().tensor("out.logits").unwrap().to_f32().unwrap();
        let mut model = load(folder.path(), &EngineOptions::new());
        let found = logits(&mut model, family);
        assert_eq!(expected.len(), found.len(), "{name}");
        let worst = difference(&found, &expected);
        assert!(worst > 0.0 && worst < 0.08, "{name}: {worst}");
        count += 1;
    }
    assert!(count >= 10, "{count}");
}

#[test]
fn what_is_there_is_replaced_only_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("written");
    let (files, options) = (ModelFiles::open(fixture("qwen2")).unwrap(), options(Quant::Q8, Quant::None, None));
    let write = |force| quantize(&files, &target, &options, force, &go_on);
    let message = |force| write(force).unwrap_err().to_string();
    std::fs::create_dir_all(target.join("letters")).unwrap();
    std::fs::write(target.join("letters/a.txt"), "dear").unwrap();
    assert!(message(false).ends_with("the folder is not empty"));
    assert!(message(true).ends_with("the folder holds letters, which is no file of a model, and is not replaced"));
    assert_eq!(std::fs::read_to_string(target.join("letters/a.txt")).unwrap(), "dear");
    std::fs::remove_dir_all(&target).unwrap();
    write(false).unwrap();
    std::fs::write(target.join("old.json"), "old").unwrap();
    assert!(matches!(write(false), Err(Error::Target { .. })));
    write(true).unwrap();
    assert!(!target.join("old.json").exists());
    // A picture beside a model is somebody's, and a program's settings are no model.
    std::fs::write(target.join("photo.png"), "dear").unwrap();
    assert!(message(true).contains("holds photo.png, which is no file of a model"));
    std::fs::remove_file(target.join("photo.png")).unwrap();
    std::fs::remove_file(target.join("model.safetensors")).unwrap();
    assert!(message(true).ends_with("the folder holds no model and is not replaced"));
    std::fs::remove_dir_all(&target).unwrap();
    let itself = quantize(&files, &fixture("qwen2"), &options, true, &go_on).unwrap_err().to_string();
    assert!(itself.ends_with("this is the model itself, which would be lost"), "{itself}");
    std::fs::write(&target, "a file").unwrap();
    assert!(message(true).ends_with("there is a file of this name"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left behind");
    let ended = quantize(&files, &folder.path().join("other"), &options, false, &|_| ControlFlow::Break(()));
    assert!(matches!(ended, Err(Error::Cancelled)));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left behind");
    let nothing = quantize(&files, &target, &EngineOptions::new(), false, &go_on).unwrap_err();
    assert_eq!(nothing.to_string(), "quant is none, expected q4 or q8");
}

/// A text fixture as llama.cpp's converter writes it: its own tensor names, the rows of q and k interleaved, the
/// tokenizer in the metadata.
fn gguf(family: &str, quantized: bool) -> Vec<u8> {
    let json =
        |name: &str| -> Value { serde_json::from_slice(&std::fs::read(fixture(family).join(name)).unwrap()).unwrap() };
    let (config, tokenizer) = (json("config.json"), json("tokenizer.json"));
    let architecture = config["model_type"].as_str().unwrap();
    let number = |key: &str| config[key].as_u64().unwrap() as u32;
    let key = |name: &str| format!("{architecture}.{name}");
    let (heads, kv_heads) = (number("num_attention_heads"), number("num_key_value_heads"));
    let mut writer = GgufWriter::default()
        .text("general.architecture", architecture)
        .number(&key("context_length"), number("max_position_embeddings"))
        .number(&key("embedding_length"), number("hidden_size"))
        .number(&key("block_count"), number("num_hidden_layers"))
        .number(&key("feed_forward_length"), number("intermediate_size"))
        .number(&key("attention.head_count"), heads)
        .number(&key("attention.head_count_kv"), kv_heads)
        .float(&key("attention.layer_norm_rms_epsilon"), config["rms_norm_eps"].as_f64().unwrap() as f32)
        .float(&key("rope.freq_base"), config["rope_theta"].as_f64().unwrap() as f32)
        .number("tokenizer.ggml.eos_token_id", number("eos_token_id"));
    writer = with_tokenizer(writer, &tokenizer, family, number("vocab_size"));
    if family == "llama3" {
        writer = writer
            .number("tokenizer.ggml.bos_token_id", number("bos_token_id"))
            .flag("tokenizer.ggml.add_bos_token", true);
        writer = writer.floats("rope_freqs.weight", &[8], &llama3_factors(&config));
    }
    let bytes = std::fs::read(fixture(family).join("model.safetensors")).unwrap();
    let tensors = Safetensors::parse(bytes.into(), family).unwrap();
    for name in tensors.names() {
        let data = tensors.tensor(name).unwrap();
        let mut values = data.to_f32().unwrap();
        let heads = if name.contains("q_proj") { heads } else { kv_heads } as usize;
        if architecture == "llama" && (name.contains("q_proj") || name.contains("k_proj")) {
            values = interleaved(&values, heads, data.shape()[0]);
        }
        let name = gguf_name(name);
        writer = if quantized && data.shape().len() == 2 {
            writer.tensor(&name, data.shape(), gguf_type::Q8_0, q8_0(&values))
        } else {
            writer.floats(&name, data.shape(), &values)
        };
    }
    writer.finish()
}

fn with_tokenizer(writer: GgufWriter, tokenizer: &Value, family: &str, count: u32) -> GgufWriter {
    let mut tokens: Vec<String> = (0..count).map(|id| format!("[unused {id}]")).collect();
    let mut kinds = vec![5; count as usize];
    for (token, id) in tokenizer["model"]["vocab"].as_object().unwrap() {
        let id = id.as_u64().unwrap() as usize;
        (tokens[id], kinds[id]) = (token.clone(), 1);
    }
    for added in tokenizer["added_tokens"].as_array().unwrap() {
        let id = added["id"].as_u64().unwrap() as usize;
        (tokens[id], kinds[id]) = (added["content"].as_str().unwrap().to_owned(), 3);
    }
    let merge = |pair: &Value| format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap());
    let merges: Vec<String> = tokenizer["model"]["merges"].as_array().unwrap().iter().map(merge).collect();
    writer
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", if family == "qwen2" { "qwen2" } else { "gpt-2" })
        .texts("tokenizer.ggml.tokens", &tokens)
        .texts("tokenizer.ggml.merges", &merges)
        .numbers("tokenizer.ggml.token_type", &kinds)
}

fn llama3_factors(config: &Value) -> Vec<f32> {
    let scaling = |key: &str| config["rope_scaling"][key].as_f64().unwrap();
    let (low, high) = (scaling("low_freq_factor"), scaling("high_freq_factor"));
    let theta = config["rope_theta"].as_f64().unwrap();
    let factor = |at: u32| {
        let wavelength = std::f64::consts::TAU * theta.powf(f64::from(at) / 8.0);
        let ratio = scaling("original_max_position_embeddings") / wavelength;
        match ratio {
            many if many > high => 1.0,
            few if few < low => scaling("factor") as f32,
            _ => {
                let smooth = (ratio - low) / (high - low);
                (1.0 / ((1.0 - smooth) / scaling("factor") + smooth)) as f32
            }
        }
    };
    (0..8).map(factor).collect()
}

/// Rows `[heads, 2, half]` as `[heads, half, 2]`.
fn interleaved(values: &[f32], heads: usize, rows: usize) -> Vec<f32> {
    let (width, half) = (values.len() / rows, rows / heads / 2);
    let mut rows_out = Vec::with_capacity(values.len());
    for head in 0..heads {
        for at in 0..half {
            for part in 0..2 {
                let row = (head * 2 + part) * half + at;
                rows_out.extend_from_slice(&values[row * width..][..width]);
            }
        }
    }
    rows_out
}

fn gguf_name(name: &str) -> String {
    let pairs = [
        ("model.layers.", "blk."),
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("post_attention_layernorm", "ffn_norm"),
        ("input_layernorm", "attn_norm"),
    ];
    pairs.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

fn q8_0(values: &[f32]) -> Vec<u8> {
    let block = |values: &[f32]| -> Vec<u8> {
        let scale = half::f16::from_f32(values.iter().fold(0f32, |largest, value| largest.max(value.abs())) / 127.0);
        let codes = values.iter().map(|value| (value / scale.to_f32()).round() as i8 as u8);
        scale.to_le_bytes().into_iter().chain(codes).collect()
    };
    values.chunks(32).flat_map(block).collect()
}

#[test]
fn a_gguf_file_answers_as_the_checkpoint_it_was_made_from() {
    for family in ["llama3", "qwen2"] {
        for (quantized, tolerance) in [(false, 2e-4), (true, 5e-2)] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("model.gguf");
            std::fs::write(&path, gguf(family, quantized)).unwrap();
            let mut model = load(&path, &EngineOptions { threads: Some(2), ..EngineOptions::new() });
            let reference = std::fs::read(fixture(family).join("reference.safetensors")).unwrap();
            let reference = Safetensors::parse(reference.into(), family).unwrap();
            let about: Value =
                serde_json::from_slice(&std::fs::read(fixture(family).join("reference.json")).unwrap()).unwrap();
            let prompt = model.processor.raw_prompt(about["prompt"].as_str().unwrap(), &[]).unwrap();
            let ids: Vec<i64> = prompt.ids.iter().map(|id| i64::from(*id)).collect();
            assert_eq!(ids, reference.tensor("in.input_ids").unwrap().to_i64().unwrap(), "{family}");
            let expected = reference.tensor("out.logits").unwrap().to_f32().unwrap();
            let found = logits(&mut model, family);
            let worst = difference(&found, &expected);
            assert!(found.len() == expected.len() && worst < tolerance, "{family}, quantised {quantized}: {worst}");
        }
    }
}

/// MLX itself reads what is written; runs where its Python packages are installed (`OCELLI_PYTHON` names the
/// interpreter).
#[test]
fn mlx_reads_what_is_written() {
    let python = std::env::var_os("OCELLI_PYTHON").unwrap_or_else(|| "python3".into());
    let installed = Command::new(&python).args(["-c", "import mlx_lm, mlx_vlm"]).output();
    if !installed.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIP: the Python packages mlx-lm and mlx-vlm are not installed");
        return;
    }
    for (family, quant, quant_vision) in [
        ("qwen2", Quant::Q4, Quant::None),
        ("llama3", Quant::Q8, Quant::None),
        ("smolvlm", Quant::Q4, Quant::None),
        ("llava", Quant::Q4, Quant::Q8),
        ("qwen2_vl", Quant::Q8, Quant::None),
        ("qwen2_5_vl", Quant::Q4, Quant::None),
        ("qwen3_vl", Quant::Q4, Quant::Q8),
        ("deepseek_vl_v2", Quant::Q8, Quant::Q8),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("written");
        let files = ModelFiles::open(fixture(family)).unwrap();
        quantize(&files, &target, &options(quant, quant_vision, None), false, &go_on).unwrap();
        let mut model = load(&target, &EngineOptions::new());
        let values = logits(&mut model, family);
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        std::fs::write(target.join("logits.f32"), bytes).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools/mlx_logits.py");
        let output = Command::new(&python).arg("-B").arg(script).arg(&target).arg(fixture(family)).output().unwrap();
        assert!(output.status.success(), "{family}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
