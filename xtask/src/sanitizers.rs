//! `cargo xtask test-sanitizers`: the tests of the crates with unsafe code, compiled with LLVM's checks.
//!
//! AddressSanitizer finds reads and writes outside of their memory (kernels, mapped files), ThreadSanitizer finds data
//! races (the thread pool). Both are options of the compiler that are not stable yet, which `RUSTC_BOOTSTRAP` allows;
//! what they link comes with the toolchain on the targets below. Elsewhere the command says so and succeeds: it is no
//! verdict on the code.
//!
//! ThreadSanitizer must see the standard library's own synchronisation, too: with the compiled one it reports every
//! thread that is joined as a race. So the standard library is built as well, from the toolchain's component
//! `rust-src`.

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
    /// Whether the standard library must be instrumented, too.
    builds_std: bool,
}

const SANITIZERS: [Sanitizer; 2] = [
    Sanitizer {
        name: "address",
        library: "asan",
        packages: &["ocelli-kernels", "ocelli-backend-cpu", "ocelli-formats"],
        tests: "",
        builds_std: false,
    },
    Sanitizer { name: "thread", library: "tsan", packages: &["ocelli-backend-cpu"], tests: "pool::", builds_std: true },
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
        if sanitizer.builds_std && !has_std_source()? {
            println!("SKIP: the {} sanitizer, because rustup component add rust-src was not run", sanitizer.name);
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

fn has_std_source() -> Result<bool> {
    Ok(Path::new(&rustc(&["--print", "sysroot"])?).join("lib/rustlib/src/rust/library/std/Cargo.toml").is_file())
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
    if sanitizer.builds_std {
        command.arg("-Zbuild-std");
    }
    for package in sanitizer.packages {
        command.args(["--package", package]);
    }
    command.args(["--", sanitizer.tests]).current_dir(root);
    // Not all that is linked is instrumented, which the compiler would otherwise refuse.
    let flags = format!("-Zsanitizer={} -Cunsafe-allow-abi-mismatch=sanitizer", sanitizer.name);
    command.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", flags).env("CARGO_INCREMENTAL", "0");
    Ok(command.status().context("running cargo")?.success())
}
