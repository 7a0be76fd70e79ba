//! The threads that run kernels.
//!
//! A token of a small model is a hundred steps of some ten microseconds: threads that sleep between them, as in a
//! general pool, spend as long waking as working. Those of a [`Team`] watch for the next step, first without
//! pause, then letting others run, and sleep when none has come for [`AWAKE`]. The caller is one of them.

use crate::expected::Expected;
use crate::shares::Shares;
use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often a thread looks for the next step before it lets others run in between: some 50 µs.
const LOOKS: u32 = 4096;

/// How long a thread without work stays awake: longer than what lies between two tokens.
const AWAKE: Duration = Duration::from_millis(2);

/// Bit of [`Shared::gate`] that says that helpers may come in.
const OPEN: usize = 1 << (usize::BITS - 1);

/// The epoch that ends the threads.
const STOP: u64 = u64::MAX;

/// A step: what each thread does, called with its number.
type Job<'a> = &'a (dyn Fn(usize) + Sync);

/// On a cache line of its own, so that threads that write it do not slow those that read its neighbours.
#[repr(align(128))]
#[derive(Debug, Default)]
pub(crate) struct Apart<T>(pub T);

struct Shared {
    /// Counts steps; a new value means that `job` is set.
    epoch: Apart<AtomicU64>,
    /// Helpers that are inside the step, with [`OPEN`] as long as others may come in.
    gate: Apart<AtomicUsize>,
    /// The step. Written by the caller while the gate is closed and nobody is inside, read by who came in.
    job: UnsafeCell<Option<Job<'static>>>,
    /// Who does what in [`Team::stretches`].
    shares: Shares,
    /// What each thread is going to read next, see [`Team::expect`].
    expected: Vec<Apart<Expected>>,
    asleep: AtomicU32,
    door: Mutex<()>,
    bell: Condvar,
    panicked: AtomicBool,
}

// SAFETY: `job` is written only by the holder of `Team::turn` while the gate is closed and nobody is inside, and read
// only inside.
unsafe impl Sync for Shared {}

/// A fixed number of threads that do the steps of a program together.
pub(crate) struct Team {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    turn: Mutex<()>,
}

impl Team {
    /// A team of `threads`, the caller among them; fewer where the system grants no more.
    pub fn new(threads: usize) -> Self {
        let mut team = Self::with_room(threads.max(1));
        for number in 1..threads {
            let shared = team.shared.clone();
            let thread = std::thread::Builder::new().name(format!("halfbyte-cpu-{number}"));
            let Ok(helper) = thread.spawn(move || help(&shared, number)) else { break };
            team.helpers.push(helper);
        }
        team
    }

    /// A team of the caller alone. Starts no thread, so that nothing can fail.
    pub fn solo() -> Self {
        Self::with_room(1)
    }

    /// A team of the caller, with room for helpers: `threads` in all.
    fn with_room(threads: usize) -> Self {
        let shared = Shared {
            epoch: Apart::default(),
            gate: Apart::default(),
            job: UnsafeCell::new(None),
            shares: Shares::new(threads),
            expected: (0..threads).map(|_| Apart::default()).collect(),
            asleep: AtomicU32::new(0),
            door: Mutex::new(()),
            bell: Condvar::new(),
            panicked: AtomicBool::new(false),
        };
        Self { shared: Arc::new(shared), helpers: Vec::new(), turn: Mutex::new(()) }
    }

