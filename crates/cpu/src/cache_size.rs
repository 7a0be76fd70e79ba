//! How much this machine's caches hold: what measures memory must be larger.

use crate::threads::{allowed, numbers};
use std::collections::BTreeMap;
use std::path::Path;

/// Where the system does not tell: more than any processor of today holds that is no server's.
const ASSUMED: u64 = 128 << 20;

/// Bytes of all caches that this process's threads read through, each counted once, or an assumption that is rather
/// too high.
pub(crate) fn all() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    sum(allowed(&status), Path::new("/sys/devices/system/cpu")).filter(|&bytes| bytes > 0).unwrap_or(ASSUMED)
}

/// Bytes of the caches of these processors (a list as in `0-3,8`), as sysfs describes them.
fn sum(processors: &str, cpus: &Path) -> Option<u64> {
    let mut caches = BTreeMap::new();
    for cpu in numbers(processors) {
        for index in 0.. {
            let folder = cpus.join(format!("cpu{cpu}/cache/index{index}"));
            let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
            let Some(level) = read("level") else { break };
            if read("type")?.trim() != "Instruction" {
                caches.insert((level, read("shared_cpu_list")?), bytes(read("size")?.trim())?);
            }
        }
    }
    Some(caches.values().sum())
}

/// The bytes of a size as in `32768K`.
fn bytes(size: &str) -> Option<u64> {
    let (number, unit) = size.split_at(size.find(|c: char| !c.is_ascii_digit()).unwrap_or(size.len()));
    let shift = match unit {
        "" => 0,
        "K" => 10,
        "M" => 20,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn shared_caches_count_once_and_instructions_not_at_all() {
        let root = std::env::temp_dir().join(format!("halfbyte-caches-{}", std::process::id()));
        let cache = |cpu: u32, index: u32, [level, kind, size, shared]: [&str; 4]| {
            let folder = root.join(format!("cpu{cpu}/cache/index{index}"));
            fs::create_dir_all(&folder).unwrap();
            for (name, text) in
                [("level", level), ("type", kind), ("size", size), ("shared_cpu_list", shared)]
            {
                fs::write(folder.join(name), format!("{text}\n")).unwrap();
            }
        };
        for cpu in 0..4 {
            let own = cpu.to_string();
            cache(cpu, 0, ["1", "Data", "32K", &own]);
            cache(cpu, 1, ["1", "Instruction", "32K", &own]);
            cache(cpu, 2, ["2", "Unified", "1M", &own]);
            cache(cpu, 3, ["3", "Unified", "32768K", if cpu < 2 { "0-1" } else { "2-3" }]);
        }
        let all = |list| sum(list, &root);
        assert_eq!(all("0-3"), Some((128 << 10) + (4 << 20) + (64 << 20)));
        assert_eq!(all("0,1"), Some((64 << 10) + (2 << 20) + (32 << 20)));
        assert_eq!(all("7"), Some(0));
        cache(1, 3, ["3", "Unified", "much", "0-1"]);
        assert_eq!(all("0-3"), None);
        fs::remove_dir_all(root).unwrap();
    }
}
