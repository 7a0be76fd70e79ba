//! The heap of a process that loads models.
//!
//! Large buffers are asked for in ways whose failure comes back as a value ([`handled()`]). Strings and lists are not:
//! where they find no memory, Rust aborts. A program that makes [`Allocator`] its own ends with one line and exit code
//! 1 instead.
//!
//! ```
//! #[global_allocator]
//! static ALLOCATOR: halfbyte_allocation::Allocator = halfbyte_allocation::Allocator;
//!
//! halfbyte_allocation::share_arenas();
//! let buffer = halfbyte_allocation::handled(|| {
//!     let mut buffer = Vec::<u8>::new();
//!     buffer.try_reserve_exact(isize::MAX as usize).map(|()| buffer)
//! });
//! assert!(buffer.is_err());
//! ```

mod allocator;
mod glibc;
mod handled;

pub use allocator::Allocator;
pub use glibc::{release_unused, share_arenas};
pub use handled::{handled, is_handled};
