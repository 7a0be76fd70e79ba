//! What a thread that waits reads ahead of its next step.
//!
//! While one thread does what lies between two products, and while the last are not done with one, memory would idle. So
//! threads that wait load the beginning of what they will read, and find it in their second-level caches. They load it:
//! a prefetch instruction that meets a full queue of misses is dropped (Zen 4: 128 KiB were asked for in 1.6 µs, and most
//! of them had not come 20 µs later).

use std::hint::black_box;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Lines that are read ahead, 128 KiB: a fraction of a second-level cache, and more than memory delivers between two
/// products.
const AHEAD_LINES: u64 = 2048;

/// Lines that are loaded between two looks whether the step has come.
const BATCH: u64 = 16;

/// Bytes of a line, as a power of two.
const LINE_BITS: u32 = 6;

/// Bits of the number of lines.
const COUNT_BITS: u32 = 16;

/// Memory that one thread is going to read.
#[derive(Debug, Default)]
pub(crate) struct Expected {
    /// The number of the first line, shifted by [`COUNT_BITS`], and how many lines; in one word, since whoever leads may
    /// replace it at any time.
    word: AtomicU64,
    /// Whether the thread that it is for may be loading.
    loading: AtomicBool,
    /// The word whose lines that thread loaded last, and how many of them. Only it writes them.
    known: AtomicU64,
    loaded: AtomicU64,
}

impl Expected {
    /// Says what will be read: the first of `memory`, as much as is worth it.
    ///
    /// # Safety
    /// The memory can be read, and nobody writes to it, until [`forget`](Self::forget) has returned; another `expect`
    /// does not end that.
    pub unsafe fn expect(&self, memory: Option<Range<*const u8>>) {
        let word = memory.map_or(0, |Range { start, end }| {
            let first = (start.expose_provenance() as u64).div_ceil(1 << LINE_BITS);
            let lines = (end.expose_provenance() as u64 >> LINE_BITS).saturating_sub(first);
            // No system gives such addresses unasked; they would not fit.
            let far = first >> (u64::BITS - COUNT_BITS) > 0;
            if far { 0 } else { first << COUNT_BITS | lines.min(AHEAD_LINES) }
        });
        self.word.store(word, Ordering::SeqCst);
    }

    /// Takes that back: when it returns, nobody loads any of it.
    pub fn forget(&self) {
        self.word.store(0, Ordering::SeqCst);
        while self.loading.load(Ordering::SeqCst) {
            std::hint::spin_loop();
        }
    }

    /// For the thread that it is for, as long as it waits.
    pub fn ahead(&self) -> Ahead<'_> {
        Ahead { expected: self, open: false }
    }

    /// Lines of `word` that were not loaded yet: those of its count from the given one on.
    fn left(&self, word: u64) -> Range<u64> {
        let known = self.known.load(Ordering::Relaxed) == word;
        let loaded = if known { self.loaded.load(Ordering::Relaxed) } else { 0 };
        loaded..word & ((1 << COUNT_BITS) - 1)
    }
}

/// A wait in which memory is read.
pub(crate) struct Ahead<'a> {
    expected: &'a Expected,
    /// Whether [`Expected::loading`] is set.
    open: bool,
}

impl Ahead<'_> {
    /// Loads the next few lines; `false` if none are left.
    pub fn load(&mut self) -> bool {
        let Expected { word, loading, known, loaded } = self.expected;
        if !self.open {
            if self.expected.left(word.load(Ordering::Relaxed)).is_empty() {
                return false;
            }
            // Before the word is looked at, in the one order of all these: `forget` either sees this or is seen.
            loading.store(true, Ordering::SeqCst);
            self.open = true;
        }
        let word = word.load(Ordering::SeqCst);
        let left = self.expected.left(word);
        if left.is_empty() {
            self.close();
            return false;
        }
        let batch = left.start..left.end.min(left.start + BATCH);
        let first = word >> COUNT_BITS;
        for line in batch.clone() {
            let address = ((first + line) << LINE_BITS) as usize;
            // SAFETY: whoever expected it keeps it readable until `forget` returns, which waits for `close`.
            black_box(unsafe { std::ptr::with_exposed_provenance::<u8>(address).read_volatile() });
        }
        known.store(word, Ordering::Relaxed);
        loaded.store(batch.end, Ordering::Relaxed);
        true
    }

    /// Stops for now.
    pub fn close(&mut self) {
        if std::mem::take(&mut self.open) {
            self.expected.loading.store(false, Ordering::Release);
        }
    }
}

impl Drop for Ahead<'_> {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lines::Line;

    /// Says that some lines will be read.
    fn expect(expected: &Expected, lines: &[Line]) {
        let Range { start, end } = lines.as_ptr_range();
        // SAFETY: the tests' lines outlive what they do with them.
        unsafe { expected.expect(Some(start.cast()..end.cast())) };
    }

    fn loads(expected: &Expected) -> u64 {
        let mut ahead = expected.ahead();
        let loads = (0..).take_while(|_| ahead.load()).count() as u64;
        assert!(!ahead.open);
        loads
    }

    #[test]
    fn what_is_expected_is_loaded_once_and_no_further_than_it_goes() {
        let expected = Expected::default();
        assert_eq!(loads(&expected), 0);
        let memory = vec![Line::default(); AHEAD_LINES as usize + 10];
        for (at, lines) in [3, BATCH, AHEAD_LINES - 1, AHEAD_LINES, AHEAD_LINES + 5].into_iter().enumerate() {
            expect(&expected, &memory[at..][..lines as usize]);
            assert_eq!(loads(&expected), lines.min(AHEAD_LINES).div_ceil(BATCH));
            assert_eq!(loads(&expected), 0, "again");
        }
        // Lines that lie there in part belong to others in part.
        let (start, end) = (memory[0].0.as_ptr(), memory[2].0.as_ptr());
        for (from, to) in [(1, 0), (0, 63), (1, 63)] {
            // SAFETY: as above.
            unsafe { expected.expect(Some(start.wrapping_add(from)..end.wrapping_add(to))) };
            let whole = 2 - u64::from(from > 0);
            assert_eq!(expected.left(expected.word.load(Ordering::Relaxed)), 0..whole, "{from} {to}");
        }
        // SAFETY: nothing.
        unsafe { expected.expect(None) };
        assert_eq!(loads(&expected), 0);
    }

    #[test]
    fn nobody_loads_what_was_forgotten() {
        let expected = Expected::default();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (stop, expected) = (&stop, &expected);
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let mut ahead = expected.ahead();
                    while ahead.load() {}
                }
            });
            for turn in 0..200 {
                // Memory of its own, which the system takes back: a late load would end the process.
                let memory = vec![Line::default(); 1 << 14];
                expect(expected, &memory);
                for _ in 0..turn * 10 {
                    std::hint::spin_loop();
                }
                expected.forget();
                assert!(!expected.loading.load(Ordering::SeqCst));
                drop(memory);
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}
