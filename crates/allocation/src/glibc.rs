//! Settings of glibc's allocator, which is the system's on most Linux machines.

/// glibc reserves 64 MiB of address space for each thread's own arena. Where the address space is limited
/// (`ulimit -v`), all threads share one from now on. To be called before there are threads; does nothing on other
/// systems.
pub fn share_arenas() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        let mut limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
        // SAFETY: `getrlimit` writes to the structure that it is given; `mallopt` sets a number.
        unsafe {
            libc::getrlimit(libc::RLIMIT_AS, &mut limit);
            if limit.rlim_cur != libc::RLIM_INFINITY {
                libc::mallopt(libc::M_ARENA_MAX, 1);
            }
        }
    }
}

/// Gives the system back what the heaps of this process keep for later: pages that nothing lives on any more. glibc
/// returns by itself only what lies at a heap's end, and loading leaves tens of mebibytes below it: tensors in 16
/// bits, and what a driver needed to compile. Some milliseconds; does nothing on other systems.
pub fn release_unused() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: may be called at any time and from any thread; nothing that is in use is touched.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    use super::*;

    /// Anonymous memory of this process in KiB.
    fn anonymous() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches("kB").trim().parse().unwrap()
    }

    #[test]
    fn what_lies_below_something_in_use_is_given_back() {
        // 64 MiB in pieces that come from the heap, and one small piece above them that stays.
        let pieces: Vec<Vec<u8>> = (0..1024).map(|_| vec![1; 64 << 10]).collect();
        let above = std::hint::black_box(vec![1u8; 64]);
        drop(std::hint::black_box(pieces));
        let kept = anonymous();
        release_unused();
        let left = anonymous();
        println!("{kept} KiB, then {left} KiB");
        assert!(left + (32 << 10) < kept, "{kept} KiB, then {left} KiB");
        drop(above);
    }
}
