//! The Hugging Face cache on this machine: where it is and what is in it. Path logic only, no network.
//!
//! Layout, shared with every tool of that family:
//! `<cache>/models--<org>--<name>/{refs/<revision>, snapshots/<commit>/<file>, blobs/<hash>}`, where a ref holds a
//! commit and a snapshot's files are links into `blobs` (plain files on systems without links).

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::borrowed::Borrowed;
use crate::checkpoint::weight_files;
use crate::error::{Error, Result};
use crate::files::ModelFiles;

/// One cache folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubCache {
    dir: PathBuf,
}

/// A model in the cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CachedModel {
    /// The model id, such as `org/name`.
    pub id: String,
    /// Its cached commits, sorted.
    pub revisions: Vec<CachedRevision>,
    /// Bytes on disk, files shared between revisions counted once.
    pub size_bytes: u64,
    /// The model's folder in the cache.
    pub path: PathBuf,
    /// Whether every revision is complete and no download was left unfinished.
    pub complete: bool,
    /// Why it is not complete, in a few words.
    pub problem: Option<String>,
}

/// One commit of a cached model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CachedRevision {
    /// The commit.
    pub commit: String,
    /// Branches and tags known to point at it.
    pub refs: Vec<String>,
    /// Its snapshot folder.
    pub path: PathBuf,
    /// Whether it has a configuration, all its weight files, and no broken links.
    pub complete: bool,
    /// Why it is not complete, in a few words; other tools also keep models here that ocelli does not read.
    pub problem: Option<String>,
}

/// The cache folder the environment asks for; see [`HubCache::locate`].
pub fn cache_dir() -> PathBuf {
    HubCache::from_env().dir
}

/// [`HubCache::resolve`] in the environment's cache.
///
/// # Errors
/// As [`HubCache::resolve`].
pub fn resolve(id: &str, revision: Option<&str>) -> Result<PathBuf> {
    HubCache::from_env().resolve(id, revision)
}

/// [`HubCache::list`] of the environment's cache.
///
/// # Errors
/// As [`HubCache::list`].
pub fn list() -> Result<Vec<CachedModel>> {
    HubCache::from_env().list()
}

/// [`HubCache::remove`] in the environment's cache.
///
/// # Errors
/// As [`HubCache::remove`].
pub fn remove(id: &str) -> Result<u64> {
    HubCache::from_env().remove(id)
}

/// [`HubCache::resolve_model`] with the environment's cache.
///
/// # Errors
/// As [`HubCache::resolve_model`].
pub fn resolve_model(spec: &str, revision: Option<&str>) -> Result<ModelFiles> {
    HubCache::from_env().resolve_model(spec, revision)
}

impl HubCache {
    /// The cache in this folder.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The cache this process's environment asks for.
    pub fn from_env() -> Self {
        Self::locate(|name| std::env::var_os(name))
    }

