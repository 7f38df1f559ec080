//! `ocelli pipe`: the demo model for what is said, tiny random ones for what is done with it.

use std::collections::HashMap;

use insta::assert_snapshot;
use serde_json::Value;

use crate::support::{Ran, Scratch, picture, repository};
use crate::transcribe::recording;

const TWO_STEPS: &str = r#"
[[step]]
name = "scene"
model = "demo"
image = "{{ file }}"

[[step]]
name = "letters"
model = "demo"
quant = "q8"
no_pack_cache = true
image = "{{ file }}"
prompt = "Read the text."
max_tokens = 3
"#;

fn pipe(scratch: &Scratch, arguments: &str) -> Ran {
    scratch.run(["pipe"].into_iter().chain(arguments.split_whitespace()))
}

/// The objects of a file of JSON lines, by their file.
fn rows(text: &str) -> HashMap<String, Value> {
    let rows = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    rows.map(|row| (row["file"].as_str().unwrap().to_owned(), row)).collect()
}

#[test]
fn a_question_that_uses_the_first_answer() {
    let examples = repository("examples");
    let mut command = Scratch::new().command(["pipe", "examples/pipes/demo.toml", "--json"]);
    let ran: Ran = command.current_dir(repository(".")).output().unwrap().into();
    ran.ok();
    let rows = rows(&ran.stdout);
    assert_eq!(rows.len(), 12);
    let answers = std::fs::read_to_string(examples.join("answers.jsonl")).unwrap();
    for answer in answers.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        if answer["question"] != "Describe the image." {
            continue;
        }
        let (scene, row) =
            (answer["answer"].as_str().unwrap(), &rows[&format!("examples/{}", answer["image"].as_str().unwrap())]);
        assert_eq!(row["scene"], scene);
        // What the description says of the shape that the second step asks about.
        let shape = ["circle", "square", "triangle", "star"].into_iter().find(|shape| scene.contains(shape)).unwrap();
        let words: Vec<&str> = scene.split([' ', ',']).collect();
        let numbers = ["A", "Two", "Three"];
        let counted = words.windows(3).filter(|words| words[2].trim_end_matches('s') == shape);
        let count: usize = counted.map(|words| if words[0].eq_ignore_ascii_case("two") { 2 } else { 1 }).sum();
        let expected = ["One", "Two", "Three"][count - 1];
        assert!(numbers.len() >= count);
        assert_eq!(row["count"], format!("{expected}."), "{scene}");
        // Only where the description speaks of a text.
        match scene.split('"').nth(1) {
            Some(letters) => assert_eq!(row["letters"], format!("{letters}.")),
            None => assert_eq!(row["letters"], Value::Null),
        }
        assert_eq!(row["steps"]["scene"]["model"], "demo");
        assert!(row["steps"]["count"]["completion_tokens"].as_u64().unwrap() > 0);
    }
}

#[test]
fn worked_examples_are_planned() {
    let scratch = Scratch::new();
    scratch.write("a.png", &picture());
    scratch.write("a.wav", &recording(1));
    let mut shown = String::new();
    for entry in std::fs::read_dir(repository("examples/pipes")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, scratch.path().join(path.file_name().unwrap())).unwrap();
    }
    for (spec, file) in [
        ("demo.toml", "a.png"),
        ("caption-translate.toml", "a.png"),
        ("transcribe-summarise.toml", "a.wav"),
        ("detect-crop-describe.toml", "a.png"),
    ] {
        let ran = pipe(&scratch, &format!("{spec} {file} --dry-run"));
        shown +=
            &format!("$ ocelli pipe {spec} {file} --dry-run\n{}{}exit code {}\n\n", ran.stdout, ran.stderr, ran.code);
    }
    let hub = scratch.path().join("hub");
    assert_snapshot!(shown.replace(hub.to_str().unwrap(), "[hub]"));
}

