//! `ocelli describe --out`: three formats, resumed.

use crate::support::{Scratch, picture};

const FILES: [&str; 3] = ["out.jsonl", "out.csv", "out.md"];

fn describe(scratch: &Scratch, file: &str, more: &[&str]) -> crate::support::Ran {
    let arguments = ["describe", "pics", "--max-tokens", "3", "--out", file];
    scratch.run(arguments.iter().chain(more))
}

#[test]
fn every_picture_has_a_row_in_every_format() {
    let scratch = Scratch::with_pictures();
    for file in FILES {
        let ran = describe(&scratch, file, &[]);
        assert_eq!(ran.code, 1, "one picture is broken: {ran:?}");
    }
    let jsonl = scratch.read("out.jsonl");
    let objects: Vec<serde_json::Value> = jsonl.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(objects.len(), 3);
    assert_eq!(objects[0]["image"], "pics/a.png");
    assert!(objects[1]["error"].is_string());

    let csv = scratch.read("out.csv");
    let lines: Vec<&str> = csv.lines().collect();
    assert!(lines[0].starts_with("image,model,prompt,kind,text,") && lines[0].ends_with(",error"));
    assert!(lines[1].starts_with("pics/a.png,demo,,image,"));
    assert!(lines.iter().all(|line| line.starts_with('i') || line.matches(',').count() >= 15), "{csv}");

    let markdown = scratch.read("out.md");
    assert!(markdown.starts_with("| picture | image | text | prompt | model | error |\n|---|"), "{markdown}");
    assert!(markdown.contains("| ![](pics/a.png) | pics/a.png | "), "{markdown}");
}

#[cfg(unix)]
#[test]
fn the_file_is_finished_when_the_reader_of_the_answers_has_gone() {
    use std::io::Read;
    use std::process::Stdio;

    let scratch = Scratch::with_pictures();
    scratch.write("pics/b.png", &picture());
    let arguments = ["describe", "pics", "--max-tokens", "3", "--json", "--out", "out.jsonl"];
    let mut child = scratch.command(arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(scratch.read("out.jsonl").lines().count(), 3);
}

#[test]
fn rows_are_resumed_also_after_a_cut() {
    for file in FILES {
        let scratch = Scratch::with_pictures();
        scratch.write("pics/b.png", &picture());
        describe(&scratch, file, &[]).ok();
        let whole = scratch.read(file);

        let ran = describe(&scratch, file, &["--resume"]);
        assert_eq!(ran.ok(), "", "nothing is left to do");
        assert_eq!(ran.stderr, "0 succeeded, 0 failed, 3 skipped (already done)\n");
        assert_eq!(scratch.read(file), whole);

        // Answers to two questions do not mix.
        let ran = describe(&scratch, file, &["--resume", "--prompt", "Read the text."]);
        assert_eq!(ran.code, 1, "{ran:?}");
        assert!(
            ran.stderr.contains("holds answers to the default question, this run asks `Read the text.`"),
            "{ran:?}"
        );
        assert_eq!(scratch.read(file), whole);

        // As a machine leaves it that lost its power.
        scratch.write(file, &whole.as_bytes()[..whole.len() - 7]);
        let ran = describe(&scratch, file, &["--resume"]);
        assert!(ran.ok().starts_with("pics/c.png: "), "{ran:?}");
        assert!(ran.stderr.starts_with("1 succeeded, 0 failed, 2 skipped (already done) in "), "{ran:?}");
        assert_eq!(rows(&scratch.read(file)), rows(&whole), "{file}");
    }
}

/// The beginnings of the rows, without the times that differ from run to run.
fn rows(text: &str) -> Vec<String> {
    text.lines().map(|line| line.split(',').take(6).collect::<Vec<_>>().join(",")).collect()
}

#[test]
fn what_failed_is_tried_again() {
    let scratch = Scratch::with_pictures();
    for file in FILES {
        assert_eq!(describe(&scratch, file, &[]).code, 1);
        scratch.write("pics/b.png", &picture());
        let ran = describe(&scratch, file, &["--resume"]);
        assert!(ran.ok().starts_with("pics/b.png: "), "{ran:?}");
        let expected = if file == "out.md" { 2 } else { 1 };
        assert_eq!(scratch.read(file).matches("pics/b.png").count(), expected, "one row for each picture in {file}");
        let whole = picture();
        scratch.write("pics/b.png", &whole[..whole.len() / 2]);
    }
}

#[test]
fn a_file_with_content_is_safe_without_resume() {
    let scratch = Scratch::with_pictures();
    scratch.write("out.csv", b"my precious notes\n");
    let ran = describe(&scratch, "out.csv", &[]);
    assert_eq!(ran.code, 1);
    assert_eq!(
        ran.stderr,
        "error: out.csv exists and is not empty\nhint: add --resume to continue it, or choose another file\n"
    );
    let ran = describe(&scratch, "out.csv", &["--resume"]);
    assert!(ran.stderr.starts_with("error: out.csv cannot be resumed: "), "{ran:?}");
    assert_eq!(scratch.read("out.csv"), "my precious notes\n");
}

#[test]
fn a_file_that_cannot_be_written_is_told_before_any_work() {
    let scratch = Scratch::with_pictures();
    let ran = describe(&scratch, "no-such-folder/out.csv", &[]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
    assert!(ran.stderr.starts_with("error: no-such-folder/out.csv: "), "{ran:?}");
}

#[test]
fn one_picture_is_also_kept() {
    let scratch = Scratch::with_pictures();
    let ran = scratch.run(["describe", "pics/a.png", "--out", "one.jsonl"]);
    let object: serde_json::Value = serde_json::from_str(&scratch.read("one.jsonl")).unwrap();
    assert_eq!(object["text"], ran.ok().trim_end());
}
