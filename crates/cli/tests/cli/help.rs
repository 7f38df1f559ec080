//! The texts of `--help`.

use insta::assert_snapshot;

use crate::support::Scratch;

#[test]
fn every_command_explains_itself_with_examples() {
    let scratch = Scratch::new();
    let commands = [
        "",
        "describe",
        "run",
        "chat",
        "detect",
        "point",
        "transcribe",
        "pipe",
        "pull",
        "list",
        "models",
        "rm",
        "show",
        "quantize",
        "eval",
        "eval demo",
        "eval parity",
        "bench",
        "completions",
    ];
    for command in commands {
        let ran = scratch.run(command.split_whitespace().chain(["--help"]));
        assert!(ran.ok().contains("Examples:"), "{command}");
        assert!(ran.stdout.lines().all(|line| line.chars().count() <= 120), "{command}");
        let name = format!("help {command}").trim().replace(' ', "_");
        assert_snapshot!(name, ran.stdout);
        let short = scratch.run(command.split_whitespace().chain(["-h"]));
        assert!(short.ok().contains("Examples:"), "{command} -h");
    }
}

#[test]
fn without_arguments_the_help_is_shown() {
    let ran = Scratch::new().run::<&str>([]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("Usage: ocelli"), "{ran:?}");
}

#[test]
fn the_version_is_told() {
    let ran = Scratch::new().run(["--version"]);
    assert_eq!(ran.ok(), format!("ocelli {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn completions_for_every_shell() {
    let scratch = Scratch::new();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        assert!(scratch.run(["completions", shell]).ok().contains("describe"), "{shell}");
    }
}