/// Every step of every worked example, with tiny models of the same families in place of those it names.
#[test]
fn worked_examples_run() {
    const CHAT: &str = "{% for m in messages %}{{ m.role }}: {% if m.content is string %}{{ m.content }}{% else %}\
        {% for part in m.content %}{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}{% endif %}\n\
        {% endfor %}assistant: ";

    let scratch = Scratch::new();
    scratch.write("a.png", &picture());
    scratch.write("a.wav", &recording(1));
    scratch.cache_model("openai/whisper-base", "crates/engine/tests/data/whisper_long");
    scratch.cache_model("vikhyatk/moondream2", "fixtures/moondream2");
    let seeing = scratch.cache_model("HuggingFaceTB/SmolVLM-500M-Instruct", "fixtures/smolvlm");
    let writing = scratch.cache_model("Qwen/Qwen2.5-1.5B-Instruct", "fixtures/qwen2");
    std::fs::write(seeing.join("chat_template.jinja"), CHAT).unwrap();
    std::fs::write(writing.join("chat_template.jinja"), CHAT).unwrap();
    // Tiny models say nothing briefly: what they say is a long prompt for the next one.
    let config = std::fs::read_to_string(writing.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["max_position_embeddings"] = 32_768.into();
    std::fs::write(writing.join("config.json"), config.to_string()).unwrap();

    let run = |name: &str, file: &str| -> Value {
        let spec = repository("examples/pipes").join(name);
        let ran = pipe(&scratch, &format!("{} {file} --json", spec.display()));
        assert_eq!(ran.code, 0, "{name}: {ran:?}");
        serde_json::from_str(&ran.stdout).unwrap()
    };
    let translated = run("caption-translate.toml", "a.png");
    assert!(translated["caption"].is_string() && translated["french"].is_string(), "{translated}");
    let summed_up = run("transcribe-summarise.toml", "a.wav");
    assert!(summed_up["talk"]["segments"].is_array(), "{summed_up}");
    assert!(summed_up["summary"].is_string() && summed_up["agreed"].is_string(), "{summed_up}");
    let seen = run("detect-crop-describe.toml", "a.png");
    let count = |step: &str| seen[step].as_array().map(Vec::len);
    assert!(count("boxes") > Some(0) && count("looks") == count("boxes"), "{seen}");
    assert!(seen["summary"].is_string(), "{seen}");
}

#[test]
fn mistakes_are_found_before_any_work() {
    let scratch = Scratch::new();
    scratch.write("a.png", &picture());
    let step =
        |lines: &str| format!("[[step]]\nname = \"scene\"\nmodel = \"demo\"\nimage = \"{{{{ file }}}}\"\n{lines}\n");
    let second = |lines: &str| format!("{}[[step]]\nname = \"second\"\nmodel = \"demo\"\n{lines}\n", step(""));
    let specs = [
        "files = [\"a.png\"]".to_owned(),
        "[input]\nfile = [\"a.png\"]".to_owned(),
        "# nothing".to_owned(),
        "[[step]]\nmodel = \"demo\"\nprompt = \"x\"".to_owned(),
        "[[step]]\nname = \"x\"\nprompt = \"x\"".to_owned(),
        "[[step]]\nname = \"x y\"\nmodel = \"demo\"\nprompt = \"x\"".to_owned(),
        "[[step]]\nname = \"file\"\nmodel = \"demo\"\nprompt = \"x\"".to_owned(),
        step("promt = \"x\""),
        step("task = \"describe\""),
        step("max_tokens = \"many\""),
        step("top_p = 7.0"),
        step("when = \"file ==\""),
        step("prompt = \"{{ file\""),
        step("prompt = \"{{ caption }}\""),
        step("each = \"boxes\""),
        format!("{}{}", step("prompt = \"{{ second }}\""), "[[step]]\nname = \"second\"\nmodel = \"demo\"\nprompt = \"x\""),
        second("prompt = \"x\"\nimage = \"gone.png\""),
        second("prompt = \"x\"\nimage = \"scene\""),
        second("prompt = \"x\"\neach = \"scene\""),
        format!("{}{}", step(""), step("")),
        "[[step]]\nname = \"x\"\ntask = \"transcribe\"\nmodel = \"demo\"\naudio = \"{{ file }}\"".to_owned(),
        "[[step]]\nname = \"x\"\ntask = \"detect\"\nmodel = \"demo\"\nimage = \"{{ file }}\"\nthing = \"x\"".to_owned(),
        "[[step]]\nname = \"talk\"\ntask = \"transcribe\"\nmodel = \"demo\"\naudio = \"{{ file }}\"\n\
         [[step]]\nname = \"x\"\nmodel = \"demo\"\nprompt = \"{{ talk.words }}\""
            .to_owned(),
        "[[step]]\nname = \"x\"\nmodel = \"org/a\"\nprompt = \"x\"\n[[step]]\nname = \"y\"\nmodel = \"org/b\"\nprompt = \"x\"".to_owned(),
    ];
    let mut shown = String::new();
    for spec in specs {
        scratch.write("x.toml", spec.as_bytes());
        let ran = pipe(&scratch, "x.toml a.png --out out.csv");
        assert_eq!(ran.stdout, "", "{ran:?}");
        assert!(!scratch.path().join("out.csv").exists());
        shown += &format!("{}\n\n{}exit code {}\n---\n", spec.trim_end(), ran.stderr, ran.code);
    }
    let hub = scratch.path().join("hub");
    assert_snapshot!(shown.replace(hub.to_str().unwrap(), "[hub]"));
    scratch.write("x.toml", step("").as_bytes());
    for (arguments, expected) in [
        ("gone.toml a.png", "error: gone.toml: no such file\n"),
        ("a.png a.png", "error: a.png: this is no TOML file\nhint: "),
        ("x.toml", "error: there are no files to work on\nhint: "),
        ("x.toml -", "error: steps cannot all read standard input\nhint: "),
        ("x.toml *.gif", "error: nothing matches *.gif\nhint: "),
    ] {
        let ran = pipe(&scratch, arguments);
        assert!(ran.code > 0 && ran.stderr.starts_with(expected), "{ran:?}");
    }
}

#[test]
fn a_file_that_fails_does_not_stop_the_others_and_is_tried_again() {
    let scratch = Scratch::with_pictures();
    scratch.write("two.toml", TWO_STEPS.as_bytes());
    for (out, per_file) in [("out.jsonl", 1), ("out.csv", 1), ("out.md", 2)] {
        let ran = pipe(&scratch, &format!("two.toml pics --out {out}"));
        assert_eq!(ran.code, 1, "{ran:?}");
        assert!(ran.stderr.starts_with("2 succeeded, 1 failed in "), "{ran:?}");
        assert!(ran.stderr.contains("\n  pics/b.png: step `scene`: "), "{ran:?}");
        assert!(ran.stdout.starts_with("pics/a.png\n  scene    Two yellow squares and a white square on "), "{ran:?}");
        assert!(!scratch.path().join(format!("{out}.unfinished")).exists(), "nothing is left to continue from");

        scratch.write("pics/b.png", &picture());
        let ran = pipe(&scratch, &format!("two.toml pics --out {out} --resume"));
        assert!(ran.ok().starts_with("pics/b.png\n"), "{ran:?}");
        assert!(ran.stderr.starts_with("1 succeeded, 0 failed, 2 skipped (already done) in "), "{ran:?}");
        assert_eq!(scratch.read(out).matches("pics/b.png").count(), per_file, "{out}");
        let ran = pipe(&scratch, &format!("two.toml pics --out {out} --resume"));
        assert_eq!(ran.ok(), "", "nothing is left to do");

        let changed = TWO_STEPS.replace("Read the text.", "How many stars are there?");
        scratch.write("two.toml", changed.as_bytes());
        let ran = pipe(&scratch, &format!("two.toml pics --out {out} --resume"));
        assert!(ran.code == 1 && ran.stderr.contains("holds answers of two.toml@"), "{ran:?}");
        scratch.write("two.toml", format!("# a comment\n{TWO_STEPS}").as_bytes());
        pipe(&scratch, &format!("two.toml pics --out {out} --resume")).ok();
        let whole = picture();
        scratch.write("pics/b.png", &whole[..whole.len() / 2]);
    }
    assert!(scratch.read("out.csv").starts_with("file,pipe,scene,letters,error\npics/a.png,two.toml@"));
    assert!(
        scratch
            .read("out.md")
            .starts_with("| picture | file | scene | letters | pipe | error |\n|---|---|---|---|---|---|\n")
    );
}

#[test]
fn a_failure_in_a_later_step_keeps_what_was_found_before() {
    let scratch = Scratch::new();
    scratch.write("a.png", &picture());
    let spec = TWO_STEPS
        .replace("image = \"{{ file }}\"\nprompt", "image = \"{{ file | replace('.png', '-b.png') }}\"\nprompt");
    scratch.write("two.toml", spec.as_bytes());
    let ran = pipe(&scratch, "two.toml a.png --out out.jsonl");
    assert_eq!(ran.code, 1);
    assert_eq!(ran.stderr, "error: a.png: step `letters`: a-b.png: no such file\n");
    let failed = &rows(&scratch.read("out.jsonl"))["a.png"];
    assert!(failed["scene"].is_string() && failed["error"].is_string() && failed.get("letters").is_none(), "{failed}");
    let before = &rows(&scratch.read("out.jsonl.unfinished"))["a.png"];
    scratch.write("a-b.png", &picture());
    pipe(&scratch, "two.toml a.png --out out.jsonl --resume").ok();
    let done = &rows(&scratch.read("out.jsonl"))["a.png"];
    assert_eq!(done["steps"]["scene"], before["steps"]["scene"], "the first step was not run again");
    assert!(!scratch.path().join("out.jsonl.unfinished").exists());
}

#[test]
fn a_killed_run_goes_on_where_it_was() {
    let scratch = Scratch::new();
    for idx in 0..12 {
        scratch.write(&format!("many/{idx:02}.png"), &picture());
    }
    scratch.write("two.toml", TWO_STEPS.as_bytes());
    let arguments = ["pipe", "two.toml", "many", "--out", "out.jsonl"];
    let mut child = scratch.command(arguments).spawn().unwrap();
    let unfinished = scratch.path().join("out.jsonl.unfinished");
    let kept = loop {
        let text = std::fs::read_to_string(&unfinished).unwrap_or_default();
        if text.lines().count() >= 4 || child.try_wait().unwrap().is_some() {
            break text;
        }
    };
    // Not to be caught: as when the machine loses its power.
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(kept.lines().count() >= 4, "{kept}");
    let ran = scratch.run(arguments.into_iter().chain(["--resume"]));
    ran.ok();
    let (done, before) = (rows(&scratch.read("out.jsonl")), kept.lines().take(3).collect::<Vec<_>>().join("\n"));
    assert_eq!(done.len(), 12);
    for (file, row) in rows(&before) {
        assert_eq!(done[&file]["steps"]["scene"], row["steps"]["scene"], "what was finished is not done again");
    }
    assert!(!unfinished.exists());
}

/// The demo model, another one, the demo model again: kept in memory or loaded twice, it says the same.
#[test]
fn models_may_alternate() {
    let scratch = Scratch::new();
    scratch.write("a.png", &picture());
    let other = repository("fixtures/qwen2");
    let step = |name: &str, more: &str| format!("[[step]]\nname = \"{name}\"\n{more}\nmax_tokens = 6\n");
    let looks = "model = \"demo\"\nimage = \"{{ file }}\"";
    let steps = [
        step("first", looks),
        step("between", &format!("model = '{}'\nprompt = \"{{{{ first }}}}\"\nraw = true", other.display())),
        step("again", &format!("{looks}\nwhen = \"between\"")),
    ];
    scratch.write("aba.toml", steps.concat().as_bytes());
    let fields = |more: &str| {
        let ran = pipe(&scratch, &format!("aba.toml a.png --json {more}"));
        ran.ok();
        ["first", "between", "again"].map(|name| ran.objects()[0][name].as_str().unwrap().to_owned())
    };
    let kept = fields("");
    assert!(kept[0] == kept[2] && kept[0] != kept[1] && kept[0].len() > 3, "{kept:?}");
    assert_eq!(fields("--memory-limit 1GiB"), kept);
    let small = pipe(&scratch, "aba.toml a.png --memory-limit 64kB");
    assert_eq!(small.code, 4, "{small:?}");
}

#[test]
fn recordings_are_written_down_and_read() {
    let scratch = Scratch::new();
    scratch.write("calls/a.wav", &recording(9));
    scratch.write("calls/b.wav", &recording(40));
    scratch.write("calls/c.mp3", b"this is no recording");
    scratch.write("calls/notes.txt", b"nor is this");
    let spec = format!(
        "[input]\nfiles = [\"calls\"]\n\n\
         [[step]]\nname = \"talk\"\ntask = \"transcribe\"\nmodel = '{}'\naudio = \"{{{{ file }}}}\"\nlanguage = \"en\"\nnum_beams = 1\n\n\
         [[step]]\nname = \"summary\"\nmodel = '{}'\nraw = true\nmax_tokens = 4\n\
         when = \"talk.segments | length > 0\"\nprompt = \"{{{{ talk.language }}}} {{{{ talk.duration }}}}: {{{{ talk }}}}\"\n",
        repository("crates/engine/tests/data/whisper_long").display(),
        repository("fixtures/qwen2").display(),
    );
    scratch.write("talk.toml", spec.as_bytes());
    let ran = pipe(&scratch, "talk.toml --out out.jsonl --threads 2");
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("calls/c.mp3: step `talk`: not an audio file in a known format"), "{ran:?}");
    let rows = rows(&scratch.read("out.jsonl"));
    assert_eq!(rows.len(), 3);
    let row = &rows["calls/a.wav"];
    assert_eq!((row["talk"]["language"].as_str(), row["talk"]["duration"].as_f64()), (Some("en"), Some(9.0)));
    assert!(row["talk"]["segments"][0]["end"].as_f64().unwrap() > 0.0, "{row}");
    assert_eq!(row["steps"]["summary"]["completion_tokens"], 4, "{row}");
    let prompt_tokens = |file: &str| rows[file]["steps"]["summary"]["prompt_tokens"].as_u64().unwrap();
    assert!(prompt_tokens("calls/a.wav") > 0 && row["talk"]["text"] != rows["calls/b.wav"]["talk"]["text"]);

    pipe(&scratch, "talk.toml calls/a.wav --out out.csv").ok();
    let csv = scratch.read("out.csv");
    assert!(csv.starts_with("file,pipe,talk,summary,error\ncalls/a.wav,talk.toml@"), "{csv}");
    pipe(&scratch, "talk.toml calls/a.wav --out out.md").ok();
    assert!(
        scratch
            .read("out.md")
            .starts_with("| file | talk | summary | pipe | error |\n|---|---|---|---|---|\n| calls/a.wav | ")
    );
}

