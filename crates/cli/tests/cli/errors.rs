//! Messages, hints and exit codes.

use insta::assert_snapshot;

use crate::support::{Scratch, picture, repository};

/// Runs the command line and shows how it ended, without the scratch folder's name.
fn ended(scratch: &Scratch, line: &str) -> String {
    let ran = scratch.run(line.split(' '));
    let canonical = scratch.path().canonicalize().unwrap();
    let text = ran.stderr.replace(canonical.to_str().unwrap(), "[folder]");
    let text = text.replace(scratch.path().to_str().unwrap(), "[folder]");
    format!("$ ocelli {line}\n{}{text}exit code {}\n", ran.stdout, ran.code)
}

#[test]
fn bad_usage() {
    let scratch = Scratch::with_pictures();
    let lines = [
        "describe",
        "describe pics/a.png --temperature warm",
        "describe pics/a.png --top-p 1.5",
        "describe pics/a.png --num-beams 0",
        "describe pics/a.png --num-beams 3 --temperature 0.5",
        "describe pics/a.png --max-tokens 0",
        "describe pics/a.png --max-tokens 5 --min-tokens 6",
        "describe pics/a.png --presence-penalty 3",
        "describe pics/a.png --stop=",
        "describe pics/a.png --early-stopping maybe",
        "describe pics/a.png --threads none",
        "describe pics/a.png --memory-limit lots",
        "describe pics/a.png --out captions.txt",
        "describe pics/a.png --resume",
        "describe pics/x[.png",
        "descibe pics/a.png",
        "run --image - -",
        "bench --plot stages.png",
        "bench --compare before.json --csv",
    ];
    assert_snapshot!(lines.map(|line| ended(&scratch, line)).join("\n"));
}

#[test]
fn bad_pictures() {
    let scratch = Scratch::with_pictures();
    std::fs::create_dir(scratch.path().join("empty")).unwrap();
    scratch.write("outer/inner/a.png", &picture());
    scratch.write("notes.txt", b"not a picture");
    scratch.write("nothing.png", b"");
    let lines = [
        "describe pics/b.png",
        "describe gone.png",
        "describe notes.txt",
        "describe nothing.png",
        "describe empty",
        "describe outer",
        "describe nothing*.gif",
        "describe -",
        "run --image gone.png hello",
        "run --image pics hello",
        "chat gone.png",
    ];
    assert_snapshot!(lines.map(|line| ended(&scratch, line)).join("\n"));
}

#[test]
fn a_huge_picture_is_refused_before_it_is_decoded() {
    let scratch = Scratch::new();
    let mut png = picture();
    // Width and height in the header chunk; the checksum after it is no longer right, but comes too late.
    png[16..20].copy_from_slice(&40_000_u32.to_be_bytes());
    png[20..24].copy_from_slice(&40_000_u32.to_be_bytes());
    scratch.write("huge.png", &png);
    let ran = scratch.run(["describe", "huge.png"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.starts_with("error: huge.png: "), "{ran:?}");
}

#[test]
fn bad_models() {
    let scratch = Scratch::with_pictures();
    let folder = scratch.copy_fixture("qwen2");
    let config = scratch.read("qwen2/config.json").replace("\"qwen2\"", "\"mamba9\"");
    std::fs::rename(&folder, scratch.path().join("mamba9")).unwrap();
    scratch.write("mamba9/config.json", config.as_bytes());
    scratch.write("no-weights/config.json", scratch_config().as_bytes());
    scratch.write("gguf/model.gguf", b"GGUF");
    scratch.copy_fixture("smolvlm");
    scratch.copy_fixture("qwen2");
    scratch.copy_fixture("llama3");
    let weights = std::fs::read(scratch.path().join("llama3/model.safetensors")).unwrap();
    scratch.write("llama3/model.safetensors", &weights[..weights.len() / 2]);
    let lines = [
        "describe pics/a.png --model org/unknown",
        "describe pics/a.png --model nonsense//name",
        "describe pics/a.png --model pics",
        "describe pics/a.png --model mamba9",
        "describe pics/a.png --model no-weights",
        "describe pics/a.png --model gguf",
        "describe pics/a.png --model llama3",
        "describe pics/a.png --model qwen2",
        "describe pics/a.png --model smolvlm",
        "describe pics/a.png --memory-limit 1MB",
        "run hello --model qwen2",
        "run hello --model qwen2 --image pics/a.png --raw",
        "show org/unknown",
        "rm org/unknown",
        "pull org/unknown",
    ];
    assert_snapshot!(lines.map(|line| ended(&scratch, line)).join("\n"));
}

fn scratch_config() -> String {
    std::fs::read_to_string(repository("fixtures/qwen2/config.json")).unwrap()
}

#[cfg(unix)]
#[test]
fn names_that_are_not_unicode_are_no_problem() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    let scratch = Scratch::new();
    let name = OsStr::from_bytes(b"caf\xe9.png");
    std::fs::write(scratch.path().join(name), picture()).unwrap();
    let ran = scratch.run([OsStr::new("describe"), OsStr::new("--json"), name]);
    ran.ok();
    assert_eq!(ran.objects()[0]["image"], r"caf\xe9.png");
    let ran = scratch.run([OsStr::new("describe"), name, OsStr::new("--model"), name]);
    assert_eq!(ran.code, 3, "{ran:?}");
}