    /// The cache an environment asks for: `HF_HUB_CACHE`, else `HF_HOME/hub`, else
    /// `XDG_CACHE_HOME/huggingface/hub`, else `~/.cache/huggingface/hub`. Empty variables count as unset.
    pub fn locate(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let home_variable = if cfg!(windows) { "USERPROFILE" } else { "HOME" };
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let home = set(home_variable).map_or_else(|| PathBuf::from("."), PathBuf::from);
        let path = |name: &str| {
            let path = PathBuf::from(set(name)?);
            Some(path.strip_prefix("~").map(|rest| home.join(rest)).unwrap_or(path))
        };
        let dir = path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| Some(path("HF_HOME")?.join("hub")))
            .or_else(|| Some(path("XDG_CACHE_HOME")?.join("huggingface/hub")))
            .unwrap_or_else(|| home.join(".cache/huggingface/hub"));
        Self { dir }
    }

    /// The cache folder; it need not exist.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A model's folder in the cache; it need not exist.
    ///
    /// # Errors
    /// [`Error::BadModelId`].
    pub fn model_dir(&self, id: &str) -> Result<PathBuf> {
        if !is_model_id(id) {
            return Err(Error::BadModelId { id: id.into() });
        }
        Ok(self.dir.join(format!("{PREFIX}{}", id.replace('/', "--"))))
    }

    /// The snapshot folder of a model at a branch, a tag or a commit (also abbreviated to 7 digits or more);
    /// without a revision `main`, or the only snapshot there is.
    ///
    /// # Errors
    /// [`Error::BadModelId`], [`Error::NotInCache`], [`Error::RevisionNotInCache`].
    pub fn resolve(&self, id: &str, revision: Option<&str>) -> Result<PathBuf> {
        let model = self.model_dir(id)?;
        let revisions = revisions(&model)?;
        if revisions.is_empty() {
            return Err(Error::NotInCache { id: id.into(), cache: self.dir.clone() });
        }
        let wanted = revision.unwrap_or("main");
        let is_ref = |found: &&CachedRevision| found.refs.iter().any(|name| name == wanted);
        let is_commit = |found: &&CachedRevision| {
            let abbreviated = wanted.len() >= 7 && wanted.bytes().all(|byte| byte.is_ascii_hexdigit());
            found.commit == wanted || (abbreviated && found.commit.starts_with(wanted))
        };
        let found = revisions.iter().find(is_ref).or_else(|| revisions.iter().find(is_commit));
        match (found, revision, revisions.as_slice()) {
            (Some(found), ..) | (None, None, [found]) => Ok(found.path.clone()),
            _ => {
                let refs = revisions.iter().flat_map(|found| found.refs.iter().cloned());
                let cached = refs.chain(revisions.iter().map(|found| found.commit.clone())).collect();
                Err(Error::RevisionNotInCache { id: id.into(), revision: wanted.into(), cached })
            }
        }
    }

    /// Every model in the cache, sorted by id; empty when there is no cache.
    ///
    /// # Errors
    /// [`Error::Io`] when a folder cannot be read.
    pub fn list(&self) -> Result<Vec<CachedModel>> {
        let mut models = Vec::new();
        for path in entries(&self.dir)? {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let Some(id) = name.strip_prefix(PREFIX).map(|id| id.replacen("--", "/", 1)) else { continue };
            if !path.is_dir() {
                continue;
            }
            let revisions = revisions(&path)?;
            let unfinished = entries(&path.join("blobs"))?.iter().any(|blob| is_unfinished(blob));
            let problem = if unfinished || revisions.is_empty() {
                Some(UNFINISHED.to_string())
            } else {
                revisions.iter().find_map(|found| found.problem.clone())
            };
            let (size_bytes, complete) = (size_on_disk(&path)?, problem.is_none());
            models.push(CachedModel { id, revisions, size_bytes, path, complete, problem });
        }
        models.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(models)
    }

    /// Deletes a model, all revisions of it, and returns the bytes freed.
    ///
    /// # Errors
    /// [`Error::BadModelId`], [`Error::NotInCache`], [`Error::Io`].
    pub fn remove(&self, id: &str) -> Result<u64> {
        let path = self.model_dir(id)?;
        if !path.is_dir() {
            return Err(Error::NotInCache { id: id.into(), cache: self.dir.clone() });
        }
        let freed = size_on_disk(&path)?;
        std::fs::remove_dir_all(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
        let locks = self.dir.join(".locks").join(path.file_name().unwrap_or_default());
        // Lock files of other tools: worthless without the model, harmless if they stay.
        drop(std::fs::remove_dir_all(locks));
        Ok(freed)
    }

    /// With what the model takes from another one, if that is in the cache.
    fn with_borrowed(&self, files: ModelFiles) -> ModelFiles {
        let Some(borrowed) = Borrowed::by(&files) else { return files };
        match self.resolve(borrowed.from, None) {
            Ok(folder) => files.with_borrowed(&folder, borrowed.files),
            Err(_) => files,
        }
    }

    /// Finds a model: an existing folder (or a file in one), else a model id in the cache.
    ///
    /// # Errors
    /// Those of [`ModelFiles::open`] and [`HubCache::resolve`]; [`Error::ModelNotFound`] when `spec` is neither.
    pub fn resolve_model(&self, spec: &str, revision: Option<&str>) -> Result<ModelFiles> {
        let path = Path::new(spec);
        if path.is_dir() {
            return ModelFiles::open(path);
        }
        if path.is_file() {
            // Somebody points at model.safetensors or config.json: they mean the folder.
            let in_model = path.extension().is_some_and(|extension| extension == "safetensors" || extension == "json");
            let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            return ModelFiles::open(if in_model { folder } else { path });
        }
        if is_model_id(spec) && (spec.contains('/') || self.model_dir(spec)?.is_dir()) {
            let files = ModelFiles::open(self.resolve(spec, revision)?)?.with_label(spec);
            return Ok(self.with_borrowed(files));
        }
        let tried = vec![format!("no file or folder {spec}"), "not a model id such as `org/name`".into()];
        Err(Error::ModelNotFound { spec: spec.into(), tried })
    }
}

