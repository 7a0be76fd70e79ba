//! What happened to a model's memory, told on stderr: at once, or where a text is being written, after it.

use crate::commands::say;
use std::sync::{Mutex, PoisonError};

/// Notes that wait, while somebody holds them back.
static HELD: Mutex<Option<Vec<String>>> = Mutex::new(None);

/// All events since [`install`].
static EVENTS: Mutex<Vec<halfbyte::Event>> = Mutex::new(Vec::new());

/// What has happened to any model of this command: what `--json` calls `events`.
pub fn events() -> Vec<halfbyte::Event> {
    EVENTS.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Tells every event from now on.
pub fn install() -> halfbyte::Subscription {
    halfbyte::on_event(|event| {
        EVENTS.lock().unwrap_or_else(PoisonError::into_inner).push(event.clone());
        let note = format!("note: {}", event.text);
        match HELD.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(held) => held.push(note),
            None => say(&note),
        }
    })
}

/// Holds notes back as long as it lives, then tells them.
pub struct Hold(());

/// Holds notes back, so that they do not stand in the middle of a text.
pub fn hold() -> Hold {
    HELD.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default();
    Hold(())
}

impl Drop for Hold {
    fn drop(&mut self) {
        let held = HELD.lock().unwrap_or_else(PoisonError::into_inner).take();
        held.into_iter().flatten().for_each(|note| say(&note));
    }
}
