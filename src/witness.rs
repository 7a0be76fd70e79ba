//! An independent witness of memory: what the operating system says, beside what our ledger says.

/// Resident bytes of this process that are its own: anonymous memory, written pages, and memory files, which a
/// software GPU keeps its buffers in; without pages of mapped files, which the system can drop at any time. `None`
/// where the system does not tell.
pub fn private_resident() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        Some(field(&status, "RssAnon:")? + field(&status, "RssShmem:").unwrap_or(0))
    }
    #[cfg(not(target_os = "linux"))]
    {
        None
    }
}

/// The most bytes that were resident at once, mapped files included.
pub fn peak_resident() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        field(&status, "VmHWM:")
    }
    #[cfg(not(target_os = "linux"))]
    {
        None
    }
}

/// A field of `/proc/self/status`, which counts in KiB.
#[cfg(target_os = "linux")]
fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find(|line| line.starts_with(name))?;
    let kib: u64 = line[name.len()..].trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// Tests beside this one allocate and free as they like: one look of many is undisturbed.
    #[test]
    fn sees_an_allocation() {
        let looks = (0..100).map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(20));
            let before = private_resident().unwrap();
            let memory = std::hint::black_box(vec![1u8; 64 << 20]);
            let after = private_resident().unwrap();
            drop(memory);
            (before, after)
        });
        let seen =
            looks.filter(|(before, after)| *after >= before + (60 << 20)).map(|(_, after)| after).next();
        assert!(peak_resident().unwrap() >= seen.expect("64 MiB are never seen"));
    }
}
