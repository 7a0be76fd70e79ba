//! Whether a measurement was left alone.

use std::path::Path;

/// Part of the machine's processor time that others may take without spoiling a figure.
const ALLOWED: f64 = 0.15;

/// The longest of some equal runs may take this many times as long as the shortest.
const STEADY: f64 = 2.0;

/// Processor time since the start of the system, in ticks of the kernel's clock.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Ticks {
    total: u64,
    /// Of all processors, what nobody used.
    idle: u64,
    /// Of this process.
    own: u64,
}

impl Ticks {
    /// What the system says now (proc_stat(5), proc_pid_stat(5)); `None` where it does not.
    pub(super) fn now() -> Option<Self> {
        Self::read(Path::new("/proc"))
    }

    fn read(proc: &Path) -> Option<Self> {
        let all = std::fs::read_to_string(proc.join("stat")).ok()?;
        let numbers =
            |text: &str| -> Vec<u64> { text.split(' ').filter_map(|word| word.parse().ok()).collect() };
        // user, nice, system, idle, iowait, irq, softirq, steal: what follows is counted in these already.
        let all = numbers(all.lines().next()?.strip_prefix("cpu ")?);
        let own = std::fs::read_to_string(proc.join("self/stat")).ok()?;
        // The name, in brackets, may hold anything. Behind it the 12th and 13th field: user and system.
        let own: Vec<&str> = own.rsplit_once(')')?.1.split_whitespace().collect();
        let own = own.get(11)?.parse::<u64>().ok()? + own.get(12)?.parse::<u64>().ok()?;
        Some(Self { total: all.iter().take(8).sum(), idle: all.get(3)? + all.get(4)?, own })
    }

    /// Part of all processor time that others had since `before`, those beside a virtual machine included.
    fn others_since(&self, before: &Self) -> Option<f64> {
        let [total, idle, own] = [
            self.total.checked_sub(before.total)?,
            self.idle.saturating_sub(before.idle),
            self.own.saturating_sub(before.own),
        ];
        (total > 0).then(|| total.saturating_sub(idle + own) as f64 / total as f64)
    }
}

/// What disturbed a measurement between two looks at the clock, in which the longest of equal runs took `spread` times
/// as long as the shortest. A phrase that goes on after `while`.
pub(super) fn disturbed(before: Option<Ticks>, after: Option<Ticks>, spread: f64) -> Option<String> {
    let others = before.zip(after).and_then(|(before, after)| after.others_since(&before)).unwrap_or(0.0);
    if others > ALLOWED {
        return Some(format!("others had {:.0} % of the processors' time", others * 100.0));
    }
    (spread > STEADY).then(|| format!("equal runs took {spread:.1} times as long as each other"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(total: u64, idle: u64, own: u64) -> Option<Ticks> {
        Some(Ticks { total, idle, own })
    }

    #[test]
    fn others_disturb_and_our_own_work_does_not() {
        let before = ticks(1000, 500, 10);
        // 400 ticks, of which 380 are ours.
        assert_eq!(disturbed(before, ticks(1400, 505, 390), 1.2), None);
        // 200 of 400 are those of others.
        let why = disturbed(before, ticks(1400, 500, 210), 1.0).unwrap();
        assert!(why.contains("others had 50 %"), "{why}");
        // Half of the machine was idle.
        assert_eq!(disturbed(before, ticks(1400, 700, 210), 1.0), None);
        let why = disturbed(before, ticks(1400, 505, 390), 3.0).unwrap();
        assert!(why.contains("3.0 times as long"), "{why}");
        assert_eq!(disturbed(None, ticks(1, 1, 1), 1.0), None);
        assert_eq!(disturbed(before, before, 1.0), None, "no time has passed");
    }

    #[test]
    fn a_kernels_figures_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let proc = folder.path();
        std::fs::create_dir(proc.join("self")).unwrap();
        std::fs::write(proc.join("stat"), "cpu  10 1 5 100 4 0 2 8 3 0\ncpu0 5 0 2 50 2 0 1 4 1 0\n")
            .unwrap();
        std::fs::write(
            proc.join("self/stat"),
            "77 (half (by) te) S 1 77 77 0 -1 4194304 100 0 0 0 31 12 0 0 20 0 1 0 99 1000 50\n",
        )
        .unwrap();
        assert_eq!(Ticks::read(proc), ticks(130, 104, 43));
        assert_eq!(Ticks::read(&proc.join("self")), None);
    }
}
