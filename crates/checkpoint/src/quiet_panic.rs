//! Panics of a library that are caught, and say nothing on stderr.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    /// Whether panics of this thread are expected just now.
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// Runs foreign code that may panic on damaged data; `None` if it did. Its words are not printed: other threads'
/// panics, and this one's at other times, still are, by the hook that was there before.
pub(crate) fn quietly<T>(run: impl FnOnce() -> T) -> Option<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |info| {
            if !EXPECTED.get() {
                before(info);
            }
        }));
    });
    let outer = EXPECTED.replace(true);
    // What was being changed when it panicked is not used again: the callers give up on it.
    let result = catch_unwind(AssertUnwindSafe(run));
    EXPECTED.set(outer);
    result.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_none_and_expectations_nest() {
        assert_eq!(quietly(|| 1), Some(1));
        assert_eq!(quietly(|| -> i32 { panic!("expected") }), None);
        assert!(!EXPECTED.get());
        assert_eq!(
            quietly(|| quietly(|| -> i32 { panic!("expected") }).is_none() && EXPECTED.get()),
            Some(true)
        );
    }
}
