//! `ocelli describe`: one picture, many pictures, and pictures that fail.

use std::io::Read;
use std::path::{Path, PathBuf};

use crate::support::{Ran, Scratch, picture, repository};

#[test]
fn the_models_template_can_be_told_more() {
    let scratch = Scratch::with_pictures();
    let model = repository("fixtures/moondream2").to_string_lossy().into_owned();
    let ask = |more: &[&str]| {
        let arguments = ["describe", "pics/a.png", "--model", &model, "--max-tokens", "4", "--json"];
        let ran = scratch.run(arguments.iter().chain(more));
        ran.ok();
        ran.objects()[0].clone()
    };
    let [normal, short] = [ask(&[]), ask(&["--template", "caption=short"])];
    // Moondream's published prompts: "Caption:" and "Short caption:".
    assert_eq!(ask(&["--template", "caption=normal"])["token_ids"], normal["token_ids"]);
    assert_ne!([&short["prompt_tokens"], &short["token_ids"]], [&normal["prompt_tokens"], &normal["token_ids"]]);
    let ran = scratch.run(["describe", "pics/a.png", "--template", "short"]);
    assert!(ran.code == 2 && ran.stderr.contains("expected NAME=VALUE"), "{ran:?}");
}

#[test]
fn a_picture_may_be_shown_in_fewer_tokens() {
    let scratch = Scratch::with_pictures();
    let ask = |command: &[&str], more: &[&str]| {
        scratch.run(command.iter().chain(&["--json", "--max-tokens", "4"]).chain(more))
    };
    let describe = ["describe", "pics/a.png"];
    let run = ["run", "Describe the image.", "--image", "pics/a.png"];
    let all = ask(&describe, &[]).objects()[0]["vision_tokens"].as_u64().unwrap();
    for command in [&describe[..], &run] {
        for (most, expected) in [("16", 16), ("15", 9), ("100000", all)] {
            let ran = ask(command, &["--image-tokens", most]);
            ran.ok();
            assert_eq!(ran.objects()[0]["vision_tokens"], expected, "{most}: {ran:?}");
        }
    }
    let ran = ask(&describe, &["--image-tokens", "4", "--detail", "low"]);
    assert!(ran.code == 2 && ran.stderr.contains("cannot be used with"), "{ran:?}");
    // A model whose pictures all take the same number says so once, before it looks at any.
    let model = repository("fixtures/llava").to_string_lossy().into_owned();
    let ran = scratch.run(["describe", "pics", "--model", &model, "--image-tokens", "8"]);
    assert_eq!((ran.code, ran.stderr.matches("takes at least 9 token(s) for a picture").count()), (3, 1), "{ran:?}");
    assert!(ran.stderr.contains("--image-tokens 9 or more"), "{ran:?}");
}

#[test]
fn one_picture_is_one_answer() {
    let scratch = Scratch::with_pictures();
    let ran = scratch.run(["describe", "pics/a.png"]);
    let text = ran.ok();
    assert!(text.ends_with('\n') && text.trim().len() > 3 && !text.starts_with(' '), "{ran:?}");
    assert_eq!(ran.stderr, "");
    // The same picture from standard input is the same picture.
    assert_eq!(scratch.run_with_input(["describe", "-"], &picture()).ok(), text);
    // The default is greedy, so it is the same every time, with any number of threads.
    assert_eq!(scratch.run(["describe", "pics/a.png", "--threads", "1"]).ok(), text);
}

