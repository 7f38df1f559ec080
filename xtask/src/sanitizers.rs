//! `cargo xtask test-sanitizers`: the tests of the crates with unsafe code, compiled with LLVM's checks.
//!
//! AddressSanitizer finds reads and writes outside of their memory (kernels, mapped files), ThreadSanitizer finds data
//! races (the thread pool). Both are options of the compiler that are not stable yet, which `RUSTC_BOOTSTRAP` allows;
//! what they link comes with the toolchain on the targets below. Elsewhere the command says so and succeeds: it is no
//! verdict on the code.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};

/// Targets whose standard library brings the sanitizers along.
const TARGETS: [&str; 2] = ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"];

/// One check, and the tests it runs.
struct Sanitizer {
    name: &'static str,
    /// Its library.
    library: &'static str,
    packages: &'static [&'static str],
    /// A part of the tests' names.
    tests: &'static str,
}

const SANITIZERS: [Sanitizer; 2] = [
    Sanitizer {
        name: "address",
        library: "asan",
        packages: &["ocelli-kernels", "ocelli-backend-cpu", "ocelli-formats"],
        tests: "",
    },
    Sanitizer { name: "thread", library: "tsan", packages: &["ocelli-backend-cpu"], tests: "pool::" },
];

/// Builds the tests with each sanitizer and runs them; fails if one fails.
pub(crate) fn test(root: &Path) -> Result<ExitCode> {
    let host = host()?;
    if !TARGETS.contains(&host.as_str()) {
        println!("SKIP: test-sanitizers checked nothing, because there are none for {host}");
        return Ok(ExitCode::SUCCESS);
    }
    for sanitizer in &SANITIZERS {
        if !has_library(sanitizer)? {
            println!(
                "SKIP: the {} sanitizer, because the toolchain lacks librustc*_rt.{}.a",
                sanitizer.name, sanitizer.library
            );
            continue;
        }
        println!("== {} sanitizer", sanitizer.name);
        if !run_tests(root, sanitizer, &host)? {
            println!("test-sanitizers: tests fail with the {} sanitizer", sanitizer.name);
            return Ok(ExitCode::FAILURE);
        }
    }
    println!("test-sanitizers: 0 problems");
    Ok(ExitCode::SUCCESS)
}

fn host() -> Result<String> {
    rustc(&["--print", "host-tuple"])
}

fn has_library(sanitizer: &Sanitizer) -> Result<bool> {
    let folder = PathBuf::from(rustc(&["--print", "target-libdir"])?);
    let entries = folder.read_dir().with_context(|| format!("reading {}", folder.display()))?;
    let ending = format!("_rt.{}.a", sanitizer.library);
    Ok(entries.filter_map(Result::ok).any(|entry| entry.file_name().to_string_lossy().ends_with(&ending)))
}

fn rustc(arguments: &[&str]) -> Result<String> {
    let output = Command::new("rustc").args(arguments).output().context("running rustc")?;
    ensure!(output.status.success(), "rustc {} fails", arguments.join(" "));
    Ok(String::from_utf8(output.stdout).context("text in UTF-8")?.trim().to_owned())
}

/// Whether all tests pass. Instrumented code has a target folder of its own: nothing else is built anew afterwards.
fn run_tests(root: &Path, sanitizer: &Sanitizer, host: &str) -> Result<bool> {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["test", "--lib", "--tests", "--target", host, "--target-dir"]);
    command.arg(target.join(format!("sanitizer-{}", sanitizer.name)));
    for package in sanitizer.packages {
        command.args(["--package", package]);
    }
    command.args(["--", sanitizer.tests]).current_dir(root);
    // The standard library is not instrumented, which the compiler would otherwise refuse.
    let flags = format!("-Zsanitizer={} -Cunsafe-allow-abi-mismatch=sanitizer", sanitizer.name);
    command.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", flags).env("CARGO_INCREMENTAL", "0");
    Ok(command.status().context("running cargo")?.success())
}
