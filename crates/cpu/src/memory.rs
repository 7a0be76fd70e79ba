//! How much memory the host has, as the kernel that would kill us counts it.

use halfbyte_backend::{Ledger, Memory};
use std::cell::RefCell;
use std::path::Path;
use std::rc::{Rc, Weak};

/// Devices that share the host's memory name this pool.
const POOL: &str = "host";

/// Bytes of a limited address space that are left to small allocations and to the arenas of threads: where
/// one of these fails, it ends the process.
const ADDRESS_RESERVE: u64 = 32 << 20;

/// The host's memory, and what the backends that share it hold of it.
#[derive(Debug, Default)]
pub(crate) struct Host {
    limit: Option<u64>,
    ledgers: RefCell<Vec<Weak<Ledger>>>,
}

impl Host {
    /// At most `limit` bytes of the host's memory, for all backends together.
    pub fn new(limit: Option<u64>) -> Self {
        Self { limit, ledgers: RefCell::default() }
    }

    /// The limit that was set.
    pub fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// A ledger for one more backend.
    pub fn ledger(&self) -> Rc<Ledger> {
        let ledger = Rc::new(Ledger::new());
        self.ledgers.borrow_mut().push(Rc::downgrade(&ledger));
        ledger
    }

    /// What there is now.
    pub fn memory(&self) -> Memory {
        let ledgers = self.ledgers.borrow();
        let held = ledgers.iter().filter_map(Weak::upgrade).map(|ledger| ledger.footprint().total());
        host(self.limit, held.sum())
    }
}

/// The host's memory: the smallest of what Linux says is available, what the control group of this process
/// leaves, and what the limit of its address space leaves. `limit` and `held` cap it further: no more than
/// `limit` bytes in all, of which `held`
/// are in use.
pub(crate) fn host(limit: Option<u64>, held: u64) -> Memory {
    let mut memory = system(Path::new("/proc"), Path::new("/sys/fs/cgroup"));
    if let Some(limit) = limit {
        memory.total = Some(memory.total.map_or(limit, |total| total.min(limit)));
        let left = limit.saturating_sub(held);
        memory.free = Some(memory.free.map_or(left, |free| free.min(left)));
        memory.source.push_str(" and a limit that was set");
    }
    memory
}

fn system(proc: &Path, cgroup: &Path) -> Memory {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    let Some(meminfo) = read(&proc.join("meminfo")) else {
        return Memory { pool: POOL.into(), total: None, free: None, source: "unknown".into() };
    };
    let mut memory = Memory {
        pool: POOL.into(),
        total: kibibytes(&meminfo, "MemTotal:"),
        free: kibibytes(&meminfo, "MemAvailable:"),
        source: "/proc/meminfo".into(),
    };
    if let Some((limit, used)) = address_space(proc) {
        let free = limit.saturating_sub(used).saturating_sub(ADDRESS_RESERVE);
        memory.total = Some(memory.total.map_or(limit, |total| total.min(limit)));
        if memory.free.is_none_or(|known| free < known) {
            memory.free = Some(free);
            memory.source = "the limit of address space (ulimit -v)".into();
        }
    }
    let groups = read(&proc.join("self/cgroup")).unwrap_or_default();
    for (limit, used) in groups.lines().flat_map(|line| group_limits(line, cgroup)) {
        let free = limit.saturating_sub(used);
        if memory.total.is_none_or(|total| limit < total) {
            memory.total = Some(limit);
        }
        if memory.free.is_none_or(|known| free < known) {
            memory.free = Some(free);
            memory.source = "the control group's limit".into();
        }
    }
    memory
}

/// Bytes of address space that this process may still take, where it is limited (`ulimit -v`).
pub fn address_space_left() -> Option<u64> {
    let (limit, used) = address_space(Path::new("/proc"))?;
    Some(limit.saturating_sub(used))
}

/// The limit of this process's address space (RLIMIT_AS) and what it has of it, in bytes, if it is limited.
fn address_space(proc: &Path) -> Option<(u64, u64)> {
    let limits = std::fs::read_to_string(proc.join("self/limits")).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    let limit = line.split_whitespace().next()?.parse().ok()?;
    let status = std::fs::read_to_string(proc.join("self/status")).ok()?;
    Some((limit, kibibytes(&status, "VmSize:")?))
}

