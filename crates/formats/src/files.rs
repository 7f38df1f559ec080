//! The files of one model, wherever they are.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use crate::bytes::SharedBytes;
use crate::error::{Error, Result};
use crate::gguf::{Gguf, GgufModel};

/// The files of one model: a folder on disk, files embedded in the binary or made by it, or what a GGUF file says they
/// would be.
#[derive(Clone, Debug)]
pub struct ModelFiles {
    label: String,
    source: Source,
    /// Names of files that are elsewhere, and where.
    borrowed: Vec<(&'static str, PathBuf)>,
}

#[derive(Clone, Debug)]
enum Source {
    Folder(PathBuf),
    Embedded(&'static [(&'static str, &'static [u8])]),
    Memory(Arc<[(String, SharedBytes)]>),
    Gguf { path: PathBuf, model: Arc<GgufModel> },
}

impl ModelFiles {
    /// A model's folder, or a GGUF file (also the only one in a folder); its label is the path.
    ///
    /// # Errors
    /// [`Error::Io`] when there is nothing at `path`, [`Error::NotAFolder`] for another file,
    /// [`Error::MissingConfig`] (listing what is there) without `config.json`; for GGUF whatever [`Gguf::parse`] finds
    /// and [`Error::Value`] for what is not supported.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let about = std::fs::metadata(path).map_err(|source| Error::Io { path: path.into(), source })?;
        if !about.is_dir() {
            return if is_gguf(path) { Self::open_gguf(path) } else { Err(Error::NotAFolder { path: path.into() }) };
        }
        let files = Self::new(path.display().to_string(), Source::Folder(path.into()));
        if files.bytes(CONFIG)?.is_none() {
            let found = files.names()?;
            let models = || found.iter().filter(|name| is_gguf(Path::new(name)) && !name.starts_with(PROJECTOR));
            return match (models().next(), models().count()) {
                (Some(only), 1) => Self::open_gguf(&path.join(only)),
                _ => Err(Error::MissingConfig { found, label: files.label }),
            };
        }
        Ok(files)
    }

    fn new(label: String, source: Source) -> Self {
        Self { label, source, borrowed: Vec::new() }
    }

    fn open_gguf(path: &Path) -> Result<Self> {
        Self::from_gguf(path, &Gguf::parse(SharedBytes::open(path)?, &path.display().to_string())?)
    }

    pub(crate) fn from_gguf(path: &Path, gguf: &Gguf) -> Result<Self> {
        let model = Arc::new(GgufModel::new(gguf)?);
        Ok(Self::new(gguf.label().to_owned(), Source::Gguf { path: path.into(), model }))
    }

    /// Files built into the program: `(name, content)` pairs.
    pub fn embedded(label: &str, files: &'static [(&'static str, &'static [u8])]) -> Self {
        Self::new(label.into(), Source::Embedded(files))
    }

    /// Files made by the program: `(name, content)` pairs.
    pub fn in_memory(label: &str, files: Vec<(String, Vec<u8>)>) -> Self {
        let files = files.into_iter().map(|(name, bytes)| (name, SharedBytes::from(bytes)));
        Self::new(label.into(), Source::Memory(files.collect()))
    }

    /// The same files under a friendlier name, such as the model id they were resolved from.
    #[must_use]
    pub fn with_label(self, label: &str) -> Self {
        Self { label: label.into(), ..self }
    }