    /// How many threads there are, the caller among them.
    pub fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Calls `job` on this thread and on every helper that comes before this one is done, with their numbers, and
    /// returns when all who came are done. The caller holds the turn, and leaves no work when its own call returns.
    ///
    /// A helper that the system has given no processor is not waited for: beside another busy program that would
    /// cost a time slice, a hundred times as long as the step.
    fn lead(&self, job: Job<'_>) {
        let shared = &*self.shared;
        shared.panicked.store(false, Ordering::Relaxed);
        // SAFETY: nobody is inside, and nobody looks at it before the gate opens. The lifetime is over only after
        // `Join` has closed the gate and seen everyone leave, even if `job` panics here.
        unsafe { *shared.job.get() = Some(std::mem::transmute::<Job<'_>, Job<'static>>(job)) };
        shared.gate.0.fetch_or(OPEN, Ordering::Release);
        shared.epoch.0.fetch_add(1, Ordering::SeqCst);
        if shared.asleep.load(Ordering::SeqCst) > 0 {
            let _door = shared.door.lock().unwrap_or_else(PoisonError::into_inner);
            shared.bell.notify_all();
        }
        let join = Join(shared);
        job(0);
        drop(join);
        assert!(!shared.panicked.load(Ordering::Relaxed), "a kernel thread panicked");
    }

    /// Calls `work(thread, item)` once for each item below `count`. Each thread begins with a stretch of
    /// neighbouring items, so that it reads memory in order, and helps others when it is done. `work` must not come
    /// back to the team.
    ///
    /// # Panics
    /// If `work` did, on any thread.
    pub fn each(&self, count: usize, work: impl Fn(usize, usize) + Sync) {
        self.stretches(
            (count, 1),
            |thread| thread,
            |&mut thread, items| items.for_each(|item| work(thread, item)),
        );
    }

    /// [`each`](Self::each) for items that are cheaper together: calls `work(state, items)` for stretches of items that
    /// together are all below `count`, whole grains of so many items from the first on where that is possible. A thread
    /// keeps what `begin(thread)` made from one stretch to the next.
    ///
    /// # Panics
    /// As [`each`](Self::each).
    pub fn stretches<S>(
        &self,
        (count, grain): (usize, usize),
        begin: impl Fn(usize) -> S + Sync,
        work: impl Fn(&mut S, Range<usize>) + Sync,
    ) {
        let threads = self.threads();
        if threads == 1 || count <= 1 {
            return work(&mut begin(0), 0..count);
        }
        // Items are rows or parts of them: more would not fit memory.
        let Ok(items) = u32::try_from(count) else { return work(&mut begin(0), 0..count) };
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let shares = &self.shared.shares;
        shares.deal(items, u32::try_from(grain).unwrap_or(1), threads);
        self.lead(&|thread| {
            let mut state = begin(thread);
            while let Some(items) = shares.next(thread) {
                work(&mut state, items);
            }
        });
    }

    /// Says what each thread will read first in a later step over `count` items, by the memory from the item on that it
    /// will begin with. Threads that wait for a step, or for others at its end, [load](crate::expected) the beginning of
    /// it.
    ///
    /// # Safety
    /// The memory can be read, and nobody writes to it, until [`expect_nothing`](Self::expect_nothing) has returned.
    pub unsafe fn expect(
        &self,
        (count, grain): (usize, usize),
        memory: impl Fn(usize) -> Option<Range<*const u8>>,
    ) {
        let (count, threads) = (u32::try_from(count).unwrap_or(u32::MAX), self.threads());
        let grain = u32::try_from(grain).unwrap_or(1).max(1);
        for (thread, expected) in self.shared.expected.iter().enumerate() {
            let first = self.shared.shares.first(count, grain, thread, threads);
            // SAFETY: as the caller says.
            unsafe { expected.0.expect(memory(first as usize)) };
        }
    }

    /// Takes back what was [expected](Self::expect): when it returns, nobody reads it any more.
    pub fn expect_nothing(&self) {
        self.shared.expected.iter().for_each(|expected| expected.0.forget());
    }

    /// Calls `work(thread, index, chunk)` for each chunk of `len` elements of `slice`; the last may be shorter.
    pub fn chunks<T: Send>(&self, slice: &mut [T], len: usize, work: impl Fn(usize, usize, &mut [T]) + Sync) {
        let all = Scatter::new(slice);
        self.each(all.len.div_ceil(len.max(1)), |thread, index| {
            // SAFETY: `each` gives every index to one thread once, and chunks do not overlap.
            work(thread, index, unsafe { all.range(index * len, len) });
        });
    }

