//! Rules for Rust files.

use std::collections::BTreeSet;

use super::Problem;
use super::files::{File, Files};
use super::source::Source;
use super::tables::{
    FILE_LINES, FUNCTION_LINES, INSTRUCTION_SETS, KERNEL_LINES, KERNELS, LONGER, Longer, MODELS, UNSAFE, Unsafe,
    WORDS_NOT_IN_MODELS,
};

/// Checks every Rust file.
pub(crate) fn check(files: &Files) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut parsed = Vec::new();
    for file in files.rust() {
        match Source::parse(&file.text) {
            Ok(source) => parsed.push((file, source)),
            Err((line, why)) => problems.push(Problem::new(&file.path, line, "parse", format!("not Rust: {why}"))),
        }
    }
    let test_files = test_files(&parsed);
    for (file, source) in &parsed {
        problems.extend(header(file));
        problems.extend(forbid_unsafe(file, source));
        if test_files.contains(&file.path) {
            continue;
        }
        problems.extend(lengths(file, source, LONGER));
        problems.extend(unsafe_place(file, source, UNSAFE));
        problems.extend(models(file, source));
        problems.extend(kernel_names(file, source));
    }
    problems.extend(unsafe_counts(&parsed, &test_files, UNSAFE));
    problems.extend(stale_exceptions(&parsed, LONGER));
    problems
}

/// Files that hold nothing but tests: in a `tests` folder, or declared under `#[cfg(test)]`.
fn test_files(parsed: &[(&File, Source)]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (file, source) in parsed {
        if file.path.split('/').any(|part| part == "tests" || part == "tests.rs") {
            found.insert(file.path.clone());
        }
        let (folder, name) = file.path.rsplit_once('/').unwrap_or(("", &file.path));
        let home = match name {
            "lib.rs" | "main.rs" | "mod.rs" => folder.to_owned(),
            _ => file.path.trim_end_matches(".rs").to_owned(),
        };
        for module in &source.test_modules {
            found.extend([format!("{home}/{module}.rs"), format!("{home}/{module}/mod.rs")]);
        }
    }
    found
}

/// A file opens by saying what it is.
fn header(file: &File) -> Option<Problem> {
    let opens = file.text.starts_with("//! ");
    (!opens)
        .then(|| Problem::new(&file.path, 1, "header", "open the file with a `//!` line that says what it is".into()))
}

fn lengths(file: &File, source: &Source, longer: &[Longer]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let limit = |function: &str, usual| {
        let exception = longer.iter().find(|longer| longer.file == file.path && longer.function == function);
        exception.map_or(usual, |longer| longer.lines)
    };
    let (lines, file_limit) = (source.code_lines(), limit("", FILE_LINES));
    if lines > file_limit {
        let message = format!("{lines} lines without tests, the limit is {file_limit}: split it by topic");
        problems.push(Problem::new(&file.path, 1, "file length", message));
    }
    let usual = if file.path.starts_with(KERNELS) { KERNEL_LINES } else { FUNCTION_LINES };
    for function in source.functions.iter().filter(|function| !source.is_test(*function.lines.start())) {
        let limit = limit(&function.name, usual);
        if function.len() > limit {
            let message = format!("`{}` takes {} lines, the limit is {limit}: split it", function.name, function.len());
            problems.push(Problem::new(&file.path, *function.lines.start(), "function length", message));
        }
    }
    problems
}

/// An exception that nothing needs any more goes.
fn stale_exceptions(parsed: &[(&File, Source)], longer: &[Longer]) -> Vec<Problem> {
    let stale = |exception: &&Longer| {
        let Some((_, source)) = parsed.iter().find(|(file, _)| file.path == exception.file) else { return true };
        let kernel = exception.file.starts_with(KERNELS);
        let usual = if kernel { KERNEL_LINES } else { FUNCTION_LINES };
        match exception.function {
            "" => source.code_lines() <= FILE_LINES,
            name => source.functions.iter().all(|function| function.name != name || function.len() <= usual),
        }
    };
    let problem = |exception: &Longer| {
        let message =
            format!("the exception `{}` ({}) is no longer needed: remove it", exception.function, exception.reason);
        Problem::new(exception.file, 1, "length exception", message)
    };
    longer.iter().filter(stale).map(problem).collect()
}