#[test]
fn what_is_found_is_cut_out_and_described() {
    let scratch = Scratch::new();
    let model = repository("fixtures/moondream2");
    std::fs::copy(model.join("image0.png"), scratch.path().join("a.png")).unwrap();
    let model = model.display();
    let spec = format!(
        "[[step]]\nname = \"boxes\"\ntask = \"detect\"\nmodel = '{model}'\nimage = \"{{{{ file }}}}\"\nthing = \"red circle\"\nmax = 2\n\n\
         [[step]]\nname = \"part\"\ntask = \"crop\"\nimage = \"{{{{ file }}}}\"\nboxes = \"{{{{ boxes }}}}\"\nmargin = 0.1\n\n\
         [[step]]\nname = \"looks\"\nmodel = '{model}'\neach = \"part\"\nimage = \"{{{{ part }}}}\"\nprompt = \"What is this?\"\nmax_tokens = 3\n\n\
         [[step]]\nname = \"again\"\nmodel = '{model}'\neach = \"looks\"\nwhen = \"looks != '' and part.box\"\nimage = \"{{{{ part }}}}\"\n\
         prompt = \"Is it {{{{ looks }}}}?\"\nmax_tokens = 2\n\n\
         [[step]]\nname = \"dots\"\ntask = \"point\"\nmodel = '{model}'\nimage = \"{{{{ file }}}}\"\nthing = \"edge\"\nmax = 1\n\n\
         [[step]]\nname = \"all\"\nmodel = '{model}'\nimage = \"{{{{ file }}}}\"\nprompt = \"{{{{ looks | join(', ') }}}} {{{{ dots | length }}}}\"\nmax_tokens = 2\n"
    );
    scratch.write("find.toml", spec.as_bytes());
    let ran = pipe(&scratch, "find.toml a.png --out out.jsonl --keep-crops parts");
    ran.ok();
    let row = &rows(&scratch.read("out.jsonl"))["a.png"];
    let lengths = ["boxes", "part", "looks", "again", "dots"].map(|field| row[field].as_array().unwrap().len());
    assert_eq!(lengths, [2, 2, 2, 2, 1], "{row}");
    for (part, edges) in row["part"].as_array().unwrap().iter().zip(row["boxes"].as_array().unwrap()) {
        let png = std::fs::read(scratch.path().join(part["path"].as_str().unwrap())).unwrap();
        let side = |at: usize| u64::from(u32::from_be_bytes(png[at..at + 4].try_into().unwrap()));
        let edge = |idx: usize| part["box"][idx].as_u64().unwrap();
        assert_eq!([side(16), side(20)], [(edge(2) - edge(0)).max(1), (edge(3) - edge(1)).max(1)], "{part}");
        assert!(edge(0) <= edges["pixels"][0].as_u64().unwrap() && edge(2) >= edges["pixels"][2].as_u64().unwrap());
    }
    assert!(row["all"].is_string() && row["again"][0].is_string(), "{row}");

    // The same from the command line, as a table that shows the parts.
    pipe(&scratch, "find.toml a.png --out out.md --keep-crops parts").ok();
    assert!(scratch.read("out.md").contains(" | ![](parts/a.png-part-1.png)<br>![](parts/a.png-part-2.png) | "));
    let alone = scratch.run([
        "describe",
        "parts/a.png-part-2.png",
        "--prompt",
        "What is this?",
        "--max-tokens",
        "3",
        "--model",
        &model.to_string(),
    ]);
    assert_eq!(alone.ok().trim(), row["looks"][1].as_str().unwrap(), "a part is a picture like any other");
}

#[test]
fn nothing_found_is_no_failure() {
    let scratch = Scratch::new();
    scratch.write("a.png", &picture());
    let spec = "[[step]]\nname = \"boxes\"\nmodel = \"demo\"\nwhen = \"false\"\nprompt = \"x\"\n\n\
        [[step]]\nname = \"part\"\ntask = \"crop\"\nimage = \"{{ file }}\"\nboxes = \"{{ boxes }}\"\n\n\
        [[step]]\nname = \"looks\"\nmodel = \"demo\"\neach = \"part\"\nimage = \"{{ part }}\"\n\n\
        [[step]]\nname = \"told\"\nmodel = \"demo\"\nwhen = \"looks\"\nprompt = \"{{ looks }}\"\n";
    scratch.write("x.toml", spec.as_bytes());
    let ran = pipe(&scratch, "x.toml a.png --json");
    ran.ok();
    let row = &ran.objects()[0];
    assert_eq!(
        (&row["part"], &row["looks"], &row["told"]),
        (&Value::Array(vec![]), &Value::Array(vec![]), &Value::Null)
    );
}
