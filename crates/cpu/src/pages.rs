//! Large pages for large buffers.
//!
//! Decoding reads gigabytes in one sweep. With pages of 4 KiB the processor spends that sweep looking up
//! addresses, in a virtual machine twice over: measured here, four threads read 50 to 60 GB/s from such pages and
//! 65 to 90 from pages of 2 MiB. Linux gives them to whoever asks, before the memory is first touched.

use std::mem::MaybeUninit;

/// Bytes of a large page.
#[cfg(target_os = "linux")]
const HUGE: usize = 2 << 20;

/// Asks for large pages behind `memory`, which nobody has written to yet. A system that has none or gives none
/// serves it in small ones.
#[cfg(target_os = "linux")]
pub(crate) fn ask_for_large<T>(memory: &mut [MaybeUninit<T>]) {
    let bytes = size_of_val(memory);
    let start = memory.as_mut_ptr().cast::<u8>();
    let skipped = start.align_offset(HUGE);
    let whole = bytes.saturating_sub(skipped) / HUGE * HUGE;
    if whole > 0 {
        advise(start.wrapping_add(skipped), whole);
    }
}

/// [`ask_for_large`] for the pages at both ends of `memory` too, parts of which are others' memory. For arrays that are
/// allocated one after the other and written to only after all of them have asked: they lie side by side, and so
/// no page between two of them is a small one. Matrices of a few MiB would else lie in small pages for the most part.
#[cfg(target_os = "linux")]
pub(crate) fn ask_for_large_around<T>(memory: &mut [MaybeUninit<T>]) {
    let start = memory.as_mut_ptr().cast::<u8>();
    let before = start.addr() % HUGE;
    let bytes = (before + size_of_val(memory)).next_multiple_of(HUGE);
    advise(start.wrapping_sub(before), bytes);
}

/// Makes large pages of those at both ends of `memory`, after [`ask_for_large_around`] of all that lies there. The
/// allocator has written between arrays, and where a part of a large page is there already in small pages, the rest
/// would come in small pages, too. Linux does this since 6.1.
#[cfg(target_os = "linux")]
pub(crate) fn make_ends_large<T>(memory: &mut [MaybeUninit<T>]) {
    let start = memory.as_mut_ptr().cast::<u8>();
    let before = start.addr() % HUGE;
    let pages = (before + size_of_val(memory)).div_ceil(HUGE);
    for page in [0, pages.saturating_sub(1)] {
        let page = start.wrapping_sub(before).wrapping_add(page * HUGE);
        // SAFETY: this moves memory to other pages of the machine, at the same addresses and with the same
        // contents, whoever uses it. Where it cannot, it says so and has changed nothing.
        unsafe { libc::madvise(page.cast(), HUGE, libc::MADV_COLLAPSE) };
    }
}

#[cfg(target_os = "linux")]
fn advise(start: *mut u8, bytes: usize) {
    // SAFETY: this advice changes how pages are backed, not what they hold, whoever uses them.
    let asked = unsafe { rustix::mm::madvise(start.cast(), bytes, rustix::mm::Advice::LinuxHugepage) };
    // A kernel without them says so, as it does of addresses that nothing lies at; then there are small ones.
    asked.unwrap_or_default();
}

/// Other systems decide by themselves.
#[cfg(not(target_os = "linux"))]
pub(crate) fn ask_for_large<T>(_: &mut [MaybeUninit<T>]) {}

/// Other systems decide by themselves.
#[cfg(not(target_os = "linux"))]
pub(crate) fn ask_for_large_around<T>(_: &mut [MaybeUninit<T>]) {}

/// Other systems decide by themselves.
#[cfg(not(target_os = "linux"))]
pub(crate) fn make_ends_large<T>(_: &mut [MaybeUninit<T>]) {}
