//! Ctrl-C stops what is being generated; a second one before it has stopped ends the process.

use super::say;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

static PRESSED: AtomicBool = AtomicBool::new(false);
static WAITING: AtomicBool = AtomicBool::new(false);
static INSTALLED: OnceLock<bool> = OnceLock::new();

/// Installs the handler once. Where that is not possible, Ctrl-C keeps its usual meaning.
pub fn install() {
    INSTALLED.get_or_init(|| {
        ctrlc::set_handler(|| {
            if PRESSED.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
            if WAITING.load(Ordering::SeqCst) {
                say("\nCtrl-C again, Ctrl-D or /exit ends");
            }
        })
        .is_ok()
    });
}

/// Whether Ctrl-C was pressed since [`install`] or the last [`waiting`].
pub fn pressed() -> bool {
    PRESSED.load(Ordering::SeqCst)
}

/// Reads with `read`, while which nothing is generated: a Ctrl-C is told what it does, and forgotten.
pub fn waiting<T>(read: impl FnOnce() -> T) -> T {
    PRESSED.store(false, Ordering::SeqCst);
    WAITING.store(true, Ordering::SeqCst);
    let found = read();
    WAITING.store(false, Ordering::SeqCst);
    PRESSED.store(false, Ordering::SeqCst);
    found
}
