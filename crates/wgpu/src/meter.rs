//! How much of the host's time is spent in the driver's calls: what is left is ours.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use web_time::Instant;

/// Adds up the time of wgpu's calls once it is on; until then a call costs one branch more.
#[derive(Debug, Clone, Default)]
pub(crate) struct Meter(Rc<Spent>);

#[derive(Debug, Default)]
struct Spent {
    on: Cell<bool>,
    time: Cell<Duration>,
}

impl Meter {
    /// Makes a call of the driver, or several.
    pub(crate) fn driver<T>(&self, call: impl FnOnce() -> T) -> T {
        if !self.0.on.get() {
            return call();
        }
        let start = Instant::now();
        let result = call();
        self.0.time.set(self.0.time.get() + start.elapsed());
        result
    }

    /// Whether calls are timed.
    pub(crate) fn is_on(&self) -> bool {
        self.0.on.get()
    }

    /// The time since this was asked last. The first time it is asked, it begins to count.
    pub(crate) fn take(&self) -> Duration {
        self.0.on.set(true);
        self.0.time.take()
    }
}
