//! How much memory there is, asked before it is spent: the system's estimate and the limits of control groups.
//!
//! Pages of mapped files (weights) can be dropped by the system at any time, so both sources count them as available.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// What an engine may spend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoryBudget {
    /// Bytes for weights and cache together, if the user set a limit.
    limit: Option<u64>,
    weight_bytes: u64,
}

impl MemoryBudget {
    pub(crate) fn new(limit: Option<u64>, weight_bytes: u64) -> Self {
        Self { limit, weight_bytes }
    }

    /// Checks that the weights fit; `could_be_smaller` if they could be held in fewer bits.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(crate) fn check_weights(&self, label: &str, could_be_smaller: bool) -> Result<()> {
        let advice = if could_be_smaller {
            "load it with --quant q4, close other programs, or use a smaller model"
        } else {
            "close other programs or use a smaller model"
        };
        fits(&format!("the weights of {label}"), self.weight_bytes, self.limit.or_else(available), advice)
    }

    /// Checks that `bytes` more fit beside the weights and `spent` bytes of cache.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(crate) fn check_cache(&self, tokens: usize, bytes: u64, spent: u64) -> Result<()> {
        let left = self.limit.map(|limit| limit.saturating_sub(self.weight_bytes).saturating_sub(spent));
        let advice = "lower max_tokens or num_beams, close other programs, or use a smaller model";
        fits(&format!("keys and values of {tokens} tokens"), bytes, left.or_else(available), advice)
    }
}

fn fits(what: &str, needed: u64, available: Option<u64>, advice: &'static str) -> Result<()> {
    match available {
        Some(available) if needed > available => {
            Err(Error::OutOfMemory { what: what.to_owned(), needed, available, advice })
        }
        _ => Ok(()),
    }
}

/// Bytes this process may still use; `None` where the system does not say.
pub fn available() -> Option<u64> {
    let system = read("/proc/meminfo").and_then(|text| mem_available(&text));
    let groups = read("/proc/self/cgroup").map(|text| group_folders(&text)).unwrap_or_default();
    let groups = groups.iter().filter_map(|folder| left_in_group(folder));
    system.into_iter().chain(groups).min()
}

/// `MemAvailable` of `/proc/meminfo`, in bytes.
fn mem_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// The folders of this process's memory groups (versions 1 and 2), every ancestor included: each may hold a limit.
fn group_folders(cgroup: &str) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for line in cgroup.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let root = match controllers {
            "" => Path::new("/sys/fs/cgroup"),
            named if named.split(',').any(|name| name == "memory") => Path::new("/sys/fs/cgroup/memory"),
            _ => continue,
        };
        // Inside a container the path may name folders of the host; the root then holds the container's own limit.
        let folder = root.join(path.trim_start_matches('/'));
        folders.extend(folder.ancestors().take_while(|folder| folder.starts_with(root)).map(Path::to_path_buf));
    }
    folders
}

/// Limit minus use of one group, file pages not counted as use.
fn left_in_group(folder: &Path) -> Option<u64> {
    let number = |name: &str| read(folder.join(name))?.trim().parse::<u64>().ok();
    let limit = number("memory.max").or_else(|| number("memory.limit_in_bytes"))?;
    let used = number("memory.current").or_else(|| number("memory.usage_in_bytes"))?;
    let file = read(folder.join("memory.stat")).map_or(0, |stat| file_pages(&stat));
    Some(limit.saturating_sub(used.saturating_sub(file)))
}

/// Bytes of file pages in a group's `memory.stat`.
fn file_pages(stat: &str) -> u64 {
    let value = |key: &str| stat.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok());
    ["inactive_file ", "active_file "].iter().filter_map(|key| value(key)).sum()
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_linux_says() {
        let meminfo = "MemTotal:       24000000 kB\nMemFree: 1 kB\nMemAvailable:   1000 kB\n";
        assert_eq!(mem_available(meminfo), Some(1_024_000));
        assert_eq!(mem_available("MemTotal: 1 kB\n"), None);
        assert_eq!(file_pages("anon 5\ninactive_file 10\nactive_file 20\n"), 30);
        let folders = group_folders("5:cpu,memory:/a\n4:cpu:/x\n0::/b/c\n");
        let expected = [
            "/sys/fs/cgroup/memory/a",
            "/sys/fs/cgroup/memory",
            "/sys/fs/cgroup/b/c",
            "/sys/fs/cgroup/b",
            "/sys/fs/cgroup",
        ];
        assert_eq!(folders, expected.map(PathBuf::from));
    }

    #[test]
    fn a_group_leaves_its_limit_minus_what_is_used() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("memory.max", "max\n");
        write("memory.current", "500\n");
        assert_eq!(left_in_group(folder.path()), None);
        write("memory.max", "1000\n");
        write("memory.stat", "inactive_file 200\n");
        assert_eq!(left_in_group(folder.path()), Some(700));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_numbers() {
        let budget = MemoryBudget::new(Some(100 << 20), 60 << 20);
        budget.check_weights("tiny", false).unwrap();
        budget.check_cache(10, 30 << 20, 10 << 20).unwrap();
        let error = budget.check_cache(99, 31 << 20, 10 << 20).unwrap_err();
        assert_eq!(
            error.to_string(),
            "keys and values of 99 tokens need 31 MiB, but only 30 MiB of memory is available"
        );
        let error = MemoryBudget::new(Some(50 << 20), 60 << 20).check_weights("tiny", true).unwrap_err();
        assert_eq!(error.to_string(), "the weights of tiny need 60 MiB, but only 50 MiB of memory is available");
        assert!(error.hint().unwrap().contains("--quant q4"));
    }
}
