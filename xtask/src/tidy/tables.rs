//! What is allowed. A change here is meant to be seen in review.

/// Which of our crates a crate may use. Nothing points up: `ARCHITECTURE.md` shows the picture.
pub(crate) const EDGES: &[(&str, &[&str])] = &[
    ("ocelli-backend", &["ocelli-formats"]),
    ("ocelli-backend-cpu", &["ocelli-backend", "ocelli-formats", "ocelli-kernels"]),
    ("ocelli-cli", &["ocelli-engine", "ocelli-formats", "ocelli-processors"]),
    (
        "ocelli-engine",
        &["ocelli-backend", "ocelli-backend-cpu", "ocelli-formats", "ocelli-models", "ocelli-processors"],
    ),
    ("ocelli-formats", &[]),
    ("ocelli-kernels", &[]),
    ("ocelli-models", &["ocelli-backend", "ocelli-formats"]),
    ("ocelli-processors", &["ocelli-formats"]),
    ("ocelli-testkit", &["ocelli-backend", "ocelli-formats"]),
    ("xtask", &[]),
];

/// Additional edges for tests only; every crate may also use [`TESTKIT`].
pub(crate) const TEST_EDGES: &[(&str, &[&str])] = &[("ocelli-models", &["ocelli-backend-cpu"])];

/// Helpers for tests: only ever a dev-dependency.
pub(crate) const TESTKIT: &str = "ocelli-testkit";

/// Lines in a file, tests not counted.
pub(crate) const FILE_LINES: usize = 600;
/// Lines in a function.
pub(crate) const FUNCTION_LINES: usize = 60;
/// Lines in a function of [`KERNELS`], where one loop nest may be one function.
pub(crate) const KERNEL_LINES: usize = 100;
/// Where kernels live.
pub(crate) const KERNELS: &str = "crates/kernels/";
/// Lines in `ARCHITECTURE.md`.
pub(crate) const ARCHITECTURE_LINES: usize = 250;

/// A file or function that may be longer, and why.
pub(crate) struct Longer {
    /// The file.
    pub(crate) file: &'static str,
    /// The function, or empty for the file as a whole.
    pub(crate) function: &'static str,
    /// Its own limit, in lines.
    pub(crate) lines: usize,
    /// Why it is not split.
    pub(crate) reason: &'static str,
}

/// Everything that may be longer.
pub(crate) const LONGER: &[Longer] = &[];

/// A crate that may use `unsafe`.
pub(crate) struct Unsafe {
    /// Its folder.
    pub(crate) folder: &'static str,
    /// The files or folders under `src` that may; empty for all.
    pub(crate) within: &'static [&'static str],
    /// How often the keyword occurs outside tests, exactly.
    pub(crate) count: usize,
}

/// Every crate that may use `unsafe`; all others say `#![forbid(unsafe_code)]`.
pub(crate) const UNSAFE: &[Unsafe] = &[
    Unsafe { folder: "crates/backend-cpu", within: &["pool.rs"], count: 9 },
    Unsafe { folder: "crates/formats", within: &["mapped.rs", "quantize/lanes.rs"], count: 4 },
    Unsafe { folder: "crates/kernels", within: &[], count: 137 },
];

/// Where models live; they know no device, no precision and no files.
pub(crate) const MODELS: &str = "crates/models/src/";
/// Words that models do not say.
pub(crate) const WORDS_NOT_IN_MODELS: &[&str] = &["Cpu", "Mlx", "quant", "std::fs"];

/// Folders named after an instruction set; the functions in them are not.
pub(crate) const INSTRUCTION_SETS: &[&str] = &["avx2", "avx512", "amx", "neon", "scalar"];

/// The only place packages come from.
pub(crate) const PACKAGE_SOURCE: &str = "registry+https://github.com/rust-lang/crates.io-index";