/// Crates forbid `unsafe`, but for the few in the table.
fn forbid_unsafe(file: &File, source: &Source) -> Option<Problem> {
    let folder = file.path.strip_suffix("/src/lib.rs").or_else(|| file.path.strip_suffix("/src/main.rs"))?;
    let required = !source.forbids_unsafe && UNSAFE.iter().all(|row| row.folder != folder);
    required.then(|| Problem::new(&file.path, 1, "unsafe", "add `#![forbid(unsafe_code)]` to the crate".into()))
}

/// In crates that may use `unsafe`, it stays in the files that may.
fn unsafe_place(file: &File, source: &Source, table: &[Unsafe]) -> Option<Problem> {
    let row = table.iter().find(|row| file.path.starts_with(&format!("{}/src/", row.folder)))?;
    let allowed = |within: &str| file.path.starts_with(&format!("{}/src/{within}", row.folder));
    let line = *source.unsafe_lines.iter().find(|&&line| !source.is_test(line))?;
    let outside = !row.within.is_empty() && !row.within.iter().any(|within| allowed(within));
    outside.then(|| {
        let message = format!("in {}, `unsafe` stays in {}", row.folder, row.within.join(", "));
        Problem::new(&file.path, line, "unsafe", message)
    })
}

/// The number of `unsafe` is written down, so that a change of it is seen.
fn unsafe_counts(parsed: &[(&File, Source)], test_files: &BTreeSet<String>, table: &[Unsafe]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for row in table {
        let inside = |file: &File| file.path.starts_with(&format!("{}/src/", row.folder));
        let counted = parsed.iter().filter(|(file, _)| inside(file) && !test_files.contains(&file.path));
        let in_code = |source: &Source| source.unsafe_lines.iter().filter(|&&line| !source.is_test(line)).count();
        let count: usize = counted.map(|(_, source)| in_code(source)).sum();
        if count != row.count {
            let message = format!(
                "`unsafe` occurs {count} times, the table in xtask/src/tidy/tables.rs says {}: \
                 avoid it, or record {count} so that reviewers see it",
                row.count
            );
            problems.push(Problem::new(row.folder, 1, "unsafe", message));
        }
    }
    problems
}

/// Models know no device, no precision, no files, and their `forward` cannot fail.
fn models(file: &File, source: &Source) -> Vec<Problem> {
    if !file.path.starts_with(MODELS) {
        return Vec::new();
    }
    let mut problems = Vec::new();
    let numbered = file.text.lines().enumerate().map(|(index, text)| (index + 1, text));
    for (line, text) in numbered.filter(|&(line, _)| !source.is_test(line)) {
        let configured = text.contains("cfg(") || text.contains("cfg!(");
        for word in WORDS_NOT_IN_MODELS.iter().filter(|word| text.contains(**word)).chain(configured.then_some(&"cfg("))
        {
            let message = format!("models do not say `{word}`: it belongs below the Backend trait or into the engine");
            problems.push(Problem::new(&file.path, line, "models", message));
        }
    }
    for function in source.functions.iter().filter(|function| function.name.starts_with("forward")) {
        if function.mentions_result {
            let message = format!("`{}` cannot fail: check at load, panic on wrong shapes", function.name);
            problems.push(Problem::new(&file.path, *function.lines.start(), "models", message));
        }
    }
    problems
}

