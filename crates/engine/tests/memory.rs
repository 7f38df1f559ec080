//! Quantising on load never holds two copies: the process stays near the size of what it keeps. A test of its own,
//! since peak memory belongs to the whole process.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use ocelli_engine::{EngineOptions, LoadedModel, PackCache, Quant};
use ocelli_formats::ModelFiles;

/// Writes a Llama of 67 million weights in bfloat16 (134 MB).
fn write_model(folder: &Path) {
    let (hidden, intermediate, vocab, layers) = (1024, 4096, 512, 4);
    let mut shapes = vec![("model.embed_tokens".to_owned(), vec![vocab, hidden])];
    for layer in 0..layers {
        let layer = format!("model.layers.{layer}");
        let heads =
            ["q_proj", "k_proj", "v_proj", "o_proj"].map(|name| (format!("self_attn.{name}"), [hidden, hidden]));
        let mlp = [
            ("gate_proj", [intermediate, hidden]),
            ("up_proj", [intermediate, hidden]),
            ("down_proj", [hidden, intermediate]),
        ];
        let mlp = mlp.map(|(name, shape)| (format!("mlp.{name}"), shape));
        shapes.extend(heads.into_iter().chain(mlp).map(|(name, shape)| (format!("{layer}.{name}"), shape.to_vec())));
        shapes.extend(
            ["input_layernorm", "post_attention_layernorm"].map(|name| (format!("{layer}.{name}"), vec![hidden])),
        );
    }
    shapes.push(("model.norm".to_owned(), vec![hidden]));
    let (mut header, mut end) = (String::new(), 0);
    for (name, shape) in &shapes {
        let begin = end;
        end += 2 * shape.iter().product::<usize>();
        let comma = if begin == 0 { "" } else { "," };
        write!(header, r#"{comma}"{name}.weight":{{"dtype":"BF16","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#)
            .unwrap();
    }
    let header = format!("{{{header}}}");
    let mut file = std::io::BufWriter::new(std::fs::File::create(folder.join("model.safetensors")).unwrap());
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    // Numbers of about 0.01 whose last bits look random.
    let block: Vec<u8> = (0..65_521u32).flat_map(|at| [(at.wrapping_mul(2_654_435_761) >> 24) as u8, 0x3c]).collect();
    let mut left = end;
    while left > 0 {
        let part = left.min(block.len());
        file.write_all(&block[..part]).unwrap();
        left -= part;
    }
    file.flush().unwrap();
    let config = format!(
        r#"{{"model_type":"llama","hidden_size":{hidden},"intermediate_size":{intermediate},"num_hidden_layers":{layers},
        "num_attention_heads":16,"num_key_value_heads":16,"vocab_size":{vocab},"rms_norm_eps":1e-5,
        "tie_word_embeddings":true,"eos_token_id":1}}"#
    );
    std::fs::write(folder.join("config.json"), config).unwrap();
    let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/llama3/tokenizer.json");
    std::fs::copy(tokenizer, folder.join("tokenizer.json")).unwrap();
}

/// Bytes of a line of this process's status.
fn status(key: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
fn peak_memory_is_that_of_the_quantised_weights() {
    let scratch = tempfile::tempdir().unwrap();
    write_model(scratch.path());
    let files = ModelFiles::open(scratch.path()).unwrap();
    // What the first load of anything takes besides weights: threads, the tokenizer.
    drop(LoadedModel::load(&files, &EngineOptions { threads: Some(2), ..EngineOptions::new() }).unwrap());
    let cache = PackCache { folder: scratch.path().join("packed"), max_bytes: 1 << 30 };
    for (quant, pack_cache) in
        [(Quant::Q4, None), (Quant::Q8, None), (Quant::Q4, Some(cache.clone())), (Quant::Q4, Some(cache))]
    {
        let options = EngineOptions { threads: Some(2), quant, pack_cache, ..EngineOptions::new() };
        // 5 sets the high-water mark back to what is resident now (proc(5)).
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
        let before = status("VmRSS");
        let model = LoadedModel::load(&files, &options).unwrap();
        let (grown, weights) = (status("VmHWM") - before, model.info.weight_bytes);
        let share = grown as f64 / weights as f64;
        assert!(share < 1.15, "{quant:?}: {grown} bytes for {weights} bytes of weights ({share:.2})");
        drop(model);
    }
}
