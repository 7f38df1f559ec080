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
    for part in
        ["demo (", "2 threads", "vision tokens", "run 1 ", "run 2 ", "median ", "variation ", "peak memory", "limits"]
    {
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
    assert_eq!((&object["quant"], &object["beams"], &object["batch"]), (&"none".into(), &1.into(), &1.into()));
    for field in ["load_ms", "warm_load_ms", "warm_ready_ms", "parameters", "threads"] {
        assert!(object[field].as_f64() > Some(0.0), "{field} in {ran:?}");
    }
    for field in ["weight_bytes", "kv_bytes", "activation_bytes", "picture_bytes"] {
        assert!(object["memory"][field].as_f64() > Some(0.0), "{field} in {ran:?}");
    }
    for (stage, limit) in [("vision", None), ("prefill", None), ("decode", Some("read"))] {
        let work = &object["utilisation"][stage];
        assert!(work["per_second"].as_f64() > Some(0.0) && work["share"].as_f64() > Some(0.0), "{stage} in {ran:?}");
        assert!(limit.is_none_or(|limit| work["of"] == limit), "{stage} in {ran:?}");
    }
    assert!(object["load"]["was_busy"].is_boolean() && object["load"]["was_throttled"].is_boolean(), "{ran:?}");
    assert!(object["machine"]["operations_per_second"]["f32"].as_f64() > Some(1e6), "{ran:?}");
    assert_eq!(object["machine"]["products"], serde_json::json!([]));
}

#[test]
fn rows_to_paste() {
    let scratch = Scratch::new();
    let ran = short(&scratch, &["--no-image", "--csv"]);
    let lines: Vec<&str> = ran.ok().lines().collect();
    assert!(lines[0].starts_with("model,dtype,quant,quant_vision,kv_cache,isa,threads,"), "{ran:?}");
    assert!(lines.iter().all(|line| line.split(',').count() == 18), "{ran:?}");
    for figure in ["prefill_ms", "ttft_ms", "tokens_per_second", "load_ms", "warm_ready_ms", "decode_share"] {
        assert_eq!(lines.iter().filter(|line| line.contains(&format!(",{figure},"))).count(), 1, "{figure} in {ran:?}");
    }
    assert!(!ran.stdout.contains("vision_ms"), "{ran:?}");
    let ran = short(&scratch, &["--no-image", "--md"]);
    assert!(ran.ok().contains("\n| ttft_ms | ms | ") && ran.stdout.contains("\n| weights | MiB | "), "{ran:?}");
}

#[test]
fn an_earlier_measurement_is_compared_with() {
    let scratch = Scratch::new();
    let before = short(&scratch, &["--no-image", "--json"]);
    scratch.write("before.json", before.ok().as_bytes());
    let ran = short(&scratch, &["--no-image", "--compare", "before.json"]);
    assert!(ran.ok().contains("against before.json\n") && ran.stdout.contains(" times as good\n"), "{ran:?}");
    assert!(!ran.stdout.contains("not the same"), "{ran:?}");
    let flags = ["bench", "--no-image", "--max-tokens", "4", "--threads", "1", "--compare", "before.json", "--json"];
    let ran = scratch.run(flags);
    ran.ok();
    let comparison = &ran.objects()[0]["comparison"];
    assert_eq!(comparison["differences"], serde_json::json!(["threads was 2 and is 1"]));
    assert!(comparison["figures"][0]["times_as_good"].as_f64() > Some(0.0), "{ran:?}");
    let ran = short(&scratch, &["--no-image", "--compare", "before.json", "--prompt-tokens", "30"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stdout.contains("run 2 ") && !ran.stdout.contains("against"), "{ran:?}");
    assert!(ran.stderr.contains("before.json measured other work: prompt_tokens was 20 and is 30\n"), "{ran:?}");
    scratch.write("other.json", b"{}");
    for (file, reason) in
        [("other.json", "is not what this version's `ocelli bench --json` prints"), ("gone.json", "gone.json: ")]
    {
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
    assert!(machine["operations_per_second"]["f32"].as_f64() > Some(1e6), "{ran:?}");
    assert!(machine["read_bytes_per_second"].as_f64() > Some(1e6), "{ran:?}");
    let products = machine["products"].as_array().unwrap();
    assert_eq!(products.len(), 8, "{ran:?}");
    for product in products {
        assert!(product["operations_per_second"].as_f64() > Some(1e6), "{ran:?}");
        assert_eq!(product["rows"] == 1, product["share"]["of"] == "read", "{ran:?}");
    }
}

#[test]
fn beams_and_batches_have_columns() {
    let ran = short(&Scratch::new(), &["--model", "demo", "--no-image", "--beams", "2", "--batch", "2"]);
    for part in ["beams t/s", "batch t/s", "TOPS (", "% of what can be read)"] {
        assert!(ran.ok().contains(part), "{part} in {ran:?}");
    }
}

#[test]
fn a_narration_is_twenty_tokens() {
    let scratch = Scratch::new();
    let with = |tokens| scratch.run(["bench", "--runs", "1", "--image-size", "224", "--json", "--max-tokens", tokens]);
    let ran = with("20");
    ran.ok();
    let run = &ran.objects()[0]["runs"][0];
    assert!(run["narration_ms"].as_f64() > run["ttft_ms"].as_f64(), "{ran:?}");
    let ran = with("19");
    ran.ok();
    assert!(ran.objects()[0]["runs"][0]["narration_ms"].is_null(), "{ran:?}");
}

#[test]
fn stages_are_drawn() {
    let scratch = Scratch::new();
    let before = short(&scratch, &["--json", "--plot", "runs.svg"]);
    scratch.write("before.json", before.ok().as_bytes());
    let picture = scratch.read("runs.svg");
    assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n"), "{picture}");
    assert!(picture.contains(">run 1<") && picture.contains(">run 2<") && picture.contains(">vision<"), "{picture}");
    short(&scratch, &["--compare", "before.json", "--plot", "two.svg"]).ok();
    let picture = scratch.read("two.svg");
    assert!(picture.contains(">before<") && picture.contains(">now<") && !picture.contains(">run 1<"), "{picture}");
    let ran = short(&scratch, &["--plot", "no/such/folder.svg"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("folder.svg"), "{ran:?}");
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
    let cases: [(&[&str], i32, &str); 11] = [
        (&["--random-weights", "gpt-5"], 2, "smolvlm-256m"),
        (&["--random-weights", "smolvlm-256m", "--model", "demo"], 2, "cannot be used with"),
        (&["--random-weights", "llama-3.2-3b", "--memory-limit", "1MB"], 4, "the random weights of llama-3.2-3b need"),
        (&["--image-size", "0x5"], 2, "expected a size such as 640x480 or 512"),
        (&["--image-size", "64", "--no-image"], 2, "cannot be used with"),
        (&["--json", "--csv"], 2, "cannot be used with"),
        (&["--machine", "--compare", "x.json"], 2, "--compare needs a model"),
        (&["--machine", "--plot", "x.svg"], 2, "--plot needs a model"),
        (&["--beams", "0"], 2, "--beams"),
        (&["--model", "org/unknown"], 3, "org/unknown"),
        (&["--prompt-tokens", "1000000"], 3, "the prompt takes"),
    ];
    for (flags, code, reason) in cases {
        let ran = scratch.run(["bench"].iter().chain(flags));
        assert_eq!(ran.code, code, "{flags:?} {ran:?}");
        assert!(ran.stderr.contains(reason), "{flags:?} {ran:?}");
    }
}
