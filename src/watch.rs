//! The memory of all devices over time, as a stream of events.

use crate::devices::open_all;
use crate::event::{Event, Subscription, on_event};
use crate::{Error, holdings, human_bytes};
use halfbyte_backend::{Backend, Memory};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// One thing that a [`Watch`] tells.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum MemoryEvent {
    /// How it is now: once in each interval.
    Sample {
        /// Every device, the CPU first.
        devices: Vec<MemorySample>,
    },
    /// A device is running short: told once, and again after it had recovered.
    Warning {
        /// The device.
        device: String,
        /// What is left, in words.
        text: String,
    },
    /// What a model of this process did about a failure, or before one.
    Model(Event),
}

/// One device's memory. All figures are bytes.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct MemorySample {
    /// The device, as in `wgpu:0`.
    pub device: String,
    /// In all, where known. Devices that share the host's memory each count it.
    pub total_bytes: Option<u64>,
    /// Free now, where known.
    pub free_bytes: Option<u64>,
    /// Held by the models of this process, by purpose.
    pub ours: BTreeMap<String, u64>,
    /// Held by these together.
    pub ours_bytes: u64,
    /// What is neither free nor ours: other processes, and what drivers and programs take beside any model.
    pub others_bytes: Option<u64>,
    /// Where total and free come from.
    pub source: String,
}

/// Looks at all devices in intervals: an endless iterator of [`MemoryEvent`]s that waits for each.
///
/// ```no_run
/// use halfbyte::MemoryEvent;
/// # fn main() -> Result<(), halfbyte::Error> {
/// for event in halfbyte::watch(std::time::Duration::from_secs(1))? {
///     if let MemoryEvent::Warning { text, .. } = event {
///         eprintln!("{text}");
///     }
/// }
/// # Ok(())
/// # }
/// ```
pub struct Watch {
    backends: Vec<Rc<dyn Backend>>,
    /// Which devices are short.
    short: Vec<bool>,
    /// Warnings of the last look, the last first.
    warnings: Vec<MemoryEvent>,
    interval: Duration,
    next_look: Instant,
    models: Receiver<Event>,
    _subscription: Subscription,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("interval", &self.interval).finish_non_exhaustive()
    }
}

/// Watches the memory of all devices, looking at it once in each `interval`, the first time at once. What
/// the models of this process do about their memory comes between, as it happens.
///
/// # Errors
/// As [`devices`](crate::devices()).
pub fn watch(interval: Duration) -> Result<Watch, Error> {
    let backends = pollster::block_on(open_all(&crate::LoadOptions::default()))?.backends;
    let (send, models) = channel();
    let send = std::sync::Mutex::new(send);
    let subscription = on_event(move |event| {
        // The watch may be gone a moment before its subscription.
        let send = send.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        _ = send.send(event.clone());
    });
    Ok(Watch {
        short: vec![false; backends.len()],
        backends,
        warnings: Vec::new(),
        interval,
        next_look: Instant::now(),
        models,
        _subscription: subscription,
    })
}

impl Iterator for Watch {
    type Item = MemoryEvent;

    fn next(&mut self) -> Option<MemoryEvent> {
        if let Some(warning) = self.warnings.pop() {
            return Some(warning);
        }
        let wait = self.next_look.saturating_duration_since(Instant::now());
        if let Ok(event) = self.models.recv_timeout(wait) {
            return Some(MemoryEvent::Model(event));
        }
        self.next_look = Instant::now() + self.interval;
        Some(self.look())
    }
}

impl Watch {
    fn look(&mut self) -> MemoryEvent {
        let mut devices = Vec::with_capacity(self.backends.len());
        for (backend, short) in self.backends.iter().zip(&mut self.short) {
            let (name, memory) = (&backend.info().name, backend.memory());
            let warned = std::mem::replace(short, is_short(&memory, *short));
            if *short && !warned {
                let free = human_bytes(memory.free.unwrap_or(0));
                let total = memory.total.map_or_else(|| "?".into(), human_bytes);
                let text = format!("{name} is running short: {free} of {total} left");
                self.warnings.push(MemoryEvent::Warning { device: name.clone(), text });
            }
            devices.push(sample(name, memory));
        }
        MemoryEvent::Sample { devices }
    }
}

fn sample(device: &str, memory: Memory) -> MemorySample {
    let ours = holdings::on(device);
    let ours_bytes = ours.values().sum();
    let used = memory.total.zip(memory.free).map(|(total, free)| total.saturating_sub(free));
    MemorySample {
        device: device.to_owned(),
        total_bytes: memory.total,
        free_bytes: memory.free,
        ours: ours.into_iter().map(|(purpose, bytes)| (purpose.to_string(), bytes)).collect(),
        ours_bytes,
        others_bytes: used.map(|used| used.saturating_sub(ours_bytes)),
        source: memory.source,
    }
}

/// Whether a tenth or less is left; once that was so, until there is an eighth again.
fn is_short(memory: &Memory, was: bool) -> bool {
    let Some((total, free)) = memory.total.zip(memory.free) else { return false };
    free < if was { total / 8 } else { total / 10 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_has_hysteresis() {
        let memory = |free| Memory {
            pool: "host".into(),
            total: Some(1000),
            free: Some(free),
            source: "a test".into(),
        };
        let mut short = false;
        let found = [500, 101, 99, 110, 124, 126, 99].map(|free| {
            short = is_short(&memory(free), short);
            short
        });
        assert_eq!(found, [false, false, true, true, true, false, true]);
    }

    #[test]
    fn others_are_what_is_neither_free_nor_ours() {
        let memory =
            Memory { pool: "host".into(), total: Some(1000), free: Some(300), source: "a test".into() };
        let found = sample("a device without models", memory);
        assert_eq!((found.ours_bytes, found.others_bytes), (0, Some(700)));
    }
}