    /// The same files, with those of another folder in place of, or besides, the ones of the same names.
    #[must_use]
    pub(crate) fn with_borrowed(self, folder: &Path, names: &[&'static str]) -> Self {
        let there = names.iter().map(|&name| (name, folder.join(name))).filter(|(_, path)| path.is_file());
        Self { borrowed: there.collect(), ..self }
    }

    /// What to call this model in messages.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The folder or the GGUF file, if there is one.
    pub fn path(&self) -> Option<&Path> {
        match &self.source {
            Source::Folder(path) | Source::Gguf { path, .. } => Some(path),
            Source::Embedded(_) | Source::Memory(_) => None,
        }
    }

    /// The GGUF file these files come from.
    pub(crate) fn gguf(&self) -> Option<&GgufModel> {
        if let Source::Gguf { model, .. } = &self.source { Some(model) } else { None }
    }

    /// The names of all files at the top level and in [`PARTS`], sorted.
    ///
    /// # Errors
    /// [`Error::Io`] when the folder cannot be read.
    pub fn names(&self) -> Result<Vec<String>> {
        let mut names: Vec<String> = match &self.source {
            Source::Embedded(files) => files.iter().map(|(name, _)| (*name).to_string()).collect(),
            Source::Memory(files) => files.iter().map(|(name, _)| name.clone()).collect(),
            Source::Gguf { model, .. } => model.names().map(str::to_owned).collect(),
            Source::Folder(path) => {
                let mut names = names_in(path, "")?;
                for part in PARTS.iter().filter(|part| path.join(part).is_dir()) {
                    names.extend(names_in(&path.join(part), &format!("{part}/"))?);
                }
                names
            }
        };
        names.extend(self.borrowed.iter().map(|(name, _)| (*name).to_owned()));
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// The content of a file, mapped when it is large; `None` when there is none of that name.
    ///
    /// # Errors
    /// [`Error::UnsafeName`] for a name that leaves the folder, [`Error::BrokenLink`], [`Error::Io`].
    pub fn bytes(&self, name: &str) -> Result<Option<SharedBytes>> {
        let inside = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
        if !inside || name.is_empty() {
            return Err(Error::UnsafeName { label: self.label.clone(), name: name.into() });
        }
        if let Some(path) = self.borrowed(name) {
            return read(path.into());
        }
        match &self.source {
            Source::Embedded(files) => {
                Ok(files.iter().find(|(known, _)| *known == name).map(|(_, bytes)| SharedBytes::from(*bytes)))
            }
            Source::Memory(files) => Ok(files.iter().find(|(known, _)| known == name).map(|(_, bytes)| bytes.clone())),
            Source::Gguf { model, .. } => Ok(model.bytes(name)),
            Source::Folder(folder) => read(folder.join(name)),
        }
    }

    /// The content of a text file; `None` when there is none of that name.
    ///
    /// # Errors
    /// [`Error::NotUtf8`], and those of [`ModelFiles::bytes`].
    pub fn text(&self, name: &str) -> Result<Option<String>> {
        let Some(bytes) = self.bytes(name)? else { return Ok(None) };
        let text = String::from_utf8(bytes.to_vec()).map_err(|_| Error::NotUtf8 { file: self.label_of(name) })?;
        Ok(Some(text))
    }

    /// The content of a JSON file; `None` when there is none of that name.
    ///
    /// # Errors
    /// [`Error::NotJson`], and those of [`ModelFiles::bytes`].
    pub fn json(&self, name: &str) -> Result<Option<Value>> {
        let Some(bytes) = self.bytes(name)? else { return Ok(None) };
        let value =
            serde_json::from_slice(&bytes).map_err(|source| Error::NotJson { file: self.label_of(name), source })?;
        Ok(Some(value))
    }

    /// How messages name one of the files.
    pub fn label_of(&self, name: &str) -> String {
        if let Some(path) = self.borrowed(name) {
            return path.display().to_string();
        }
        match &self.source {
            Source::Folder(path) => path.join(name).display().to_string(),
            Source::Embedded(_) | Source::Memory(_) => format!("{}/{name}", self.label),
            // There is no such file, only metadata that say the same.
            Source::Gguf { path, .. } => path.display().to_string(),
        }
    }

    /// Where a file is, if it is another model's.
    fn borrowed(&self, name: &str) -> Option<&Path> {
        self.borrowed.iter().find(|(known, _)| *known == name).map(|(_, path)| path.as_path())
    }
}

/// The names of a folder's files, behind a prefix.
fn names_in(folder: &Path, prefix: &str) -> Result<Vec<String>> {
    let io_error = |source| Error::Io { path: folder.to_path_buf(), source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io_error)? {
        let entry = entry.map_err(io_error)?;
        // A broken link counts as a file: opening it will say what is wrong.
        if !entry.path().is_dir() {
            names.push(format!("{prefix}{}", entry.file_name().to_string_lossy()));
        }
    }
    Ok(names)
}

fn read(path: PathBuf) -> Result<Option<SharedBytes>> {
    match SharedBytes::open(&path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            if std::fs::symlink_metadata(&path).is_ok() { Err(Error::BrokenLink { path }) } else { Ok(None) }
        }
        Err(error) => Err(error),
    }
}

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// Folders whose files belong to a model, too.
pub const PARTS: &[&str] = &["additional_chat_templates", "qformer_tokenizer"];
/// The vision part of a model in two GGUF files.
const PROJECTOR: &str = "mmproj";
const CONFIG: &str = "config.json";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_and_embedded_files_read_alike() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("sub")).unwrap();
        std::fs::write(folder.path().join("config.json"), r#"{"a":1}"#).unwrap();
        std::fs::write(folder.path().join("sub/notes.txt"), "hi").unwrap();
        let on_disk = ModelFiles::open(folder.path()).unwrap().with_label("mine");
        let embedded = ModelFiles::embedded("mine", &[("config.json", br#"{"a":1}"#), ("sub/notes.txt", b"hi")]);
        for files in [&on_disk, &embedded] {
            assert_eq!(files.label(), "mine");
            assert_eq!(files.json("config.json").unwrap().unwrap()["a"], 1);
            assert_eq!(files.text("sub/notes.txt").unwrap().as_deref(), Some("hi"));
            assert!(files.bytes("missing").unwrap().is_none());
            assert!(files.text("missing").unwrap().is_none() && files.json("missing").unwrap().is_none());
        }
        assert_eq!(on_disk.names().unwrap(), ["config.json"]);
        assert_eq!((on_disk.path(), embedded.path()), (Some(folder.path()), None));
        assert_eq!(embedded.label_of("x"), "mine/x");
    }

    #[test]
    fn unsafe_names() {
        let files = ModelFiles::embedded("mine", &[]);
        for name in ["", "..", "../x", "/etc/passwd", "a/../../b", "./x"] {
            assert!(matches!(files.bytes(name), Err(Error::UnsafeName { .. })), "{name}");
        }
    }

    #[test]
    fn what_is_not_a_model_folder() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        assert!(matches!(ModelFiles::open(path("nowhere")), Err(Error::Io { .. })));
        std::fs::write(path("model.GGUF"), "").unwrap();
        std::fs::write(path("notes.txt"), "").unwrap();
        std::fs::write(path("other.gguf"), "").unwrap();
        let gguf = ModelFiles::open(path("model.GGUF")).unwrap_err();
        assert!(matches!(gguf, Error::BadGguf { .. }), "{gguf}");
        assert!(matches!(ModelFiles::open(path("notes.txt")), Err(Error::NotAFolder { .. })));
        let missing = ModelFiles::open(folder.path()).unwrap_err();
        assert!(
            missing.to_string().ends_with("has no config.json; it holds model.GGUF, notes.txt, other.gguf"),
            "{missing}"
        );
        assert!(missing.hint().unwrap().contains("one of the GGUF files"));
    }

    #[test]
    fn malformed_text() {
        let files = ModelFiles::embedded("mine", &[("a", b"\xff"), ("b", b"{")]);
        assert!(matches!(files.text("a"), Err(Error::NotUtf8 { file }) if file == "mine/a"));
        assert!(matches!(files.json("b"), Err(Error::NotJson { file, .. }) if file == "mine/b"));
    }

    #[cfg(unix)]
    #[test]
    fn broken_links_are_named() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), "{}").unwrap();
        std::os::unix::fs::symlink("gone", folder.path().join("model.safetensors")).unwrap();
        let files = ModelFiles::open(folder.path()).unwrap();
        assert!(matches!(files.bytes("model.safetensors"), Err(Error::BrokenLink { .. })));
        assert_eq!(files.names().unwrap(), ["config.json", "model.safetensors"]);
    }
}