    /// [`Team::chunks`] of two slices at once.
    pub fn chunks_of_two<T: Send, U: Send>(
        &self,
        (first, len): (&mut [T], usize),
        (second, second_len): (&mut [U], usize),
        work: impl Fn(usize, &mut [T], &mut [U]) + Sync,
    ) {
        let (first, second) = (Scatter::new(first), Scatter::new(second));
        self.each(first.len.div_ceil(len.max(1)), |_, index| {
            // SAFETY: as in `chunks`.
            let (first, second) =
                unsafe { (first.range(index * len, len), second.range(index * second_len, second_len)) };
            work(index, first, second);
        });
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.epoch.0.store(STOP, Ordering::SeqCst);
        {
            let _door = self.shared.door.lock().unwrap_or_else(PoisonError::into_inner);
            self.shared.bell.notify_all();
        }
        for helper in self.helpers.drain(..) {
            // Helpers catch what jobs do.
            let _ = helper.join();
        }
    }
}

/// Takes back what a team [expects](Team::expect) when it goes out of scope.
pub(crate) struct Forget(pub Arc<Team>);

impl Drop for Forget {
    fn drop(&mut self) {
        self.0.expect_nothing();
    }
}

/// Closes the gate and waits for the helpers inside when it goes out of scope.
struct Join<'a>(&'a Shared);

impl Drop for Join<'_> {
    fn drop(&mut self) {
        self.0.gate.0.fetch_and(!OPEN, Ordering::AcqRel);
        let mut ahead = self.0.expected[0].0.ahead();
        let mut looks = 0;
        while self.0.gate.0.load(Ordering::Acquire) > 0 {
            if !ahead.load() {
                pause(&mut looks);
            }
        }
    }
}

