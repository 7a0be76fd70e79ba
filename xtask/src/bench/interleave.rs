//! Sides that run at the same time, of which one runs while the others are stopped.
//!
//! Where a machine's speed changes within seconds, turns of whole processes meet different machines. Windows of a second
//! or two share what they meet; a figure is the median of many repeats, of which the few that were stopped in their
//! middle are the slowest.

use super::BenchArgs;
use super::report::Figure;
use super::side::Side;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How often a running side is looked at: whether it has ended.
const LOOK: Duration = Duration::from_millis(10);

/// One turn of all sides, in windows of `window`: the figures of each.
pub fn measure(
    sides: &[Side],
    args: &BenchArgs,
    window: Duration,
) -> Result<Vec<Vec<(Figure, f64)>>, String> {
    let mut running = Vec::new();
    for side in sides {
        let calls = side.calls(args);
        let [call] = calls.as_slice() else {
            return Err("--interleave measures prompts or decoding: give -p 0 or -n 0".into());
        };
        let child = Stopped::new(call.start(args.threads, Stdio::inherit())?);
        child.signal("STOP")?;
        running.push((side, calls, child));
    }
    let mut order: Vec<usize> = (0..running.len()).collect();
    while running.iter_mut().any(|(_, _, child)| !child.ended()) {
        for &index in &order {
            let child = &mut running[index].2;
            if child.ended() {
                continue;
            }
            child.signal("CONT")?;
            let start = Instant::now();
            while start.elapsed() < window && !child.ended() {
                std::thread::sleep(LOOK);
            }
            if !child.ended() {
                child.signal("STOP")?;
            }
        }
        order.reverse();
    }
    running
        .into_iter()
        .map(|(side, calls, child)| side.figures(args, &calls[0].result(child.into_inner()?)?))
        .collect()
}

/// A process that is not left behind, stopped or not.
struct Stopped(Option<Child>);

impl Stopped {
    fn new(child: Child) -> Self {
        Self(Some(child))
    }

    fn signal(&self, name: &str) -> Result<(), String> {
        let Some(child) = &self.0 else { return Ok(()) };
        let status = Command::new("kill").args([format!("-{name}"), child.id().to_string()]).status();
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("kill -{name}: {status}")),
            Err(error) => Err(format!("--interleave stops processes by `kill`: {error}")),
        }
    }

    fn ended(&mut self) -> bool {
        self.0.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)))
    }

    fn into_inner(mut self) -> Result<Child, String> {
        self.0.take().ok_or_else(|| "a side has ended twice".into())
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // A stopped process dies of this, too.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
