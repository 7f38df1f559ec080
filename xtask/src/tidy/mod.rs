//! The habits that a program can check. [`check`] runs them all; it is also a test of this crate.
//!
//! - [`source`] reads one Rust file as tokens.
//! - [`code`] holds the rules for Rust files, [`texts`] those for every file.
//! - [`workspace`] holds the rules for manifests and documents.
//! - [`tables`] holds what is allowed: crate edges, exceptions, the number of `unsafe`.

mod code;
mod files;
mod source;
mod tables;
mod texts;
mod workspace;

use std::fmt;
use std::path::Path;

use anyhow::Result;

use files::Files;

/// One broken habit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// Relative to the root of the repository.
    file: String,
    /// From 1.
    line: usize,
    /// Short name of the rule.
    rule: &'static str,
    /// What is wrong and what to do.
    message: String,
}

impl Problem {
    fn new(file: &str, line: usize, rule: &'static str, message: String) -> Self {
        Self { file: file.to_owned(), line, rule, message }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: [{}] {}", self.file, self.line, self.rule, self.message)
    }
}

/// Everything that is not tidy in the repository at `root`, sorted by file and line.
///
/// # Errors
/// When files cannot be read or `cargo metadata` fails.
pub(crate) fn check(root: &Path) -> Result<Vec<Problem>> {
    let files = Files::read(root)?;
    let metadata = workspace::metadata(root)?;
    let mut problems = code::check(&files);
    problems.extend(texts::check(&files));
    problems.extend(workspace::check(&files, &metadata)?);
    problems.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
    Ok(problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_is_tidy() {
        let problems = check(crate::root().unwrap()).unwrap();
        let listed: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert!(listed.is_empty(), "{} problems:\n{}", listed.len(), listed.join("\n"));
    }

    #[test]
    fn a_problem_names_file_line_and_rule() {
        let problem = Problem::new("a.rs", 3, "header", "add one".into());
        assert_eq!(problem.to_string(), "a.rs:3: [header] add one");
    }
}
