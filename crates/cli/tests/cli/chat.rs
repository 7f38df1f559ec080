//! `ocelli chat`, driven by lines of standard input.

use crate::support::Scratch;

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