/// Whether the text has the form of a model id: `name` or `org/name` of letters, digits, `-`, `_` and `.`, neither
/// part starting or ending with `-` or `.`, without `--` or `..` (the cache's folder names rely on that).
pub fn is_model_id(text: &str) -> bool {
    let is_part = |part: &str| {
        let legal = part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        !part.is_empty() && legal && !part.starts_with(['-', '.']) && !part.ends_with(['-', '.'])
    };
    let n_parts = text.split('/').count();
    text.len() <= 96 && n_parts <= 2 && text.split('/').all(is_part) && !text.contains("--") && !text.contains("..")
}

/// Whether a blob's name marks a download that was not finished.
pub fn is_unfinished(blob: &Path) -> bool {
    let extension = blob.extension().unwrap_or_default();
    extension == "incomplete" || extension == "part" || extension == "sync"
}

/// The snapshots of a model's folder, sorted by commit.
fn revisions(model: &Path) -> Result<Vec<CachedRevision>> {
    let mut refs = Vec::new();
    collect_refs(&model.join("refs"), "", &mut refs)?;
    let mut revisions = Vec::new();
    for path in entries(&model.join("snapshots"))? {
        if !path.is_dir() {
            continue;
        }
        let commit = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let named = refs.iter().filter(|(_, target)| *target == commit).map(|(name, _)| name.clone()).collect();
        let problem = problem(&path);
        revisions.push(CachedRevision { commit, refs: named, complete: problem.is_none(), problem, path });
    }
    revisions.sort_by(|a, b| a.commit.cmp(&b.commit));
    Ok(revisions)
}

/// Refs as (name, commit); names may contain slashes, as `refs/pr/1` does.
fn collect_refs(folder: &Path, prefix: &str, refs: &mut Vec<(String, String)>) -> Result<()> {
    for path in entries(folder)? {
        let name = format!("{prefix}{}", path.file_name().unwrap_or_default().to_string_lossy());
        if path.is_dir() {
            collect_refs(&path, &format!("{name}/"), refs)?;
        } else if let Ok(commit) = std::fs::read_to_string(&path) {
            refs.push((name, commit.trim().to_string()));
        }
    }
    refs.sort();
    Ok(())
}

/// What a snapshot lacks.
fn problem(snapshot: &Path) -> Option<String> {
    let exists = |name: &String| snapshot.join(name).is_file();
    let found = ModelFiles::open(snapshot).and_then(|files| {
        let names = files.names()?;
        let (shards, _) = weight_files(&files)?;
        Ok(names.iter().chain(&shards).all(exists))
    });
    let problem = match found {
        Ok(true) => return None,
        Ok(false) | Err(Error::BrokenLink { .. }) => UNFINISHED,
        Err(Error::MissingConfig { .. }) => "no config.json",
        Err(Error::NoWeights { .. }) => "no safetensors",
        Err(_) => "unreadable",
    };
    Some(problem.into())
}

