//! What the models of this process hold, device by device, for whoever watches.

use halfbyte_backend::Purpose;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Bytes by device and purpose.
pub(crate) type Held = BTreeMap<(String, Purpose), u64>;

/// Of each model.
static MODELS: Mutex<BTreeMap<u64, Held>> = Mutex::new(BTreeMap::new());

/// A model's entry; struck when it is dropped.
#[derive(Debug)]
pub(crate) struct Holding(u64);

impl Holding {
    /// A model that holds nothing yet.
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// What the model holds now.
    pub(crate) fn set(&self, held: Held) {
        MODELS.lock().unwrap_or_else(PoisonError::into_inner).insert(self.0, held);
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        MODELS.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// What all models of this process hold on `device`, by purpose.
pub(crate) fn on(device: &str) -> BTreeMap<Purpose, u64> {
    let models = MODELS.lock().unwrap_or_else(PoisonError::into_inner);
    let mut sum = BTreeMap::new();
    for ((_, purpose), bytes) in models.values().flatten().filter(|((on, _), _)| on == device) {
        *sum.entry(*purpose).or_insert(0) += bytes;
    }
    sum
}
