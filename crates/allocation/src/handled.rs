//! Allocations whose failure somebody handles.

use std::cell::Cell;

thread_local! {
    /// Allocations under way on this thread whose failure is handled. Constant, without a destructor: an
    /// allocator may read it.
    static HANDLED: Cell<u32> = const { Cell::new(0) };
}

/// Runs `allocate`, whose failed allocations come back as values.
///
/// Rust's collections end the process when they find no memory, but for their `try_` methods. A program's
/// allocator that wants to end it with more than an abort, as [`Allocator`](crate::Allocator), must not do so here.
pub fn handled<T>(allocate: impl FnOnce() -> T) -> T {
    struct Guard;
    impl Drop for Guard {
        fn drop(&mut self) {
            HANDLED.set(HANDLED.get() - 1);
        }
    }
    HANDLED.set(HANDLED.get() + 1);
    let _guard = Guard;
    allocate()
}

/// Whether an allocation that fails now on this thread comes back as a value. Allocates nothing.
pub fn is_handled() -> bool {
    HANDLED.try_with(|handled| handled.get() > 0).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_within() {
        assert!(!is_handled());
        assert!(handled(|| handled(is_handled) && is_handled()));
        assert!(std::panic::catch_unwind(|| handled(|| panic!("a test"))).is_err());
        assert!(!is_handled());
    }
}
