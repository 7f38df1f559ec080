//! Files that are read again from the disk, for loads as after the start of the machine.

use std::path::PathBuf;

use ocelli_formats::ModelFiles;

use crate::options::EngineOptions;

/// Asks the system to drop what it holds in memory of a model's files and of packed weights; whether it could be asked.
/// What is mapped stays: call it while no model is loaded.
pub(crate) fn forget(files: &ModelFiles, options: &EngineOptions) -> bool {
    let Some(folder) = files.path() else { return false };
    let mut paths: Vec<PathBuf> = files.names().unwrap_or_default().iter().map(|name| folder.join(name)).collect();
    // All packed weights, also of other models: which ones this model has is nobody's business but the cache's.
    let packed = options.pack_cache.as_ref().and_then(|cache| std::fs::read_dir(&cache.folder).ok());
    paths.extend(packed.into_iter().flatten().flatten().map(|entry| entry.path()).filter(|path| path.is_file()));
    paths.iter().all(forget_file)
}

#[cfg(target_os = "linux")]
fn forget_file(path: &PathBuf) -> bool {
    let Ok(file) = std::fs::File::open(path) else { return false };
    // A file that was just written cannot be dropped before it is on the disk.
    _ = file.sync_data();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).is_ok()
}

#[cfg(not(target_os = "linux"))]
fn forget_file(_: &PathBuf) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_on_a_disk_can_be_forgotten() {
        let options = EngineOptions::new();
        assert!(!forget(&crate::demo::files(), &options), "files inside the program are always in memory");
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), "{}").unwrap();
        let files = ModelFiles::open(folder.path()).unwrap();
        assert_eq!(forget(&files, &options), cfg!(target_os = "linux"));
        assert_eq!(files.text("config.json").unwrap().as_deref(), Some("{}"));
    }
}