/// The folder says the instruction set, the function does not.
fn kernel_names(file: &File, source: &Source) -> Vec<Problem> {
    let in_folder = |set: &&&str| file.path.starts_with(&format!("{KERNELS}src/{set}"));
    let Some(_) = INSTRUCTION_SETS.iter().find(in_folder) else { return Vec::new() };
    let named = |name: &str| INSTRUCTION_SETS.iter().any(|set| name.split('_').any(|word| word == *set));
    let outside_tests = source.functions.iter().filter(|function| !source.is_test(*function.lines.start()));
    let problem = |name: &str, line| {
        let message = format!("the folder of `{name}` already says the instruction set: drop it from the name");
        Problem::new(&file.path, line, "kernel name", message)
    };
    outside_tests
        .filter(|function| named(&function.name))
        .map(|function| problem(&function.name, *function.lines.start()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> (File, Source) {
        (File { path: path.into(), text: text.into() }, Source::parse(text).unwrap())
    }

    fn rules(path: &str, text: &str) -> Vec<(usize, &'static str)> {
        let problems = check(&Files::of(&[(path, text)]));
        let own = problems.into_iter().filter(|problem| problem.file == path);
        own.map(|problem| (problem.line, problem.rule)).collect()
    }

    fn lines(count: usize) -> String {
        "    x();\n".repeat(count)
    }

    #[test]
    fn files_open_with_what_they_are() {
        assert_eq!(rules("crates/a/src/b.rs", "//! Good.\n"), []);
        assert_eq!(rules("crates/a/src/b.rs", "use a;\n//! Bad.\n"), [(1, "header")]);
        assert_eq!(rules("crates/a/src/b.rs", ""), [(1, "header")]);
    }

    #[test]
    fn what_is_not_rust_is_a_problem_and_not_a_crash() {
        assert_eq!(rules("crates/a/src/b.rs", "//! Half.\nfn a() {"), [(2, "parse")]);
    }

    #[test]
    fn crates_forbid_unsafe_unless_the_table_has_them() {
        assert_eq!(rules("crates/a/src/lib.rs", "//! A.\n"), [(1, "unsafe")]);
        assert_eq!(rules("crates/a/src/main.rs", "//! A.\n"), [(1, "unsafe")]);
        assert_eq!(rules("crates/a/src/lib.rs", "//! A.\n#![forbid(unsafe_code)]\n"), []);
        assert_eq!(rules("crates/a/src/other.rs", "//! A.\n"), []);
        assert_eq!(rules("crates/kernels/src/lib.rs", "//! A.\n"), []);
    }

    #[test]
    fn functions_have_a_limit() {
        let function = |inner| format!("//! A.\nfn f() {{\n{}}}\n", lines(inner));
        assert_eq!(rules("crates/a/src/b.rs", &function(58)), []);
        assert_eq!(rules("crates/a/src/b.rs", &function(59)), [(2, "function length")]);
        assert_eq!(rules("crates/kernels/src/b.rs", &function(98)), []);
        assert_eq!(rules("crates/kernels/src/b.rs", &function(99)), [(2, "function length")]);
        let test = format!("//! A.\n#[cfg(test)]\nmod tests {{\n#[test]\nfn f() {{\n{}}}\n}}\n", lines(100));
        assert_eq!(rules("crates/a/src/b.rs", &test), []);
        assert_eq!(rules("crates/a/tests/b.rs", &function(100)), []);
    }

    #[test]
    fn files_have_a_limit_without_their_tests() {
        let text = |code: usize, test: usize| {
            format!("//! A.\n{}#[cfg(test)]\nmod tests {{\n{}}}\n", "use x;\n".repeat(code), "use x;\n".repeat(test))
        };
        assert_eq!(rules("crates/a/src/b.rs", &text(599, 500)), []);
        assert_eq!(rules("crates/a/src/b.rs", &text(600, 0)), [(1, "file length")]);
    }

    #[test]
    fn modules_declared_as_tests_are_tests() {
        let long = format!("//! A.\nfn f() {{\n{}}}\n", lines(100));
        let declaring = "//! A.\n#[cfg(test)]\nmod oracle;\n";
        let about = |path: &str| {
            let problems = check(&Files::of(&[("crates/a/src/b.rs", declaring), (path, &long)]));
            problems.iter().filter(|problem| problem.file == path).count()
        };
        assert_eq!(about("crates/a/src/b/oracle.rs"), 0);
        assert_eq!(about("crates/a/src/b/other.rs"), 1);
    }

    #[test]
    fn exceptions_raise_a_limit_and_must_be_needed() {
        let (path, text) = ("crates/a/src/b.rs", format!("//! A.\nfn f() {{\n{}}}\n", lines(80)));
        let exception = |lines| [Longer { file: path, function: "f", lines, reason: "a table" }];
        let (file, source) = file(path, &text);
        assert_eq!(lengths(&file, &source, &exception(90)), []);
        assert_eq!(lengths(&file, &source, &exception(81)).len(), 1);
        let parsed = [(&file, source)];
        assert_eq!(stale_exceptions(&parsed, &exception(90)), []);
        let other = [Longer { file: path, function: "g", lines: 90, reason: "a table" }];
        assert_eq!(stale_exceptions(&parsed, &other)[0].rule, "length exception");
    }

    #[test]
    fn unsafe_stays_where_it_may_be_and_is_counted() {
        let table = [Unsafe { folder: "crates/a", within: &["map.rs"], count: 1 }];
        let text =
            "//! A.\nfn f() {\n    unsafe { x() }\n}\n#[cfg(test)]\nmod tests {\n    fn t() { unsafe { x() } }\n}\n";
        let (inside, inside_source) = file("crates/a/src/map.rs", text);
        assert_eq!(unsafe_place(&inside, &inside_source, &table), None);
        let (outside, outside_source) = file("crates/a/src/other.rs", text);
        assert_eq!(unsafe_place(&outside, &outside_source, &table).unwrap().line, 3);
        let none = BTreeSet::new();
        let one = [(&inside, inside_source)];
        assert_eq!(unsafe_counts(&one, &none, &table), []);
        let two = [(&inside, Source::parse(text).unwrap()), (&outside, outside_source)];
        assert!(unsafe_counts(&two, &none, &table)[0].message.contains("occurs 2 times"));
        assert!(unsafe_counts(&[], &none, &table)[0].message.contains("occurs 0 times"));
    }

    #[test]
    fn models_know_no_device_precision_or_file() {
        let found = |text: &str| rules("crates/models/src/b.rs", &format!("//! A.\n{text}\n"));
        for text in ["#[cfg(unix)]\nfn a() {}", "use x::Cpu;", "use x::Mlx;", "fn dequantise() {}", "use std::fs;"] {
            assert_eq!(found(text), [(2, "models")], "{text}");
            assert_eq!(rules("crates/a/src/b.rs", &format!("//! A.\n{text}\n")), [], "{text}");
        }
        assert_eq!(found("#[cfg(test)]\nmod tests {\n    use x::Cpu;\n}"), []);
        assert_eq!(found("fn forward(&self) -> Result<Tensor> { x }"), [(2, "models")]);
        assert_eq!(found("fn forward_tiles(&self) -> Result<Tensor> { x }"), [(2, "models")]);
        assert_eq!(found("fn forward(&self) -> Tensor { x }\nfn load() -> Result<Self> { x }"), []);
    }

    #[test]
    fn kernels_leave_the_instruction_set_to_the_folder() {
        let found = |path: &str, name: &str| rules(path, &format!("//! A.\nfn {name}() {{}}\n"));
        assert_eq!(found("crates/kernels/src/avx2/gemm.rs", "gemm_q4_avx2"), [(2, "kernel name")]);
        assert_eq!(found("crates/kernels/src/avx2/gemm.rs", "gemm_q4_bf16"), []);
        assert_eq!(found("crates/kernels/src/dispatch.rs", "detect_avx2"), []);
    }
}
