//! `cargo xtask test-aarch64`: the arithmetic's tests for 64-bit ARM on any Linux machine, in an emulator.
//!
//! Needs three things and gets what is missing, into the target folder or through rustup: the standard library for
//! the target (its musl form links with the linker that Rust brings along, so no cross compiler is needed), and the
//! user-mode emulator of QEMU, installed or unpacked from the system's package source. Where one of them cannot be
//! had the command says so and succeeds: it is no verdict on the code.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};

use anyhow::{Context, Result, ensure};

const TARGET: &str = "aarch64-unknown-linux-musl";

/// Packages that hold the emulator, statically linked ones first; systems name it differently.
const PACKAGES: [&str; 2] = ["qemu-user-static", "qemu-user"];

/// Names of the emulator's program.
const PROGRAMS: [&str; 2] = ["qemu-aarch64", "qemu-aarch64-static"];

/// An emulated processor: which tests it runs, which rows of the dispatch table must run on it, and which must be
/// refused.
struct Processor {
    name: &'static str,
    /// A part of their names.
    tests: &'static str,
    has: &'static [&'static str],
    lacks: &'static [&'static str],
}

/// One has everything and runs everything; the others show that a row asks for what it uses.
const PROCESSORS: [Processor; 3] = [
    Processor {
        name: "max",
        tests: "",
        has: &["scalar", "neon", "neon-dotprod", "neon-i8mm", "neon-bf16"],
        lacks: &["avx2"],
    },
    Processor {
        name: "cortex-a76",
        tests: PRODUCTS,
        has: &["scalar", "neon", "neon-dotprod"],
        lacks: &["neon-i8mm", "neon-bf16"],
    },
    Processor {
        name: "cortex-a72",
        tests: PRODUCTS,
        has: &["scalar", "neon"],
        lacks: &["neon-dotprod", "neon-i8mm", "neon-bf16"],
    },
];

/// Products of every kind of weights.
const PRODUCTS: &str = "every_epilogue_is_applied";

/// Builds the tests, runs them on every processor; fails if a test fails or a row runs where it should not.
pub(crate) fn test(root: &Path) -> Result<ExitCode> {
    let folder = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from).join("emulator");
    if !has_target()? {
        return Ok(skip(&format!("the standard library for {TARGET} (rustup target add {TARGET})")));
    }
    let Some(emulator) = find_emulator(&folder)? else {
        return Ok(skip("the emulator (package qemu-user or qemu-user-static)"));
    };
    let mut problems = Vec::new();
    for processor in &PROCESSORS {
        println!("== {TARGET} on the emulated processor {}", processor.name);
        let output = run_tests(root, &emulator, processor)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            println!("{text}");
            println!("test-aarch64: tests fail on {}", processor.name);
            return Ok(ExitCode::FAILURE);
        }
        text.lines().filter(|line| line.starts_with("test result")).for_each(|line| println!("{line}"));
        problems.extend(wrong_rows(processor, &text));
    }
    for problem in &problems {
        println!("{problem}");
    }
    println!("test-aarch64: {} problems", problems.len());
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn skip(missing: &str) -> ExitCode {
    println!("SKIP: test-aarch64 checked nothing, because it lacks {missing}");
    ExitCode::SUCCESS
}

/// Whether the compiler has the target, after asking rustup for it.
fn has_target() -> Result<bool> {
    let output = Command::new("rustc").args(["--print", "target-libdir", "--target", TARGET]).output()?;
    ensure!(output.status.success(), "rustc does not know {TARGET}");
    let libraries = PathBuf::from(String::from_utf8(output.stdout).context("a path in UTF-8")?.trim());
    if !libraries.exists() {
        succeeds(Command::new("rustup").args(["target", "add", TARGET]));
    }
    Ok(libraries.exists())
}

/// The installed emulator, or the one in `folder`, unpacked there if need be.
fn find_emulator(folder: &Path) -> Result<Option<PathBuf>> {
    let unpacked = || PROGRAMS.iter().map(|program| folder.join("usr/bin").join(program));
    let mut known = PROGRAMS.iter().map(PathBuf::from).chain(unpacked());
    if let Some(emulator) = known.find(|program| runs(program)) {
        return Ok(Some(emulator));
    }
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    for package in PACKAGES {
        if !succeeds(Command::new("apt-get").args(["download", package]).current_dir(folder)) {
            continue;
        }
        let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
        for path in entries.filter_map(|entry| entry.ok().map(|entry| entry.path())) {
            if path.extension().is_some_and(|extension| extension == "deb") {
                succeeds(Command::new("dpkg-deb").arg("-x").arg(&path).arg(folder));
            }
        }
        if let Some(emulator) = unpacked().find(|program| runs(program)) {
            return Ok(Some(emulator));
        }
    }
    Ok(None)
}

fn runs(program: &Path) -> bool {
    succeeds(Command::new(program).arg("--version"))
}

/// Whether a helper program exists and succeeds; what it says is its own affair.
fn succeeds(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

fn run_tests(root: &Path, emulator: &Path, processor: &Processor) -> Result<Output> {
    let mut runner = OsString::from(emulator);
    runner.push(format!(" -cpu {}", processor.name));
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    Command::new(cargo)
        .args([
            "test",
            "--package",
            "ocelli-kernels",
            "--lib",
            "--target",
            TARGET,
            "--",
            "--show-output",
            processor.tests,
        ])
        .current_dir(root)
        .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER", "rust-lld")
        .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_RUNNER", runner)
        .env_remove("OCELLI_ISA")
        .stderr(Stdio::inherit())
        .output()
        .context("running cargo")
}

/// Rows that were refused although the processor has them, and the other way round: a refused row's tests say SKIP.
fn wrong_rows(processor: &Processor, output: &str) -> Vec<String> {
    let is_refused = |row: &str| output.contains(&format!("SKIP: OCELLI_ISA={row}:"));
    let wrongly_refused = processor.has.iter().filter(|row| is_refused(row));
    let wrongly_run = processor.lacks.iter().filter(|row| !is_refused(row));
    wrongly_refused
        .map(|row| format!("{row} does not run on {}", processor.name))
        .chain(wrongly_run.map(|row| format!("{row} is not refused on {}", processor.name)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROCESSOR: Processor = Processor { name: "old", tests: "", has: &["neon"], lacks: &["neon-dotprod"] };

    #[test]
    fn a_row_must_run_exactly_where_the_processor_has_it() {
        let dotprod = "SKIP: OCELLI_ISA=neon-dotprod: this processor has only scalar, neon";
        assert_eq!(wrong_rows(&PROCESSOR, dotprod), [""; 0]);
        assert_eq!(wrong_rows(&PROCESSOR, ""), ["neon-dotprod is not refused on old"]);
        let both = format!("{dotprod}\nSKIP: OCELLI_ISA=neon: this processor has only scalar");
        assert_eq!(wrong_rows(&PROCESSOR, &both), ["neon does not run on old"]);
    }

    #[test]
    fn a_program_that_is_missing_does_not_run() {
        assert!(!runs(Path::new("no-such-emulator")));
    }
}
