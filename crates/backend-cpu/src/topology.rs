//! How many physical cores this process may use.
//!
//! Two hardware threads of one core share the units that multiply, so a second one only adds contention.

use std::collections::BTreeSet;
use std::fs;
use std::thread::available_parallelism;

/// Physical cores within the affinity mask and the quota of the process; at least one.
pub(crate) fn physical_cores() -> usize {
    // Heeds the affinity mask and the quota, but counts hardware threads.
    let usable = available_parallelism().map_or(1, usize::from);
    allowed_cores().map_or(usable, |cores| cores.clamp(1, usable))
}

/// Distinct cores among the allowed hardware threads, where the system tells.
fn allowed_cores() -> Option<usize> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let mut cores = BTreeSet::new();
    for cpu in cpu_list(list)? {
        let read = |name: &str| fs::read_to_string(format!("/sys/devices/system/cpu/cpu{cpu}/topology/{name}")).ok();
        cores.insert((read("physical_package_id")?, read("core_id")?));
    }
    Some(cores.len())
}

/// Numbers of a list like `0-2,5`.
fn cpu_list(list: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for range in list.trim().split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        cpus.extend(first.trim().parse::<usize>().ok()?..=last.trim().parse::<usize>().ok()?);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read() {
        assert_eq!(cpu_list("\t0-2,5\n"), Some(vec![0, 1, 2, 5]));
        assert_eq!(cpu_list("7"), Some(vec![7]));
        assert_eq!(cpu_list(""), Some(vec![]));
        assert_eq!(cpu_list("0-x"), None);
    }

    #[test]
    fn there_is_a_core() {
        let cores = physical_cores();
        assert!((1..=available_parallelism().unwrap().get()).contains(&cores), "{cores}");
    }
}