/// Passes a little time: at first without giving the processor away.
fn pause(looks: &mut u32) {
    if *looks < LOOKS {
        *looks += 1;
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
}

/// The life of a helper.
fn help(shared: &Shared, number: usize) {
    let mut seen = 0;
    loop {
        seen = next_epoch(shared, number, seen);
        if seen == STOP {
            return;
        }
        if !come_in(shared) {
            continue;
        }
        // SAFETY: inside, so the job is set, and stays until this thread has left.
        if let Some(job) = unsafe { *shared.job.get() }
            && catch_unwind(AssertUnwindSafe(|| job(number))).is_err()
        {
            shared.panicked.store(true, Ordering::Relaxed);
        }
        shared.gate.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Comes in if the gate is open. That may be a later step's than the one whose epoch was seen.
fn come_in(shared: &Shared) -> bool {
    let enter = |inside: usize| (inside & OPEN != 0).then_some(inside + 1);
    shared.gate.0.fetch_update(Ordering::AcqRel, Ordering::Relaxed, enter).is_ok()
}

/// Waits for an epoch other than `seen`.
fn next_epoch(shared: &Shared, number: usize, seen: u64) -> u64 {
    let (mut looks, mut since) = (0, None);
    let mut ahead = shared.expected[number].0.ahead();
    loop {
        let epoch = shared.epoch.0.load(Ordering::SeqCst);
        if epoch != seen {
            return epoch;
        }
        if ahead.load() {
            continue;
        }
        pause(&mut looks);
        if looks >= LOOKS && since.get_or_insert_with(Instant::now).elapsed() > AWAKE {
            let mut door = shared.door.lock().unwrap_or_else(PoisonError::into_inner);
            // Whoever sets an epoch after this rings the bell; an epoch set before it is seen here.
            shared.asleep.fetch_add(1, Ordering::SeqCst);
            while shared.epoch.0.load(Ordering::SeqCst) == seen {
                door = shared.bell.wait(door).unwrap_or_else(PoisonError::into_inner);
            }
            shared.asleep.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// A slice whose parts are written by different threads.
pub(crate) struct Scatter<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: access is through unsafe methods whose callers promise that no two threads touch one element.
unsafe impl<T: Send> Sync for Scatter<'_, T> {}

impl<'a, T> Scatter<'a, T> {
    /// All of `slice`.
    pub fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// At most `len` elements from `at` on.
    ///
    /// # Safety
    /// No other thread, and no other borrow, touches them as long as the result lives.
    #[expect(clippy::mut_from_ref, reason = "the caller keeps ranges apart")]
    pub unsafe fn range(&self, at: usize, len: usize) -> &mut [T] {
        let at = at.min(self.len);
        // SAFETY: within the slice; the caller has it alone.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len.min(self.len - at)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_done_once_by_teams_of_all_sizes() {
        for threads in [1, 2, 3, 7] {
            let team = Team::new(threads);
            for count in [0, 1, 2, 6, 7, 100] {
                let done: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                team.each(count, |thread, item| {
                    assert!(thread < threads);
                    done[item].fetch_add(1, Ordering::Relaxed);
                });
                assert!(done.iter().all(|done| done.load(Ordering::Relaxed) == 1), "{count} on {threads}");
            }
        }
        Team::solo().each(3, |thread, _| assert_eq!(thread, 0));
    }

    #[test]
    fn a_helper_that_never_comes_is_not_waited_for() {
        // A helper that does something else.
        let mut team = Team::with_room(3);
        let (tell, told) = std::sync::mpsc::channel::<()>();
        team.helpers.push(std::thread::spawn(move || {
            let _ = told.recv();
        }));
        for count in [2, 9, 100] {
            let done: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
            team.each(count, |_, item| {
                done[item].fetch_add(1, Ordering::Relaxed);
            });
            assert!(done.iter().all(|done| done.load(Ordering::Relaxed) == 1));
        }
        drop(tell);
    }

    #[test]
    fn chunks_are_disjoint_and_whole() {
        let team = Team::new(3);
        let mut values = [0u32; 103];
        team.chunks(&mut values, 10, |_, index, chunk| {
            assert_eq!(chunk.len(), if index == 10 { 3 } else { 10 });
            chunk.iter_mut().for_each(|value| *value += 1 + index as u32);
        });
        assert!(values.iter().enumerate().all(|(i, &value)| value == 1 + (i / 10) as u32));
        let mut halves = [0u32; 6];
        team.chunks_of_two((&mut values[..12], 4), (&mut halves, 2), |index, first, second| {
            assert_eq!((first.len(), second.len()), (4, 2));
            second.fill(index as u32);
        });
        assert_eq!(halves, [0, 0, 1, 1, 2, 2]);
    }

    #[test]
    fn what_was_expected_is_forgotten_even_after_a_panic() {
        let team = Arc::new(Team::new(3));
        let memory = vec![crate::lines::Line::default(); 4096];
        let expecting = || {
            let _forget = Forget(team.clone());
            // SAFETY: `memory` outlives this.
            unsafe {
                team.expect((64, 8), |first| {
                    let std::ops::Range { start, end } = memory[first..].as_ptr_range();
                    Some(start.cast()..end.cast())
                });
            }
            // The leader's part is left, whoever else has begun.
            assert!(team.shared.expected[0].0.ahead().load());
            team.each(64, |_, item| assert_ne!(item, 63));
        };
        assert!(catch_unwind(AssertUnwindSafe(expecting)).is_err());
        assert!(team.shared.expected.iter().all(|expected| !expected.0.ahead().load()));
    }

    #[test]
    fn sleepers_wake_and_panics_are_told() {
        let team = Team::new(4);
        // On a busy machine they may take their time.
        let start = Instant::now();
        while team.shared.asleep.load(Ordering::SeqCst) < 3 {
            assert!(start.elapsed() < Duration::from_secs(60), "nobody fell asleep");
            std::thread::sleep(AWAKE);
        }
        let count = AtomicUsize::new(0);
        team.each(4, |_, _| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.load(Ordering::Relaxed), 4);
        for culprit in [0, 3] {
            let told = catch_unwind(AssertUnwindSafe(|| team.each(4, |_, item| assert_ne!(item, culprit))));
            assert!(told.is_err());
        }
        // The team goes on.
        team.each(8, |_, _| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.load(Ordering::Relaxed), 12);
    }
}
