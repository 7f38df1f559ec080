//! `cargo xtask test-emulated`: the arithmetic's tests on other processors, in an emulator, on any Linux machine: all of
//! them for 64-bit ARM, and on each processor of both families whether a row of the dispatch table runs where the
//! processor has its instructions, and only there.
//!
//! Needs three things and gets what is missing, into the target folder or through rustup: the standard libraries for
//! the targets (their musl forms link with the linker that Rust brings along, so no cross compiler is needed), and the
//! user-mode emulators of QEMU, installed or unpacked from the system's package source. Where one of them cannot be
//! had the command says so and succeeds: it is no verdict on the code.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};

use anyhow::{Context, Result, ensure};

/// Packages that hold the emulators, statically linked ones first; systems name them differently.
const PACKAGES: [&str; 2] = ["qemu-user-static", "qemu-user"];

/// A family of processors.
struct Architecture {
    target: &'static str,
    /// Names of the emulator's program.
    programs: [&'static str; 2],
    processors: &'static [Processor],
}

/// An emulated processor: which tests it runs, which rows of the dispatch table must run on it, and which must be
/// refused.
struct Processor {
    /// As the emulator knows it; features may be taken away.
    name: &'static str,
    /// A part of their names.
    tests: &'static str,
    has: &'static [&'static str],
    lacks: &'static [&'static str],
}

const ARCHITECTURES: [Architecture; 2] = [
    Architecture {
        target: "aarch64-unknown-linux-musl",
        programs: ["qemu-aarch64", "qemu-aarch64-static"],
        // One has everything and runs everything; the others show that a row asks for what it uses.
        processors: &[
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
        ],
    },
    Architecture {
        target: "x86_64-unknown-linux-musl",
        programs: ["qemu-x86_64", "qemu-x86_64-static"],
        // The emulator has nothing beyond AVX2, whatever machine it runs on.
        processors: &[
            Processor { name: "max", tests: PRODUCTS, has: &["scalar", "avx2"], lacks: BEYOND_AVX2 },
            Processor { name: "max,-avx2", tests: PRODUCTS, has: &["scalar"], lacks: AVX2_AND_BEYOND },
            Processor { name: "max,-fma", tests: PRODUCTS, has: &["scalar"], lacks: AVX2_AND_BEYOND },
            Processor { name: "max,-f16c", tests: PRODUCTS, has: &["scalar"], lacks: AVX2_AND_BEYOND },
            Processor { name: "Nehalem", tests: PRODUCTS, has: &["scalar"], lacks: AVX2_AND_BEYOND },
        ],
    },
];

const BEYOND_AVX2: &[&str] = &["avx2-vnni", "avx512", "avx512-vnni", "avx512-bf16", "amx", "neon"];
const AVX2_AND_BEYOND: &[&str] = &["avx2", "avx2-vnni", "avx512", "avx512-vnni", "avx512-bf16", "amx", "neon"];

/// Products of every kind of weights.
const PRODUCTS: &str = "every_epilogue_is_applied";

/// Builds the tests, runs them on every processor; fails if a test fails or a row runs where it should not.
pub(crate) fn test(root: &Path) -> Result<ExitCode> {
    let folder = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from).join("emulator");
    let mut problems = Vec::new();
    for architecture in &ARCHITECTURES {
        let target = architecture.target;
        if !has_target(target)? {
            skip(target, &format!("its standard library (rustup target add {target})"));
            continue;
        }
        let Some(emulator) = find_emulator(&architecture.programs, &folder)? else {
            skip(target, "the emulator (package qemu-user or qemu-user-static)");
            continue;
        };
        for processor in architecture.processors {
            println!("== {target} on the emulated processor {}", processor.name);
            let output = run_tests(root, target, &emulator, processor)?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            if !output.status.success() {
                println!("{text}");
                println!("test-emulated: tests fail on {}", processor.name);
                return Ok(ExitCode::FAILURE);
            }
            text.lines().filter(|line| line.starts_with("test result")).for_each(|line| println!("{line}"));
            problems.extend(wrong_rows(processor, &text));
        }
    }
    for problem in &problems {
        println!("{problem}");
    }
    println!("test-emulated: {} problems", problems.len());
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn skip(target: &str, missing: &str) {
    println!("SKIP: test-emulated checked nothing for {target}, because it lacks {missing}");
}

/// Whether the compiler has the target, after asking rustup for it.
fn has_target(target: &str) -> Result<bool> {
    let output = Command::new("rustc").args(["--print", "target-libdir", "--target", target]).output()?;
    ensure!(output.status.success(), "rustc does not know {target}");
    let libraries = PathBuf::from(String::from_utf8(output.stdout).context("a path in UTF-8")?.trim());
    if !libraries.exists() {
        succeeds(Command::new("rustup").args(["target", "add", target]));
    }
    Ok(libraries.exists())
}

/// The installed emulator, or the one in `folder`, unpacked there if need be.
fn find_emulator(programs: &[&str], folder: &Path) -> Result<Option<PathBuf>> {
    let unpacked = || programs.iter().map(|program| folder.join("usr/bin").join(program));
    let mut known = programs.iter().map(PathBuf::from).chain(unpacked());
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

fn run_tests(root: &Path, target: &str, emulator: &Path, processor: &Processor) -> Result<Output> {
    let mut runner = OsString::from(emulator);
    runner.push(format!(" -cpu {}", processor.name));
    let variable = |what: &str| format!("CARGO_TARGET_{}_{what}", target.to_uppercase().replace('-', "_"));
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    Command::new(cargo)
        .args([
            "test",
            "--package",
            "ocelli-kernels",
            "--lib",
            "--target",
            target,
            "--",
            "--show-output",
            processor.tests,
        ])
        .current_dir(root)
        .env(variable("LINKER"), "rust-lld")
        .env(variable("RUNNER"), runner)
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
