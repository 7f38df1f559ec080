//! Rules for every text file.

use super::Problem;
use super::files::{File, Files, has_extension};

/// Checks every text file.
pub(crate) fn check(files: &Files) -> Vec<Problem> {
    files.iter().flat_map(|file| [machine_paths(file), unfinished(file)]).flatten().collect()
}

/// Nothing in the repository knows the machine it was written on.
fn machine_paths(file: &File) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (index, line) in file.text.lines().enumerate() {
        if let Some(path) = HOMES.iter().find_map(|home| machine_path(line, home)) {
            let message = format!("`{path}` is a path of one machine: make it relative or an argument");
            problems.push(Problem::new(&file.path, index + 1, "machine path", message));
        }
    }
    problems
}

/// An absolute path under `/home/` in a line. A path that merely contains it (`a/home/b`) is none.
fn machine_path<'a>(line: &'a str, home: &str) -> Option<&'a str> {
    let needle = format!("/{home}/");
    let starts_path = |&(at, _): &(usize, &str)| {
        let before = line[..at].chars().next_back();
        let next = line[at + needle.len()..].chars().next();
        let inside = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '~' | '}' | ')' | '/');
        !before.is_some_and(inside) && next.is_some_and(char::is_alphanumeric)
    };
    let (at, _) = line.match_indices(&needle).find(starts_path)?;
    let end = line[at..].find(|c: char| c.is_whitespace() || "\"'`)>,;".contains(c));
    Some(&line[at..end.map_or(line.len(), |end| at + end)])
}

/// Code and documents are finished, or an issue says what is missing.
fn unfinished(file: &File) -> Vec<Problem> {
    let code = ["rs", "py", "sh", "toml"].iter().any(|extension| has_extension(&file.path, extension));
    let marks = match code || file.path == ".ci/run" {
        true => UNFINISHED,
        false if has_extension(&file.path, "md") => PLACEHOLDER,
        false => return Vec::new(),
    };
    let mut problems = Vec::new();
    for (index, line) in file.text.lines().enumerate() {
        if let Some(mark) = marks.iter().find(|mark| line.contains(*mark)) {
            let message = format!("`{mark}`: finish it, or describe it in an issue");
            problems.push(Problem::new(&file.path, index + 1, "unfinished", message));
        }
    }
    problems
}

const HOMES: &[&str] = &["home", "Users", "root", "work", "mnt", "workspace"];
/// Written in two parts so that this file does not say them.
const UNFINISHED: &[&str] =
    &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("to", "do!("), concat!("unimple", "mented!(")];
/// Stands in a document where a figure has to be filled in.
const PLACEHOLDER: &[&str] = &[concat!("@", "@")];

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<(usize, &'static str)> {
        check(&Files::of(&[(path, text)])).into_iter().map(|problem| (problem.line, problem.rule)).collect()
    }

    #[test]
    fn paths_of_a_machine_are_found() {
        for home in ["home", "Users", "root", "work"] {
            assert_eq!(found("a.json", &format!("{{\n \"p\": \"/{home}/me/x\"}}")), [(2, "machine path")], "{home}");
            assert_eq!(found("a.md", &format!("see https://example.org/{home}/me")), [], "{home}");
            assert_eq!(found("a.md", &format!("in $HOME, ~/{home}/me or target/{home}/me")), [], "{home}");
            assert_eq!(found("a.md", &format!("either/or: /{home}/ or /{home}s/x")), [], "{home}");
        }
        let text = format!("cd /{}/me/x; ls", "home");
        assert_eq!(machine_path(&text, "home"), Some(&text[3..13]));
    }

    #[test]
    fn unfinished_code_is_found() {
        for mark in UNFINISHED {
            assert_eq!(found("a.rs", &format!("//! A.\n// {mark}")), [(2, "unfinished")]);
            assert_eq!(found(".ci/run", mark), [(1, "unfinished")]);
            assert_eq!(found("a.md", mark), []);
        }
        assert_eq!(found("a.md", &format!("{0}FIGURE{0}", PLACEHOLDER[0])), [(1, "unfinished")]);
        assert_eq!(found("a.txt", PLACEHOLDER[0]), []);
    }
}
