//! The texts of `--help`.

use insta::assert_snapshot;

use crate::support::{Ran, Scratch};

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

/// The error lists the names in the table that the program chooses from.
#[test]
fn the_help_names_every_instruction_set() {
    let scratch = Scratch::new();
    let mut command = scratch.command(["eval", "demo", "--limit", "1"]);
    let ran: Ran = command.env("OCELLI_ISA", "altivec").output().unwrap().into();
    let known = ran.stderr.split_once("known are ").unwrap_or_else(|| panic!("no names in {ran:?}")).1;
    let names = |text: &str| -> Vec<String> {
        let lines: Vec<&str> = text.lines().take_while(|line| !line.trim().is_empty()).collect();
        lines.join(" ").split(',').map(|name| name.trim().to_owned()).collect()
    };
    let help = scratch.run(["--help"]).stdout;
    let (_, listed) = help.split_once("(default: the best there is): ").unwrap();
    let (listed, _) = listed.split_once("OCELLI_CACHE").unwrap();
    assert_eq!(names(listed), names(known.lines().next().unwrap()));
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
