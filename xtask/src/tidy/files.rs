//! The files of the repository: all of them but what `.gitignore` names. No git is needed, so that a source archive
//! can be tested too.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// The text files of the repository, sorted by path. Binary files are left out.
pub(crate) struct Files {
    files: Vec<File>,
}

/// One text file.
pub(crate) struct File {
    /// Relative to the root, with `/`.
    pub(crate) path: String,
    /// The whole content.
    pub(crate) text: String,
}

impl Files {
    /// Reads the files under `root`.
    ///
    /// # Errors
    /// When a file or folder cannot be read.
    pub(crate) fn read(root: &Path) -> Result<Self> {
        let ignored = fs::read_to_string(root.join(".gitignore")).unwrap_or_default();
        let mut files = Vec::new();
        collect(root, "", &Ignored::parse(&ignored), &mut files)?;
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Self { files })
    }

    /// Files from memory, for tests.
    #[cfg(test)]
    pub(crate) fn of(files: &[(&str, &str)]) -> Self {
        let file = |&(path, text): &(&str, &str)| File { path: path.into(), text: text.into() };
        Self { files: files.iter().map(file).collect() }
    }

    /// All files.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &File> {
        self.files.iter()
    }

    /// The Rust files.
    pub(crate) fn rust(&self) -> impl Iterator<Item = &File> {
        self.iter().filter(|file| has_extension(&file.path, "rs"))
    }

    /// The text of one file.
    pub(crate) fn text(&self, path: &str) -> Option<&str> {
        self.iter().find(|file| file.path == path).map(|file| file.text.as_str())
    }
}

/// Whether a path ends in `.extension`.
pub(crate) fn has_extension(path: &str, extension: &str) -> bool {
    Path::new(path).extension().is_some_and(|found| found == extension)
}

fn collect(root: &Path, folder: &str, ignored: &Ignored, files: &mut Vec<File>) -> Result<()> {
    let at = root.join(folder);
    for entry in fs::read_dir(&at).with_context(|| format!("cannot list {}", at.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
        let kind = entry.file_type()?;
        if name == ".git" || ignored.matches(&path, &name) {
            continue;
        }
        if kind.is_dir() {
            collect(root, &path, ignored, files)?;
        } else if kind.is_file() && entry.metadata()?.len() <= LARGEST_TEXT {
            let bytes = fs::read(entry.path()).with_context(|| format!("cannot read {path}"))?;
            if let Ok(text) = String::from_utf8(bytes) {
                files.push(File { path, text });
            }
        }
    }
    Ok(())
}

/// The three forms of patterns in our `.gitignore`: `/path`, `*.ending` and `name`.
struct Ignored {
    paths: Vec<String>,
    endings: Vec<String>,
    names: Vec<String>,
}

impl Ignored {
    fn parse(text: &str) -> Self {
        let mut ignored = Self { paths: Vec::new(), endings: Vec::new(), names: Vec::new() };
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let line = line.trim_end_matches('/');
            if let Some(path) = line.strip_prefix('/') {
                ignored.paths.push(path.to_owned());
            } else if let Some(ending) = line.strip_prefix('*') {
                ignored.endings.push(ending.to_owned());
            } else {
                ignored.names.push(line.to_owned());
            }
        }
        ignored
    }

    fn matches(&self, path: &str, name: &str) -> bool {
        self.paths.iter().any(|ignored| ignored == path)
            || self.endings.iter().any(|ending| name.ends_with(ending))
            || self.names.iter().any(|ignored| ignored == name)
    }
}

/// Bytes; larger files are data.
const LARGEST_TEXT: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_text_files_and_skips_ignored_and_binary_ones() {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, bytes: &[u8]| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        };
        write(".gitignore", b"/target\n*.pyc\n__pycache__/\n# a comment\n");
        for path in ["target/a.rs", "x/a.pyc", "x/__pycache__/b", ".git/config"] {
            write(path, b"ignored");
        }
        write("x/target/kept.rs", b"//! Kept.");
        write("x/picture.png", &[0x89, 0xff, 0xfe]);
        let files = Files::read(folder.path()).unwrap();
        assert_eq!(files.iter().map(|file| file.path.as_str()).collect::<Vec<_>>(), [".gitignore", "x/target/kept.rs"]);
        assert_eq!(files.text("x/target/kept.rs"), Some("//! Kept."));
        assert_eq!(files.rust().count(), 1);
    }
}
