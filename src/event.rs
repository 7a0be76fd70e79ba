//! What happened to a model's memory that was not planned, and who is told of it.

use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Something that was not planned.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Event {
    /// The device where it happened.
    pub device: String,
    /// What kind of thing it was.
    pub kind: EventKind,
    /// What happened, and what was done about it.
    pub text: String,
}

/// Kinds of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// An allocation failed: less is done at once, or blocks moved.
    OutOfMemory,
    /// The device was lost: it was opened again, or is done without.
    DeviceLost,
    /// Others took memory: blocks moved out before an allocation failed.
    MemoryShort,
    /// Memory is free again: blocks came back.
    MemoryBack,
    /// Nothing else fitted: this request was refused.
    Refused,
}

type Observer = dyn Fn(&Event) + Send + Sync;

/// Who is told. Few come and go, so a list will do.
static OBSERVERS: Mutex<Vec<Weak<Observer>>> = Mutex::new(Vec::new());

/// As long as it lives, its observer is told.
#[must_use = "the observer is told as long as this lives"]
pub struct Subscription(#[expect(dead_code, reason = "kept alive for the list's sake")] Arc<Observer>);

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Subscription")
    }
}

/// Tells `observer` of every [`Event`] of every model of this process, as it happens and on the thread where
/// it happens, until the subscription is dropped.
///
/// ```
/// let subscription = halfbyte::on_event(|event| eprintln!("note: {}", event.text));
/// # drop(subscription);
/// ```
pub fn on_event(observer: impl Fn(&Event) + Send + Sync + 'static) -> Subscription {
    let observer: Arc<Observer> = Arc::new(observer);
    let mut observers = OBSERVERS.lock().unwrap_or_else(PoisonError::into_inner);
    observers.retain(|one| one.strong_count() > 0);
    observers.push(Arc::downgrade(&observer));
    Subscription(observer)
}

/// Tells everyone.
pub(crate) fn publish(event: &Event) {
    tracing::info!(device = event.device, "{}", event.text);
    // Observers may subscribe or drop their subscription: the list is not locked while they are told.
    let observers: Vec<_> = {
        let observers = OBSERVERS.lock().unwrap_or_else(PoisonError::into_inner);
        observers.iter().filter_map(Weak::upgrade).collect()
    };
    for observer in observers {
        observer(event);
    }
}