/// The value of a line of /proc/meminfo, in bytes.
fn kibibytes(meminfo: &str, key: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Limits and usage in bytes of the group in a line of /proc/self/cgroup (`id:controllers:path`), and of
/// all groups above it. Page cache does not count as used, as in MemAvailable: the kernel drops it first.
fn group_limits(line: &str, cgroup: &Path) -> Vec<(u64, u64)> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { return Vec::new() };
    let (root, limit, used, cached) = if controllers.is_empty() {
        (cgroup.to_path_buf(), "memory.max", "memory.current", ["inactive_file ", "active_file "])
    } else if controllers.split(',').any(|name| name == "memory") {
        let root = cgroup.join("memory");
        (
            root,
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            ["total_inactive_file ", "total_active_file "],
        )
    } else {
        return Vec::new();
    };
    let mut found = Vec::new();
    let mut folder = root.join(path.trim_start_matches('/'));
    while folder.starts_with(&root) {
        let number = |name| {
            let text = std::fs::read_to_string(folder.join(name)).ok()?;
            text.trim().parse::<u64>().ok()
        };
        if let (Some(limit), Some(used)) = (number(limit), number(used)) {
            let stat = std::fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
            let bytes = |name: &str| -> Option<u64> {
                stat.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
            };
            let dropped: u64 = cached.into_iter().filter_map(bytes).sum();
            found.push((limit, used.saturating_sub(dropped)));
        }
        if !folder.pop() {
            break;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A folder that looks like /proc and /sys/fs/cgroup to [`system`].
    fn host_with(groups: &str, files: &[(&str, &str)]) -> Memory {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let root = std::env::temp_dir().join(format!("halfbyte-memory-{}-{count}", std::process::id()));
        fs::create_dir_all(root.join("proc/self")).unwrap();
        fs::write(root.join("proc/meminfo"), "MemTotal: 1000 kB\nMemAvailable:   800 kB\n").unwrap();
        fs::write(root.join("proc/self/cgroup"), groups).unwrap();
        for (path, text) in files {
            let path = root.join("cgroup").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let memory = system(&root.join("proc"), &root.join("cgroup"));
        fs::remove_dir_all(root).unwrap();
        memory
    }

    #[test]
    fn no_group_means_meminfo() {
        let memory = host_with("0::/\n", &[]);
        assert_eq!((memory.total, memory.free), (Some(1_024_000), Some(819_200)));
    }

    #[test]
    fn version_2_takes_the_tightest_group_and_discounts_dropped_cache() {
        let files = [
            ("a/memory.max", "max\n"),
            ("a/memory.current", "5\n"),
            ("a/b/memory.max", "500000\n"),
            ("a/b/memory.current", "300000\n"),
            ("a/b/memory.stat", "anon 5\ninactive_file 60000\nactive_file 40000\n"),
        ];
        let memory = host_with("0::/a/b\n", &files);
        assert_eq!((memory.total, memory.free), (Some(500_000), Some(300_000)));
    }

    #[test]
    fn version_1_reads_its_own_files() {
        let files = [
            ("memory/x/memory.limit_in_bytes", "400000\n"),
            ("memory/x/memory.usage_in_bytes", "100000\n"),
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory/memory.usage_in_bytes", "100000\n"),
        ];
        let memory = host_with("4:cpu:/y\n3:memory:/x\n", &files);
        assert_eq!((memory.total, memory.free), (Some(400_000), Some(300_000)));
    }

    #[test]
    fn a_limit_of_address_space_counts() {
        let files = [
            (
                "../proc/self/limits",
                "Limit  Soft Limit  Hard Limit  Units\nMax address space   100000000  unlimited  bytes\n",
            ),
            ("../proc/self/status", "VmPeak: 70000 kB\nVmSize: 60000 kB\n"),
            ("../proc/meminfo", "MemTotal: 900000 kB\nMemAvailable: 800000 kB\n"),
        ];
        let memory = host_with("0::/\n", &files);
        let left = 100_000_000 - 60_000 * 1024 - ADDRESS_RESERVE;
        assert_eq!((memory.total, memory.free), (Some(100_000_000), Some(left)));
        let unlimited = [("../proc/self/limits", "Max address space   unlimited  unlimited  bytes\n")];
        assert_eq!(host_with("0::/\n", &unlimited).free, Some(819_200));
    }

    #[test]
    fn a_limit_caps_what_is_free() {
        let memory = host(Some(1000), 300);
        assert_eq!((memory.total, memory.free), (Some(1000), Some(700)));
    }
}
