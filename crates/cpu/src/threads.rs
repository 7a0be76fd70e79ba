//! How many threads are worth having.

use std::collections::BTreeSet;
use std::path::Path;

/// The most threads of a backend: four for each core of the largest servers. Room is made for each before it is started, so
/// that a number that cannot be meant would end the program.
pub(crate) const MOST: usize = 4096;

/// Physical cores that this process may use, one at least. Two threads of one core share its arithmetic and gain
/// nothing where memory is the limit. The affinity of the process and the processor quota of its control group
/// are respected. Where the system does not tell cores from threads (it is not Linux, or has no sysfs), threads.
pub(crate) fn physical() -> usize {
    // This knows the quota, and the affinity too, but counts threads.
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    fewer(allowed, cores(&status, Path::new("/sys/devices/system/cpu")))
}

/// Of `allowed` threads as many as there are `cores`; 0 cores are not known.
fn fewer(allowed: usize, cores: usize) -> usize {
    if cores == 0 { allowed } else { allowed.min(cores) }
}

/// Distinct cores of the processors that `status` (of `/proc/self/status`) allows; 0 if that cannot be told.
fn cores(status: &str, cpus: &Path) -> usize {
    let mut cores = BTreeSet::new();
    for cpu in numbers(allowed(status)) {
        let siblings = cpus.join(format!("cpu{cpu}/topology/thread_siblings_list"));
        match std::fs::read_to_string(siblings) {
            Ok(siblings) => cores.insert(siblings.trim().to_owned()),
            Err(_) => return 0,
        };
    }
    cores.len()
}

/// The list of processors that `status` (of `/proc/self/status`) allows; empty if it names none.
pub(crate) fn allowed(status: &str) -> &str {
    status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or_default()
}

/// The numbers of a list like `0-3,8`.
pub(crate) fn numbers(list: &str) -> Vec<u32> {
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

    /// Makes folders as sysfs has them for processors with these siblings, and counts the cores of each list of
    /// allowed processors.
    fn counted<const N: usize>(name: &str, siblings: &[(u32, &str)], lists: [&str; N]) -> [usize; N] {
        let root = std::env::temp_dir().join(format!("halfbyte-{name}-{}", std::process::id()));
        for (cpu, siblings) in siblings {
            let folder = root.join(format!("cpu{cpu}/topology"));
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("thread_siblings_list"), format!("{siblings}\n")).unwrap();
        }
        let found = lists
            .map(|list| cores(&format!("Name: x\nCpus_allowed_list:\t{list}\nMems_allowed: 1\n"), &root));
        fs::remove_dir_all(root).unwrap();
        found
    }

    #[test]
    fn siblings_count_once_and_forbidden_cores_not_at_all() {
        let siblings = [(0, "0,4"), (1, "1,5"), (2, "2,6"), (4, "0,4"), (5, "1,5")];
        // Processor 3 has no entry: nothing can be said.
        assert_eq!(counted("smt", &siblings, ["0-2,4-5", "0,4", "1", "0-9"]), [3, 1, 1, 0]);
        // Neighbours are siblings.
        let siblings = [(0, "0-1"), (1, "0-1"), (2, "2-3"), (3, "2-3")];
        assert_eq!(counted("pairs", &siblings, ["0-3", "0-1", "1-2"]), [2, 1, 2]);
        // Two large cores with two threads each, and four small ones.
        let siblings =
            [(0, "0-1"), (1, "0-1"), (2, "2-3"), (3, "2-3"), (4, "4"), (5, "5"), (6, "6"), (7, "7")];
        assert_eq!(counted("hybrid", &siblings, ["0-7", "4-7", "0-3"]), [6, 4, 2]);
        // Four threads a core.
        let siblings: Vec<(u32, &str)> =
            (0..8).map(|cpu| (cpu, if cpu < 4 { "0-3" } else { "4-7" })).collect();
        assert_eq!(counted("four", &siblings, ["0-7", "3-4", ""]), [2, 2, 0]);
    }

    #[test]
    fn a_number_that_cannot_be_meant_is_bounded() {
        let threads = |wanted| crate::CpuLayout::with_threads(wanted).threads();
        assert_eq!([0, 1, 7, MOST, MOST + 1, usize::MAX].map(threads), [1, 1, 7, MOST, MOST, MOST]);
    }

    #[test]
    fn a_quota_below_the_cores_counts() {
        assert_eq!(fewer(2, 8), 2);
        assert_eq!(fewer(16, 8), 8);
        // Unknown cores.
        assert_eq!(fewer(16, 0), 16);
        assert!(physical() >= 1);
    }
}
