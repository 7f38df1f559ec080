//! `ocelli bench`. How fast it is depends on the machine; that it measures, and what it says, does not.

use crate::support::{Ran, Scratch};

/// A short measurement of the demo model.
const SHORT: &[&str] = &["bench", "--runs", "2", "--warmup", "0", "--max-tokens", "4", "--threads", "2"];

fn short(scratch: &Scratch, more: &[&str]) -> Ran {
    scratch.run(SHORT.iter().chain(more))
}

#[test]
fn the_table_has_every_run_and_the_statistics() {
    let ran = short(&Scratch::new(), &[]);
    let text = ran.ok();
    for part in ["demo (", "2 threads", "vision tokens", "run 1 ", "run 2 ", "median ", "variation ", "peak memory"] {
        assert!(text.contains(part), "{part} in {ran:?}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 120 && !line.ends_with(' ')), "{ran:?}");
}

#[test]
fn the_json_object_has_everything() {
    let ran = short(&Scratch::new(), &["--json", "--prompt-tokens", "7"]);
    ran.ok();
    let object = &ran.objects()[0];
    assert_eq!(object["model"], "demo");
    assert_eq!(object["completion_tokens"], 4);
    assert_eq!(object["prompt_tokens"].as_u64(), object["vision_tokens"].as_u64().map(|tokens| tokens + 7));
    assert_eq!(object["image_size"], serde_json::json!([512, 512]));
    let runs = object["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 2);
    for figure in
        ["preprocess_ms", "vision_ms", "prefill_ms", "prefill_tokens_per_second", "ttft_ms", "tokens_per_second"]
    {
        assert!(runs.iter().all(|run| run[figure].as_f64() > Some(0.0)), "{figure} in {ran:?}");
        for statistic in ["mean", "median", "min", "max", "cv"] {
            assert!(object["summary"][figure][statistic].is_number(), "{figure} {statistic} in {ran:?}");
        }
    }
    assert!(runs.iter().all(|run| run["output_hash"] == object["output_hash"]), "{ran:?}");
    for field in ["load_ms", "second_load_ms", "parameters", "threads"] {
        assert!(object[field].as_f64() > Some(0.0), "{field} in {ran:?}");
    }
    for (part, field) in [("memory", "weight_bytes"), ("memory", "kv_bytes"), ("utilisation", "prompt_flops")] {
        assert!(object[part][field].as_f64() > Some(0.0), "{part}.{field} in {ran:?}");
    }
    assert!(object["load"]["was_busy"].is_boolean() && object["machine"].is_null(), "{ran:?}");
}

#[test]
fn rows_to_paste() {
    let scratch = Scratch::new();
    let ran = short(&scratch, &["--no-image", "--csv"]);
    let lines: Vec<&str> = ran.ok().lines().collect();
    assert!(lines[0].starts_with("model,dtype,isa,threads,") && lines.len() == 7, "{ran:?}");
    assert!(lines.iter().all(|line| line.split(',').count() == 15), "{ran:?}");
    let ran = short(&scratch, &["--no-image", "--md"]);
    assert!(ran.ok().contains("\n| ttft_ms | ms | "), "{ran:?}");
}

#[test]
fn an_earlier_measurement_is_compared_with() {
    let scratch = Scratch::new();
    let before = short(&scratch, &["--no-image", "--json"]);
    scratch.write("before.json", before.ok().as_bytes());
    let ran = short(&scratch, &["--no-image", "--compare", "before.json"]);
    assert!(ran.ok().contains("against before.json\n") && ran.stdout.contains(" times as fast\n"), "{ran:?}");
    assert!(!ran.stdout.contains("not the same"), "{ran:?}");
    let ran = short(&scratch, &["--no-image", "--compare", "before.json", "--prompt-tokens", "30", "--json"]);
    ran.ok();
    let comparison = &ran.objects()[0]["comparison"];
    assert_eq!(comparison["differences"], serde_json::json!(["prompt_tokens was 20 and is 30"]));
    assert!(comparison["figures"][0]["times_as_fast"].as_f64() > Some(0.0), "{ran:?}");
    scratch.write("other.json", b"{}");
    for (file, reason) in [("other.json", "is not what `ocelli bench --json` prints"), ("gone.json", "gone.json: ")] {
        let ran = short(&scratch, &["--compare", file]);
        assert_eq!(ran.code, 1);
        assert!(ran.stderr.contains(file) && ran.stderr.contains(reason), "{ran:?}");
    }
}

#[test]
fn the_machine_alone() {
    let ran = Scratch::new().run(["bench", "--machine", "--json", "--threads", "2"]);
    ran.ok();
    let machine = &ran.objects()[0];
    assert_eq!(machine["threads"], 2);
    for field in ["f32_flops", "read_bytes_per_second"] {
        assert!(machine[field].as_f64() > Some(1e6), "{field} in {ran:?}");
    }
}

#[test]
fn shares_of_the_machine() {
    let ran = short(&Scratch::new(), &["--model", "demo", "--machine", "--no-image"]);
    for part in ["f32 peak", "% of the multiply-add peak)", "% of the read bandwidth)"] {
        assert!(ran.ok().contains(part), "{part} in {ran:?}");
    }
}

#[test]
fn text_models_have_no_picture() {
    let scratch = Scratch::new();
    scratch.copy_fixture("qwen2");
    let ran = short(&scratch, &["--model", "qwen2", "--json"]);
    ran.ok();
    assert_eq!(ran.objects()[0]["prompt_tokens"], 20);
    assert!(ran.objects()[0]["image_size"].is_null());
    let ran = short(&scratch, &["--model", "qwen2", "--image-size", "64"]);
    assert_eq!(ran.code, 3);
    assert!(ran.stderr.starts_with("error: qwen2 models do not take pictures\n"), "{ran:?}");
}

#[test]
fn what_cannot_be_measured() {
    let scratch = Scratch::new();
    let cases: [(&[&str], i32, &str); 9] = [
        (&["--random-weights", "gpt-5"], 2, "smolvlm-256m"),
        (&["--random-weights", "smolvlm-256m", "--model", "demo"], 2, "cannot be used with"),
        (&["--random-weights", "llama-3.2-3b", "--memory-limit", "1MB"], 4, "the random weights of llama-3.2-3b need"),
        (&["--image-size", "0x5"], 2, "expected a size such as 640x480 or 512"),
        (&["--image-size", "64", "--no-image"], 2, "cannot be used with"),
        (&["--json", "--csv"], 2, "cannot be used with"),
        (&["--machine", "--compare", "x.json"], 2, "--compare needs a model"),
        (&["--model", "org/unknown"], 3, "org/unknown"),
        (&["--prompt-tokens", "1000000"], 3, "the prompt takes"),
    ];
    for (flags, code, reason) in cases {
        let ran = scratch.run(["bench"].iter().chain(flags));
        assert_eq!(ran.code, code, "{flags:?} {ran:?}");
        assert!(ran.stderr.contains(reason), "{flags:?} {ran:?}");
    }
}
