//! How many threads are worth having.

use std::collections::BTreeSet;
use std::path::Path;

/// Physical cores that this process may use, one at least. Two threads of one core share its arithmetic and gain
/// nothing where memory is the limit. The affinity of the process and the processor quota of its control group
/// are respected.
pub(crate) fn physical() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let cores = cores(&status, Path::new("/sys/devices/system/cpu"));
    if cores == 0 { allowed } else { allowed.min(cores) }
}

/// Distinct cores of the processors that `status` (of `/proc/self/status`) allows; 0 if that cannot be told.
fn cores(status: &str, cpus: &Path) -> usize {
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or_default();
    let mut cores = BTreeSet::new();
    for cpu in numbers(list) {
        let siblings = cpus.join(format!("cpu{cpu}/topology/thread_siblings_list"));
        match std::fs::read_to_string(siblings) {
            Ok(siblings) => cores.insert(siblings.trim().to_owned()),
            Err(_) => return 0,
        };
    }
    cores.len()
}

/// The numbers of a list like `0-3,8`.
fn numbers(list: &str) -> Vec<u32> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
    };
    list.split(',').filter_map(range).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn siblings_count_once_and_forbidden_cores_not_at_all() {
        let root = std::env::temp_dir().join(format!("halfbyte-cores-{}", std::process::id()));
        for (cpu, siblings) in [(0, "0,4\n"), (1, "1,5\n"), (2, "2,6\n"), (4, "0,4\n"), (5, "1,5\n")] {
            let folder = root.join(format!("cpu{cpu}/topology"));
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("thread_siblings_list"), siblings).unwrap();
        }
        let found = ["0-2,4-5", "0,4", "1", "0-9"]
            .map(|list| cores(&format!("Name: x\nCpus_allowed_list:\t{list}\nMems_allowed: 1\n"), &root));
        fs::remove_dir_all(root).unwrap();
        // Processor 3 has no entry: nothing can be said.
        assert_eq!(found, [3, 1, 1, 0]);
        assert!(physical() >= 1);
    }
}