#[test]
fn a_picture_over_the_limit_is_refused_with_numbers() {
    let scratch = Scratch::with_pictures();
    let ran = scratch.run(["describe", "pics/a.png", "--max-pixels", "99"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("more than the limit of 99 per side and 99 in all"), "{ran:?}");
    assert!(ran.stderr.contains("--max-pixels"), "{ran:?}");
    scratch.run(["describe", "pics/a.png", "--max-pixels", "1000000", "--max-tokens", "1"]).ok();
}

#[test]
fn the_json_object_has_exactly_the_promised_fields() {
    let scratch = Scratch::with_pictures();
    let ran = scratch.run(["describe", "pics/a.png", "--json", "--max-tokens", "4"]);
    ran.ok();
    let keys: Vec<&str> = ran.stdout.match_indices("\":").map(|(end, _)| before(&ran.stdout, end)).collect();
    let expected = [
        "image",
        "kind",
        "model",
        "prompt",
        "text",
        "token_ids",
        "finish_reason",
        "image_size",
        "resized_to",
        "vision_tokens",
        "prompt_tokens",
        "completion_tokens",
        "timings",
        "load_ms",
        "preprocess_ms",
        "vision_ms",
        "prefill_ms",
        "decode_ms",
        "ttft_ms",
        "tokens_per_second",
        "error",
    ];
    assert_eq!(keys, expected);
    let object = &ran.objects()[0];
    assert_eq!(object["image"], "pics/a.png");
    assert_eq!((&object["kind"], &object["model"]), (&"image".into(), &"demo".into()));
    assert_eq!(object["finish_reason"], "length");
    assert_eq!(object["image_size"], serde_json::json!([384, 384]));
    assert_eq!(object["completion_tokens"], 4);
    assert_eq!(object["token_ids"].as_array().unwrap().len(), 4);
    assert!(object["vision_tokens"].as_u64() < object["prompt_tokens"].as_u64());
    assert!(object["timings"]["ttft_ms"].as_f64() > Some(0.0));
    assert!(object["error"].is_null());
}

/// The name in front of its closing quote.
fn before(text: &str, end: usize) -> &str {
    &text[text[..end].rfind('"').unwrap() + 1..end]
}

#[test]
fn a_bad_file_does_not_stop_the_others() {
    let scratch = Scratch::with_pictures();
    let ran = scratch.run(["describe", "pics", "gone.png"]);
    assert_eq!(ran.code, 1);
    let images: Vec<&str> = ran.stdout.lines().map(|line| line.split(": ").next().unwrap()).collect();
    assert_eq!(images, ["pics/a.png", "pics/c.png"]);
    assert!(ran.stderr.starts_with("2 succeeded, 2 failed in "), "{ran:?}");
    for part in ["latency per image: mean ", ", median ", ", p95 ", ", min ", ", max ", " tokens/s"] {
        assert!(ran.stderr.contains(part), "{part} in {ran:?}");
    }
    let failures = ran.stderr.split("failed:\n").nth(1).unwrap();
    assert!(failures.starts_with("  pics/b.png: "), "{ran:?}");
    assert!(failures.ends_with("  gone.png: no such file\n"), "{ran:?}");
}

#[test]
fn a_batch_in_json_has_an_object_for_every_picture() {
    let scratch = Scratch::with_pictures();
    let ran = scratch.run(["describe", "pics", "--json"]);
    assert_eq!(ran.code, 1);
    let objects = ran.objects();
    assert_eq!(objects.len(), 3);
    assert!(objects[1]["error"].is_string() && objects[1]["text"].is_null());
    assert_eq!(objects[1].as_object().unwrap().len(), 14);
    let alone = scratch.run(["describe", "pics/c.png", "--json"]);
    assert_eq!(objects[2]["token_ids"], alone.objects()[0]["token_ids"], "other pictures change nothing");
}

#[test]
fn folders_patterns_and_sorting() {
    let scratch = Scratch::with_pictures();
    scratch.write("pics/inner/d.png", &picture());
    let images = |arguments: &[&str]| -> Vec<String> {
        let ran = scratch.run(["describe", "--max-tokens", "1", "--json"].iter().chain(arguments));
        ran.objects().iter().map(|object| object["image"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(images(&["pics"]), ["pics/a.png", "pics/b.png", "pics/c.png"]);
    assert_eq!(images(&["pics", "--recursive"]), ["pics/a.png", "pics/b.png", "pics/c.png", "pics/inner/d.png"]);
    assert_eq!(images(&["pics/[ac].png"]), ["pics/a.png", "pics/c.png"]);
    assert_eq!(images(&["pics/c.png", "pics/*.png"]), ["pics/c.png", "pics/a.png", "pics/b.png"]);
}

#[test]
fn sampling_is_repeatable_and_beams_work() {
    let scratch = Scratch::with_pictures();
    let sampled = |seed| {
        let arguments = ["describe", "pics/a.png", "--temperature", "2", "--top-k", "50", "--seed", seed];
        scratch.run(arguments).ok().to_owned()
    };
    assert_eq!(sampled("1"), sampled("1"));
    assert_ne!(sampled("1"), sampled("2"));
    scratch.run(["describe", "pics/a.png", "--num-beams", "3", "--max-tokens", "8"]).ok();
}

#[test]
fn verbose_tells_sizes_and_times_on_standard_error() {
    let scratch = Scratch::with_pictures();
    let ran = scratch.run(["describe", "pics/a.png", "-v", "--temperature", "1", "--seed", "3"]);
    ran.ok();
    for part in ["image 384x384, seen as 128x128 (reduced): 64 vision tokens", "seed 3", "prefill", "tokens/s"] {
        assert!(ran.stderr.contains(part), "{part} in {ran:?}");
    }
}

#[test]
fn an_empty_answer_is_told() {
    let scratch = Scratch::with_pictures();
    let whole = scratch.run(["describe", "pics/a.png"]);
    let ran = scratch.run(["describe", "pics/a.png", "--stop", &whole.ok()[..1]]);
    assert_eq!(ran.ok(), "\n");
    assert_eq!(ran.stderr, "notice: the answer began with a stop string\n");
}

#[test]
fn a_raw_prompt_needs_no_chat_template() {
    let scratch = Scratch::with_pictures();
    let model = scratch.copy_fixture("smolvlm");
    let arguments = ["describe", "pics/a.png", "--raw", "--max-tokens", "3", "--json", "--model"];
    let prompt = ["--prompt", "User:<image>what is it?<end_of_utterance>\nAssistant:"];
    let ran = scratch
        .run(arguments.map(Into::into).into_iter().chain([model.into_os_string()]).chain(prompt.map(Into::into)));
    ran.ok();
    assert_eq!(ran.objects()[0]["completion_tokens"], 3);
    let ran = scratch.run(["describe", "pics/a.png", "--raw", "--prompt", "no place for a picture"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("the prompt has places for 0 image(s), but 1 were given"), "{ran:?}");
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let scratch = Scratch::with_pictures();
    for idx in 0..20 {
        scratch.write(&format!("many/{idx:02}.png"), &picture());
    }
    let mut child = scratch.command(["describe", "many", "--max-tokens", "2"]).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 4]).unwrap();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

#[test]
fn there_are_no_colours_in_a_pipe() {
    let scratch = Scratch::with_pictures();
    for variables in [&[][..], &[("NO_COLOR", "1")], &[("TERM", "xterm-256color")]] {
        let output =
            scratch.command(["describe", "pics", "gone.png"]).envs(variables.iter().copied()).output().unwrap();
        assert!(!output.stderr.contains(&0x1b) && !output.stdout.contains(&0x1b), "{variables:?} {output:?}");
    }
}

#[test]
fn what_moves_is_a_video_where_the_model_takes_videos() {
    let scratch = Scratch::new();
    let clip = repository("fixtures/qwen2_5_vl_video/video0.gif");
    let describe = |model: &Path, prompt: &str| {
        let arguments =
            ["describe", "--raw", "--json", "--verbose", "--max-tokens", "2", "--prompt", prompt, "--model"];
        scratch.run(arguments.map(PathBuf::from).iter().chain([&model.to_path_buf(), &clip]))
    };
    let watched = describe(&repository("fixtures/qwen2_5_vl"), "<|vision_start|><|video_pad|><|vision_end|>what?");
    watched.ok();
    assert!(watched.stderr.contains("video 100x60, 4 frames seen as 112x56: 16 vision tokens"), "{watched:?}");
    assert_eq!(watched.objects()[0]["kind"], "video");
    let first = describe(&repository("fixtures/idefics3"), "<image>what?");
    first.ok();
    assert!(first.stderr.contains("image 100x60, seen as "), "{first:?}");
    assert!(first.stderr.contains("video0.gif: this model takes no videos: "), "{first:?}");
    assert_eq!(first.objects()[0]["kind"], "image");
    // The built-in model was shown scenes, never videos.
    let demo = scratch.run(["describe".as_ref(), clip.as_os_str(), "--verbose".as_ref()]);
    demo.ok();
    assert!(demo.stderr.contains("first frame only") && demo.stderr.contains("image 100x60"), "{demo:?}");
    scratch.write("clip.mp4", b"no video");
    let ran = scratch.run(["describe", "clip.mp4"]);
    assert_eq!(ran.code, 1, "{ran:?}");
}

#[test]
fn a_folder_gives_its_videos_to_a_model_that_takes_them() {
    let scratch = Scratch::new();
    scratch.write("mixed/a.png", &picture());
    scratch.write("mixed/b.gif", &std::fs::read(repository("fixtures/smolvlm_video/video0.gif")).unwrap());
    scratch.write("mixed/c.mp4", b"no video");
    scratch.write("mixed/d.MOV", b"no video");
    let model = scratch.copy_fixture("smolvlm");
    let template = "{% for message in messages %}{% for part in message.content %}\
        {% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}";
    std::fs::write(model.join("chat_template.jinja"), template).unwrap();
    let describe = |model: &str, folder: &str, path: &Path| {
        let arguments = ["describe", folder, "--json", "--max-tokens", "1", "--model", model];
        let output = scratch.command(arguments).env("PATH", path).output().unwrap();
        Ran::from(output)
    };
    let kinds = |ran: &Ran| {
        let row = |row: serde_json::Value| format!("{} {}", row["image"].as_str().unwrap(), row["kind"]);
        ran.objects().into_iter().map(row).collect::<Vec<_>>()
    };
    let watches = model.to_str().unwrap();
    // Programs that are there and say nothing: each video is tried, and fails alone.
    let programs = scratch.write("programs/ffmpeg", b"").parent().unwrap().to_path_buf();
    scratch.write("programs/ffprobe", b"");
    let all = describe(watches, "mixed", &programs);
    let pictures = ["mixed/a.png \"image\"", "mixed/b.gif \"video\""];
    assert_eq!(kinds(&all), [&pictures[..], &["mixed/c.mp4 null", "mixed/d.MOV null"]].concat(), "{all:?}");
    assert!(all.code == 1 && !all.stderr.contains("left out"), "{all:?}");

    let without = describe(watches, "mixed", scratch.path());
    assert_eq!((kinds(&without), without.code), (pictures.map(str::to_owned).to_vec(), 0), "{without:?}");
    let notice = "notice: left out mixed/c.mp4 and 1 more: ";
    assert!(without.stderr.contains(&format!("{notice}ffmpeg, which reads them, is not on the PATH")), "{without:?}");
    let still = describe("demo", "mixed", &programs);
    assert_eq!(kinds(&still), ["mixed/a.png \"image\"", "mixed/b.gif \"image\""], "{still:?}");
    assert!(still.stderr.contains(&format!("{notice}the model takes no videos")), "{still:?}");
    scratch.write("clips/c.mp4", b"no video");
    let none = describe("demo", "clips", &programs);
    assert!(none.code == 1 && none.stderr.contains("only with a model that takes them"), "{none:?}");
}
