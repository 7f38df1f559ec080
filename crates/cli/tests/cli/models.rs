//! `ocelli show`, `list` and `rm`.

use std::path::PathBuf;

use crate::support::{Scratch, repository};

/// A model in the scratch folder's cache, with real files.
fn cached(scratch: &Scratch) -> PathBuf {
    scratch.cache_model("tiny/qwen2", "fixtures/qwen2");
    scratch.path().join("hub/models--tiny--qwen2")
}

#[test]
fn the_built_in_model_is_shown() {
    let scratch = Scratch::new();
    let ran = scratch.run(["show"]);
    for part in [
        "model         demo\n",
        "supported     yes\n",
        "sees images   yes\n",
        "takes videos  no\n",
        "MiB with --quant q8, ",
        "MiB with a full context\n",
        "this machine  it fits: ",
    ] {
        assert!(ran.ok().contains(part), "{part} in {ran:?}");
    }
}

#[test]
fn a_model_is_shown_without_loading_it() {
    let scratch = Scratch::new();
    let folder = repository("fixtures/qwen2");
    let ran = scratch.run(["show", "--json", folder.to_str().unwrap()]);
    ran.ok();
    let about = &ran.objects()[0];
    assert_eq!(about["architecture"], "qwen2");
    assert_eq!(about["dtype"], "f32");
    assert_eq!(about["sees_images"], false);
    let (weights, cache) = (about["weight_bytes"].as_u64().unwrap(), about["kv_bytes_per_token"].as_u64().unwrap());
    let expected = weights + cache * about["context_length"].as_u64().unwrap();
    assert_eq!(about["memory_bytes"].as_u64(), Some(expected));
    assert_eq!(about["parameters"].as_u64(), Some(weights / 4));
    let at = |name: &str| about["weight_bytes_at"][name].as_u64().unwrap();
    assert_eq!(at("none"), weights);
    assert!(at("q4") < at("q8") && at("q8") < weights / 3, "{about}");
    assert_eq!(about["fits"]["none"], true);
}

#[test]
fn what_is_supported_is_listed_with_its_sizes() {
    let scratch = Scratch::new();
    let ran = scratch.run(["models", "--json"]);
    let families: serde_json::Value = serde_json::from_str(ran.ok()).unwrap();
    let find =
        |model_type: &str| families.as_array().unwrap().iter().find(|row| row["model_type"] == model_type).unwrap();
    let sizes = find("deepseek_vl_v2")["sizes"].as_array().unwrap();
    let ids: Vec<&str> = sizes.iter().map(|size| size["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["deepseek-ai/deepseek-vl2-tiny", "deepseek-ai/deepseek-vl2-small"]);
    assert_eq!(find("llava")["tasks"], serde_json::json!(["describe", "ask"]));

    let markdown = scratch.run(["models", "--md"]).ok().to_owned();
    assert!(markdown.starts_with("| family | model_type | size |"), "{markdown}");
    let row = markdown.lines().find(|line| line.contains("SmolVLM-256M-Instruct")).unwrap();
    assert!(
        row.starts_with("| Idefics3, SmolVLM | `idefics3` | ") && row.ends_with("| describe, ask | Apache-2.0 |"),
        "{row}"
    );
    let ran = scratch.run(["models"]);
    assert!(ran.ok().contains("\nQwen2, Qwen2.5, R1-Distill-Qwen (qwen2): text\n"), "{ran:?}");
    assert!(markdown.lines().skip(2).all(|line| line.matches(" | ").count() == 8), "{markdown}");
}

#[test]
fn an_unsupported_model_is_shown_as_such() {
    let scratch = Scratch::new();
    scratch.copy_fixture("qwen2");
    let config = scratch.read("qwen2/config.json").replace("\"qwen2\"", "\"mamba9\"");
    scratch.write("qwen2/config.json", config.as_bytes());
    let ran = scratch.run(["show", "qwen2"]);
    let expected = "supported     no: architecture mamba9 is not supported; supported are ";
    assert!(ran.ok().contains(expected), "{ran:?}");
    assert!(ran.stdout.contains("parameters    101.6 k\n"), "{ran:?}");
}

#[test]
fn models_in_the_cache_are_listed_used_and_removed() {
    let scratch = Scratch::new();
    assert_eq!(scratch.run(["list"]).ok(), "");
    assert_eq!(scratch.run(["list", "--json"]).ok(), "[]\n");
    let folder = cached(&scratch);
    let listed = scratch.run(["list"]);
    assert!(listed.ok().contains("tiny/qwen2") && listed.stdout.contains("main (0123456)"), "{listed:?}");
    let json = scratch.run(["list", "--json"]);
    let json: serde_json::Value = serde_json::from_str(json.ok()).unwrap();
    assert_eq!(json[0]["id"], "tiny/qwen2");
    let ran = scratch.run(["run", "--model", "tiny/qwen2", "--raw", "hello", "--max-tokens", "2", "--json"]);
    ran.ok();
    assert_eq!(ran.objects()[0]["model"], "tiny/qwen2");
    let ran = scratch.run(["run", "--model", "tiny/qwen2", "--revision", "v9", "--raw", "hello"]);
    assert_eq!(ran.code, 3);
    assert!(ran.stderr.contains("not at revision `v9`"), "{ran:?}");
    let removed = scratch.run(["rm", "tiny/qwen2"]);
    removed.ok();
    assert!(removed.stderr.starts_with("removed tiny/qwen2, ") && !folder.exists(), "{removed:?}");
    assert_eq!(scratch.run(["rm", "tiny/qwen2"]).code, 3);
}

#[test]
fn a_model_is_written_with_smaller_weights() {
    let scratch = Scratch::new();
    let folder = repository("fixtures/qwen2");
    let arguments = ["quantize", folder.to_str().unwrap(), "small", "--quant", "q4"];
    let ran = scratch.run(arguments);
    for part in ["decoder", "4-bit/64", "embedding", "8-bit/64", "norms, biases", "small: ", "of MLX: mlx-lm"] {
        assert!(ran.ok().contains(part), "{part} in {ran:?}");
    }
    let shown = scratch.run(["show", "small", "--json"]);
    shown.ok();
    assert_eq!(shown.objects()[0]["supported"], true);
    let answer = scratch.run(["run", "--model", "small", "--raw", "once", "--max-tokens", "2"]);
    answer.ok();
    let again = scratch.run(arguments);
    assert_eq!(again.code, 3);
    assert!(again.stderr.contains("small: the folder is not empty") && again.stderr.contains("--force"), "{again:?}");
    scratch.run(arguments.into_iter().chain(["--force", "--json"])).ok();
}
