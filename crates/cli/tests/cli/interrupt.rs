//! Ctrl-C.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use crate::support::{Scratch, picture};

fn press_ctrl_c(child: &Child) {
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
}

#[test]
fn a_batch_keeps_what_is_finished_and_can_be_resumed() {
    let scratch = Scratch::new();
    for idx in 0..40 {
        scratch.write(&format!("many/{idx:02}.png"), &picture());
    }
    let arguments = ["describe", "many", "--min-tokens", "600", "--max-tokens", "600", "--out", "out.jsonl"];
    let mut child = scratch.command(arguments).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // The third is under way.
    for _ in 0..2 {
        lines.next().unwrap().unwrap();
    }
    press_ctrl_c(&child);
    let printed = 2 + lines.count();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    let expected = format!("{printed} succeeded, 0 failed, {} not done (interrupted) in ", 40 - printed);
    assert!(stderr.starts_with(&expected), "{stderr}");
    assert_eq!(scratch.read("out.jsonl").lines().count(), printed);

    let ran = scratch.run(["describe", "many", "--max-tokens", "1", "--out", "out.jsonl", "--resume"]);
    assert_eq!(ran.ok().lines().count(), 40 - printed);
    assert_eq!(scratch.read("out.jsonl").lines().count(), 40);
}

#[test]
fn one_answer_is_stopped() {
    let scratch = Scratch::with_pictures();
    let arguments = ["describe", "pics/a.png", "--min-tokens", "1900", "--max-tokens", "1900"];
    let mut child = scratch.command(arguments).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    std::io::Read::read_exact(&mut stdout, &mut [0; 4]).unwrap();
    press_ctrl_c(&child);
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut stdout, &mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(rest.ends_with('\n'));
}

#[test]
fn a_chat_outlives_the_answer() {
    let scratch = Scratch::with_pictures();
    let arguments = ["chat", "pics/a.png", "--min-tokens", "900", "--max-tokens", "900"];
    let mut child = scratch.command(arguments).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"Describe the image.\n").unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    std::io::Read::read_exact(&mut stdout, &mut [0; 4]).unwrap();
    press_ctrl_c(&child);
    stdin.write_all(b"/stats\n/quit\n").unwrap();
    std::io::Read::read_to_end(&mut stdout, &mut Vec::new()).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(stderr.contains("ended by cancelled") && stderr.contains("1 message(s)"), "{stderr}");
}

#[test]
fn a_pipeline_keeps_what_is_finished_and_can_be_resumed() {
    let scratch = Scratch::new();
    for idx in 0..20 {
        scratch.write(&format!("many/{idx:02}.png"), &picture());
    }
    let step = |name: &str, more: &str| {
        format!(
            "[[step]]\nname = \"{name}\"\nmodel = \"demo\"\nimage = \"{{{{ file }}}}\"\nprompt = \"Describe the image.\"\n{more}\n"
        )
    };
    let spec = step("first", "max_tokens = 2") + &step("second", "min_tokens = 300\nmax_tokens = 300");
    scratch.write("two.toml", spec.as_bytes());
    let arguments = ["pipe", "two.toml", "many", "--json", "--out", "out.jsonl"];
    let mut child = scratch.command(arguments).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.next().unwrap().unwrap();
    press_ctrl_c(&child);
    let printed = 1 + lines.count();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    let expected = format!("{printed} succeeded, 0 failed, {} not done (interrupted) in ", 20 - printed);
    assert!(stderr.starts_with(&expected), "{stderr}");
    assert_eq!(scratch.read("out.jsonl").lines().count(), printed);

    let ran = scratch.run(arguments.into_iter().chain(["--resume"]));
    assert_eq!(ran.ok().lines().count(), 20 - printed);
    assert_eq!(scratch.read("out.jsonl").lines().count(), 20);
    assert!(!scratch.path().join("out.jsonl.unfinished").exists());
}
