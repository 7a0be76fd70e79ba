//! The system's allocator, with an end that people understand where memory for something small is gone.
//!
//! Large buffers are asked for in ways that can fail, and their failure climbs down the ladder. Strings and
//! lists are not: where they find no memory, Rust aborts the process. Here it ends with one line and exit code
//! 1 instead.

use crate::is_handled;
use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

/// The system's allocator. Where memory for something whose failure nobody handles is gone, it ends the process with
/// one line on stderr and exit code 1, where Rust would abort; on systems other than Unix it aborts after that line.
#[derive(Debug, Clone, Copy, Default)]
pub struct Allocator;

// SAFETY: everything is the system's allocator; what it returns is passed on as it is, or the process ends.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of `alloc`, which is the same.
        checked(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        checked(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above; `at` is from `System`, as all of this allocator's memory is.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        checked(unsafe { System.realloc(at, layout, size) }, size)
    }
}

/// `found`, unless it is null and nobody handles that.
#[inline(always)]
fn checked(found: *mut u8, bytes: usize) -> *mut u8 {
    if found.is_null() && !is_handled() {
        end(bytes);
    }
    found
}

/// Says that `bytes` could not be had and ends the process. Allocates nothing, takes no lock, and runs nothing
/// that was registered for the end: other threads may stand anywhere.
#[cold]
fn end(bytes: usize) -> ! {
    // Whether some thread is at it already: there is to be one line.
    static ENDING: AtomicBool = AtomicBool::new(false);
    if !ENDING.swap(true, Ordering::Relaxed) {
        let mut line = [0; 256];
        let mut rest = &mut line[..];
        _ = writeln!(
            rest,
            "error: out of memory: {bytes} more bytes could not be had; close other programs, raise the limit \
             (ulimit -v), or give the model less: --max-memory cpu=SIZE or a smaller --context",
        );
        let len = 256 - rest.len();
        leave(&line[..len]);
    }
    loop {
        std::thread::yield_now();
    }
}

#[cfg(unix)]
fn leave(line: &[u8]) -> ! {
    // SAFETY: both are system calls, `write` reads `len` bytes of `line`.
    unsafe {
        libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len());
        libc::_exit(1)
    }
}

#[cfg(not(unix))]
fn leave(line: &[u8]) -> ! {
    _ = std::io::stderr().write_all(line);
    std::process::abort()
}
