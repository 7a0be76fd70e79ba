//! How idle a machine is that is measured on.

use std::fs::File;
use std::io::Write;

/// Where Linux takes the longest time, in µs, that processors may need to wake up.
const LATENCY: &str = "/dev/cpu_dma_latency";

/// What makes large pages of Linux's free memory.
const COMPACT: &str = "/proc/sys/vm/compact_memory";

/// Moves memory so that what is free lies in large pages again, for the weights of all sides. Where free memory was in
/// pieces, a third of halfbyte's weights lay in large pages, and read more slowly. Nothing happens where this may not be written.
pub fn compact_memory() {
    if let Ok(mut file) = File::options().write(true).open(COMPACT) {
        // A kernel that cannot leaves it as it is.
        let _ = file.write_all(b"1");
    }
}

/// Keeps processors from sleeping between steps and turns, as long as it lives.
pub struct Awake(#[expect(dead_code, reason = "the request lasts as long as the file is open")] File);

impl Awake {
    /// Asks for it.
    pub fn hold() -> Result<Self, String> {
        let denied = |error| format!("--awake needs to write {LATENCY} (Linux, root): {error}");
        let mut file = File::options().write(true).open(LATENCY).map_err(denied)?;
        file.write_all(&0_i32.to_ne_bytes()).map_err(denied)?;
        Ok(Self(file))
    }
}

/// Time of all processors since the start, in ticks.
#[derive(Clone, Copy)]
pub struct Ticks {
    all: u64,
    stolen: u64,
}

impl Ticks {
    /// As the kernel counts them; `None` where it doesn't.
    pub fn now() -> Option<Self> {
        Self::parse(&std::fs::read_to_string("/proc/stat").ok()?)
    }

    /// user, nice, system, idle, iowait, irq, softirq, steal
    fn parse(stat: &str) -> Option<Self> {
        let fields = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
        let ticks: Vec<u64> = fields.take(8).filter_map(|field| field.parse().ok()).collect();
        Some(Self { all: ticks.iter().sum(), stolen: *ticks.get(7)? })
    }

    /// The share of the processors' time since `before` that the host of a virtual machine gave to others.
    pub fn stolen_since(self, before: Self) -> f64 {
        let all = self.all.saturating_sub(before.all);
        self.stolen.saturating_sub(before.stolen) as f64 / all.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::Ticks;

    #[test]
    fn what_the_host_takes() {
        let parse = |text| Ticks::parse(text).unwrap();
        let before = parse("cpu  100 0 20 1000 5 0 0 10 7 0\ncpu0 1 2 3\n");
        let after = parse("cpu  160 0 40 1015 5 0 0 15 9 0\n");
        assert_eq!(after.stolen_since(before), 0.05);
        assert_eq!(after.stolen_since(after), 0.0);
        assert!(Ticks::parse("cpu  1 2\n").is_none() && Ticks::parse("intr 1\n").is_none());
    }
}
