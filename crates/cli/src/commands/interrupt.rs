//! Ctrl-C stops what is being generated; a second one before it has stopped ends the process.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

static PRESSED: AtomicBool = AtomicBool::new(false);
static INSTALLED: OnceLock<bool> = OnceLock::new();

/// Installs the handler once. Where that is not possible, Ctrl-C keeps its usual meaning.
pub fn install() {
    INSTALLED.get_or_init(|| {
        ctrlc::set_handler(|| {
            if PRESSED.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
        })
        .is_ok()
    });
}

/// Whether Ctrl-C was pressed since the last [`clear`].
pub fn pressed() -> bool {
    PRESSED.load(Ordering::SeqCst)
}

/// Forgets it.
pub fn clear() {
    PRESSED.store(false, Ordering::SeqCst);
}
