//! `ocelli chat`, driven by lines of standard input.

use crate::support::{Scratch, repository};

fn chat(scratch: &Scratch, arguments: &[&str], lines: &str) -> crate::support::Ran {
    scratch.run_with_input(["chat", "--max-tokens", "12"].iter().chain(arguments), lines.as_bytes())
}

#[test]
fn a_conversation_about_a_picture() {
    let scratch = Scratch::with_pictures();
    let ran = chat(&scratch, &["pics/a.png"], "Describe the image.\n/stats\nHow many shapes?\n/stats\n");
    let alone = scratch.run(["describe", "pics/a.png", "--max-tokens", "12"]);
    let answers: Vec<&str> = ran.ok().lines().collect();
    assert_eq!(answers.len(), 2, "{ran:?}");
    assert_eq!(answers[0], alone.ok().trim_end(), "the first turn is the same as without a chat");
    assert!(ran.stderr.contains("conversation: 1 message(s), 1 picture(s), "), "{ran:?}");
    assert!(ran.stderr.contains("conversation: 2 message(s), 1 picture(s), "), "{ran:?}");
}

#[test]
fn pictures_come_with_a_command_and_go_with_another() {
    let scratch = Scratch::with_pictures();
    let lines = "/image pics/a.png\nDescribe the image.\n/clear\n/stats\n/image 'pics/a.png'\nDescribe the image.\n/quit\nnever read\n";
    let ran = chat(&scratch, &[], lines);
    let answers: Vec<&str> = ran.ok().lines().collect();
    assert_eq!(answers.len(), 2, "{ran:?}");
    assert_eq!(answers[0], answers[1], "nothing is left of the first conversation");
    assert!(ran.stderr.contains("pics/a.png (384x384) goes with your next message"), "{ran:?}");
    assert!(ran.stderr.contains("no answer yet"), "{ran:?}");
}

#[test]
fn what_fails_is_told_and_the_chat_goes_on() {
    let scratch = Scratch::with_pictures();
    let ran = chat(&scratch, &[], "/image gone.png\n/image\n/image pics/b.png\n/frobnicate\n/help\n\nHello\n");
    assert_eq!(ran.code, 1, "a script is told at the end: {ran:?}");
    assert_eq!(ran.stdout.lines().count(), 1, "{ran:?}");
    for part in
        ["error: gone.png: no such file\n", "give the path", "error: pics/b.png: ", "no command /frobnicate", "/stats"]
    {
        assert!(ran.stderr.contains(part), "{part} in {ran:?}");
    }
}

#[test]
fn a_conversation_that_grows_too_long_can_go_on_after_a_clear() {
    let scratch = Scratch::with_pictures();
    let long = "word ".repeat(3000);
    let ran = chat(&scratch, &["pics/a.png"], &format!("{long}\nDescribe the image.\n"));
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("tokens, but the model's context is"), "{ran:?}");
    let alone = scratch.run(["describe", "pics/a.png", "--max-tokens", "12"]);
    assert_eq!(ran.stdout.trim(), alone.ok().trim(), "the picture was kept for the next message: {ran:?}");
}

#[test]
fn a_video_goes_with_the_next_message() {
    let scratch = Scratch::new();
    let model = scratch.copy_fixture("smolvlm");
    let template =
        "{% for message in messages %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endfor %}";
    std::fs::write(model.join("chat_template.jinja"), template).unwrap();
    let clip = repository("fixtures/smolvlm_video/video0.gif");
    let lines = format!("/video {0}\nwhat happens?\n/stats\n/video\n/video gone.mp4\n", clip.display());
    let ran = chat(&scratch, &["--model", model.to_str().unwrap(), "--max-frames", "2"], &lines);
    for part in ["(2 frames) goes with your next message", "0 picture(s), 1 video(s), ", "2 frames seen as 64x64"] {
        assert!(ran.stderr.contains(part), "{part} in {ran:?}");
    }
    assert!(ran.stderr.contains("/video clip.mp4") && ran.stderr.contains("error: gone.mp4: no such file"), "{ran:?}");
    let still = scratch.copy_fixture("idefics3");
    std::fs::write(still.join("chat_template.jinja"), template).unwrap();
    let ran = chat(&scratch, &["--model", still.to_str().unwrap()], &format!("/video {}\n", clip.display()));
    assert!(ran.code == 1 && ran.stderr.contains("takes no videos"), "{ran:?}");
}