/// Bytes of all files below a folder; links are not followed, so a blob counts once.
fn size_on_disk(folder: &Path) -> Result<u64> {
    let mut total = 0;
    for path in entries(folder)? {
        let about = std::fs::symlink_metadata(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
        total += if about.is_dir() {
            size_on_disk(&path)?
        } else if about.is_file() {
            about.len()
        } else {
            0
        };
    }
    Ok(total)
}

/// The paths in a folder, sorted; none when the folder does not exist.
fn entries(folder: &Path) -> Result<BTreeSet<PathBuf>> {
    let io_error = |source| Error::Io { path: folder.to_path_buf(), source };
    match std::fs::read_dir(folder) {
        Ok(found) => found.map(|entry| Ok(entry.map_err(io_error)?.path())).collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(io_error(error)),
    }
}

const PREFIX: &str = "models--";
const UNFINISHED: &str = "unfinished";

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    /// A cache with `org/model` at [`COMMIT`], known as `main` and `refs/pr/1`.
    fn cache() -> (tempfile::TempDir, HubCache) {
        let folder = tempfile::tempdir().unwrap();
        let cache = HubCache::new(folder.path());
        let model = cache.model_dir("org/model").unwrap();
        write(&model.join("refs/main"), COMMIT);
        write(&model.join("refs/refs/pr/1"), &format!("{COMMIT}\n"));
        write(&model.join("snapshots").join(COMMIT).join("config.json"), "{}");
        write(&model.join("snapshots").join(COMMIT).join("model.safetensors"), "weights");
        (folder, cache)
    }

    fn write(path: &Path, text: &str) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn the_environment_decides_where() {
        let home = if cfg!(windows) { "USERPROFILE" } else { "HOME" };
        let locate = |set: &[(&str, &str)]| {
            let found = |name: &str| set.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
            HubCache::locate(found).dir
        };
        let all = [("HF_HUB_CACHE", "/a"), ("HF_HOME", "/b"), ("XDG_CACHE_HOME", "/c"), (home, "/h")];
        assert_eq!(locate(&all), Path::new("/a"));
        assert_eq!(locate(&all[1..]), Path::new("/b/hub"));
        assert_eq!(locate(&all[2..]), Path::new("/c/huggingface/hub"));
        assert_eq!(locate(&all[3..]), Path::new("/h/.cache/huggingface/hub"));
        assert_eq!(locate(&[("HF_HUB_CACHE", ""), (home, "/h")]), Path::new("/h/.cache/huggingface/hub"));
        assert_eq!(locate(&[("HF_HOME", "~/hf"), (home, "/h")]), Path::new("/h/hf/hub"));
        assert_eq!(locate(&[("HUGGINGFACE_HUB_CACHE", "/old"), (home, "/h")]), Path::new("/old"));
        assert_eq!(locate(&[]), Path::new("./.cache/huggingface/hub"));
        assert!(cache_dir().ends_with(HubCache::from_env().dir()));
    }

    #[test]
    fn model_ids() {
        for good in ["gpt2", "org/name", "HuggingFaceTB/SmolVLM2-2.2B-Instruct", "a_b/c.d"] {
            assert!(is_model_id(good), "{good}");
        }
        for bad in ["", "/", "a/", "/a", "a/b/c", "a--b/c", "../x", "a/..", ".a/b", "a/b.", "a b/c", "a\\b"] {
            assert!(!is_model_id(bad), "{bad}");
            assert!(matches!(HubCache::new("x").resolve(bad, None), Err(Error::BadModelId { .. })));
        }
    }

    #[test]
    fn resolves_refs_and_commits() {
        let (_folder, cache) = cache();
        let snapshot = cache.model_dir("org/model").unwrap().join("snapshots").join(COMMIT);
        for revision in [None, Some("main"), Some("refs/pr/1"), Some(COMMIT), Some(&COMMIT[..7])] {
            assert_eq!(cache.resolve("org/model", revision).unwrap(), snapshot, "{revision:?}");
        }
        let error = cache.resolve("org/model", Some("v2")).unwrap_err();
        let text = format!("org/model is in the cache, but not at revision `v2`; cached: main, refs/pr/1, {COMMIT}");
        assert_eq!(error.to_string(), text);
        assert_eq!(error.hint().unwrap(), "run `ocelli pull org/model --revision v2` first");
        assert!(cache.resolve("org/model", Some(&COMMIT[..6])).is_err(), "too short to be a commit");
    }

    #[test]
    fn a_pinned_download_is_found_without_naming_its_revision() {
        let (_folder, cache) = cache();
        std::fs::remove_dir_all(cache.model_dir("org/model").unwrap().join("refs")).unwrap();
        assert!(cache.resolve("org/model", None).is_ok());
        let other = cache.model_dir("org/model").unwrap().join("snapshots/ffff/config.json");
        write(&other, "{}");
        assert!(matches!(cache.resolve("org/model", None), Err(Error::RevisionNotInCache { .. })));
    }

    #[test]
    fn not_in_cache() {
        let (_folder, cache) = cache();
        let error = cache.resolve("org/other", None).unwrap_err();
        assert!(matches!(&error, Error::NotInCache { id, .. } if id == "org/other"));
        assert_eq!(error.hint().unwrap(), "run `ocelli pull org/other` first");
        assert!(matches!(cache.remove("org/other"), Err(Error::NotInCache { .. })));
    }

    #[test]
    fn lists_with_size_and_completeness() {
        let (folder, cache) = cache();
        write(&folder.path().join("datasets--org--data/refs/main"), COMMIT);
        write(&folder.path().join("models--stray-file"), "");
        let [model] = cache.list().unwrap().try_into().unwrap();
        assert_eq!((model.id.as_str(), model.size_bytes, model.complete), ("org/model", 9 + 40 + 41, true));
        let [revision] = model.revisions.try_into().unwrap();
        assert_eq!((revision.commit.as_str(), revision.refs), (COMMIT, vec!["main".into(), "refs/pr/1".into()]));
        write(&model.path.join("blobs/abc.incomplete"), "half");
        assert_eq!(cache.list().unwrap()[0].problem.as_deref(), Some("unfinished"));
        assert!(HubCache::new(folder.path().join("nowhere")).list().unwrap().is_empty());
    }

    #[test]
    fn a_snapshot_without_weights_or_configuration_is_incomplete() {
        let (_folder, cache) = cache();
        let snapshot = cache.resolve("org/model", None).unwrap();
        for (name, problem) in [("model.safetensors", "no safetensors"), ("config.json", "no config.json")] {
            std::fs::remove_file(snapshot.join(name)).unwrap();
            let listed = cache.list().unwrap().remove(0);
            assert_eq!((listed.complete, listed.problem.as_deref()), (false, Some(problem)));
        }
    }

    #[cfg(unix)]
    #[test]
    fn blobs_shared_by_links_count_once_and_broken_links_are_incomplete() {
        let (_folder, cache) = cache();
        let model = cache.model_dir("org/model").unwrap();
        let weights = model.join("snapshots").join(COMMIT).join("model.safetensors");
        std::fs::create_dir(model.join("blobs")).unwrap();
        std::fs::rename(&weights, model.join("blobs/hash")).unwrap();
        std::os::unix::fs::symlink("../../blobs/hash", &weights).unwrap();
        let listed = cache.list().unwrap().remove(0);
        assert_eq!((listed.size_bytes, listed.complete), (9 + 40 + 41, true));
        std::fs::remove_file(model.join("blobs/hash")).unwrap();
        assert!(!cache.list().unwrap()[0].complete);
    }

    #[test]
    fn removes_the_whole_model() {
        let (_folder, cache) = cache();
        assert_eq!(cache.remove("org/model").unwrap(), 90);
        assert!(cache.list().unwrap().is_empty());
    }

    #[test]
    fn what_is_borrowed_goes_before_the_model_s_own() {
        let (_folder, cache) = cache();
        let snapshot = |id: &str| {
            let path = cache.model_dir(id).unwrap().join("snapshots").join(COMMIT);
            std::fs::create_dir_all(&path).unwrap();
            path
        };
        let own = snapshot("vikhyatk/moondream2");
        write(&own.join("config.json"), r#"{"model_type":"moondream1"}"#);
        write(&own.join("versions.txt"), "2025-06-21");
        write(&own.join("tokenizer.json"), "stale");
        let open = || cache.resolve_model("vikhyatk/moondream2", None).unwrap();
        assert_eq!(open().text("tokenizer.json").unwrap().unwrap(), "stale");
        let other = snapshot("moondream/starmie-v1");
        write(&other.join("tokenizer.json"), "right");
        write(&other.join("config.json"), "another");
        let files = open();
        assert_eq!(files.text("tokenizer.json").unwrap().unwrap(), "right");
        assert_eq!(files.label_of("tokenizer.json"), other.join("tokenizer.json").display().to_string());
        assert!(files.text("config.json").unwrap().unwrap().contains("moondream1"));
        assert_eq!(files.names().unwrap(), ["config.json", "tokenizer.json", "versions.txt"]);
        // A folder is what it is.
        let folder = cache.resolve_model(own.to_str().unwrap(), None).unwrap();
        assert_eq!(folder.text("tokenizer.json").unwrap().unwrap(), "stale");
    }

    #[test]
    fn a_model_is_a_folder_a_file_in_it_or_an_id() {
        let (_folder, cache) = cache();
        let snapshot = cache.resolve("org/model", None).unwrap();
        let open = |spec: &str| cache.resolve_model(spec, None);
        assert_eq!(open("org/model").unwrap().label(), "org/model");
        for spec in [snapshot.clone(), snapshot.join("config.json"), snapshot.join("model.safetensors")] {
            assert_eq!(open(spec.to_str().unwrap()).unwrap().path(), Some(snapshot.as_path()));
        }
        write(&snapshot.join("model.gguf"), "");
        assert!(matches!(open(snapshot.join("model.gguf").to_str().unwrap()), Err(Error::BadGguf { .. })));
        assert!(matches!(open("org/other"), Err(Error::NotInCache { .. })));
        for spec in ["nowhere", "./models/x", "/no/such/folder"] {
            let error = open(spec).unwrap_err();
            assert!(matches!(&error, Error::ModelNotFound { .. }), "{error}");
            assert!(error.to_string().starts_with(&format!("no model `{spec}`: no file or folder {spec}")));
        }
    }
}
