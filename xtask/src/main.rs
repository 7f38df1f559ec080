//! Chores of the repository: `cargo xtask tidy`, `cargo xtask test-emulated`, `cargo xtask test-sanitizers`.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line program prints")]

mod emulated;
mod sanitizers;
mod tidy;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["tidy"] => tidy(),
        ["test-emulated"] => root().and_then(emulated::test),
        ["test-sanitizers"] => root().and_then(sanitizers::test),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints every broken habit of the repository.
fn tidy() -> Result<ExitCode> {
    let problems = tidy::check(root()?)?;
    for problem in &problems {
        println!("{problem}");
    }
    println!("tidy: {} problems", problems.len());
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The root of the repository.
fn root() -> Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the workspace")
}

const USAGE: &str = "\
usage: cargo xtask tidy               check the habits that a program can check
       cargo xtask test-emulated      run the arithmetic's tests on other processors, in an emulator
       cargo xtask test-sanitizers    run the tests of crates with unsafe code under LLVM's sanitizers";
