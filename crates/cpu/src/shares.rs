//! Who of a team does which items of a step.
//!
//! Every thread has a stretch of neighbouring items, of which it takes some at a time from the front: its reads go on
//! through memory. Who has nothing left takes from the back of another's stretch, which so stays whole. For tokens of a
//! model that measured a little better than taking from the front, for long steps alone a little worse
//! (`benches/README.md`).

use crate::team::Apart;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A thread takes so small a share of what is left of a stretch at a time, one grain at least: much at first, so that it
/// need not come back often, and single ones at the end, so that all are done at the same time.
const SHARE: u32 = 2;

/// Stretches that a thread without work looks at before it chooses.
const LOOKS: usize = 8;

/// What is left of one thread's stretch: the first item, and the one behind the last in the upper half.
#[derive(Debug, Default)]
struct Stretch(AtomicU64);

impl Stretch {
    fn set(&self, items: Range<u32>) {
        self.0.store(u64::from(items.start) | u64::from(items.end) << 32, Ordering::Relaxed);
    }

    fn get(&self) -> Range<u32> {
        parts(self.0.load(Ordering::Relaxed))
    }

    /// Takes what `part` says of what is left, if anything is: `(taken, left)`.
    fn take(&self, part: impl Fn(Range<u32>) -> (Range<u32>, Range<u32>)) -> Option<Range<u32>> {
        let mut seen = self.0.load(Ordering::Relaxed);
        loop {
            let items = parts(seen);
            if items.is_empty() {
                return None;
            }
            let (taken, left) = part(items);
            let rest = u64::from(left.start) | u64::from(left.end) << 32;
            // What an item reads and writes is ordered by the beginning and the end of the step.
            match self.0.compare_exchange_weak(seen, rest, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(taken),
                Err(found) => seen = found,
            }
        }
    }
}

fn parts(word: u64) -> Range<u32> {
    word as u32..(word >> 32) as u32
}

/// Steps of fewer items are shared equally.
const EVEN: u32 = 64;

/// Grains are kept whole where each thread gets so many.
const GRAINS: u32 = 4;

/// Steps after which shares are measured anew.
const STEPS: u32 = 8;

/// All items, in the unit of [`Shares::bounds`].
const ALL: u32 = 1 << 16;

/// What one thread has.
#[derive(Debug, Default)]
struct Own {
    left: Stretch,
    /// Items that it has done since shares were measured. Only it writes this in a step.
    done: AtomicU64,
}

/// The stretches of all threads of a team. Threads that were fast lately, which share their way to memory with nobody, get
/// more from the beginning: what is taken from others is read less well.
#[derive(Debug)]
pub(crate) struct Shares {
    own: Vec<Apart<Own>>,
    /// Where each thread's share begins, and the end of the last: of [`ALL`].
    bounds: Vec<AtomicU32>,
    /// Steps since shares were measured.
    steps: AtomicU32,
    /// Items of the present step that lie together, see [`deal`](Self::deal).
    grain: AtomicU32,
}

impl Shares {
    /// Room for `threads`.
    pub fn new(threads: usize) -> Self {
        let bound = |thread| AtomicU32::new(equal(ALL, thread, threads));
        Self {
            own: (0..threads).map(|_| Apart::default()).collect(),
            bounds: (0..=threads).map(bound).collect(),
            steps: AtomicU32::new(0),
            grain: AtomicU32::new(1),
        }
    }

    /// The first of `count` items in grains of `grain` that `thread` of `threads`, for which there is room, begins with.
    pub fn first(&self, count: u32, grain: u32, thread: usize, threads: usize) -> u32 {
        if thread >= threads {
            return count;
        }
        let first = if count < EVEN || threads != self.own.len() {
            equal(count, thread, threads)
        } else {
            (u64::from(count) * u64::from(self.bounds[thread].load(Ordering::Relaxed)) / u64::from(ALL))
                as u32
        };
        let grain = whole(grain, count, threads);
        first / grain * grain
    }

    /// Shares `count` items among the first `threads`, for which there is room. Each `grain` items from the first on lie
    /// together in memory: threads take them whole, but for the last. Nobody is in a step.
    pub fn deal(&self, count: u32, grain: u32, threads: usize) {
        self.grain.store(whole(grain, count, threads), Ordering::Relaxed);
        let steps = self.steps.load(Ordering::Relaxed) + 1;
        self.steps.store(steps % STEPS, Ordering::Relaxed);
        if steps == STEPS {
            self.measure();
        }
        for (thread, own) in self.own.iter().enumerate() {
            let share =
                || self.first(count, grain, thread, threads)..self.first(count, grain, thread + 1, threads);
            own.0.left.set(if thread < threads { share() } else { 0..0 });
        }
    }

    /// Moves shares a quarter of the way to what was done lately. Nobody's falls to less than a quarter of an equal one,
    /// so that who was away is seen when he comes back.
    fn measure(&self) {
        let of = |thread: usize| self.own[thread].0.done.load(Ordering::Relaxed);
        let all: u64 = (0..self.own.len()).map(of).sum();
        if all == 0 {
            return;
        }
        let bound = |thread: usize| u64::from(self.bounds[thread].load(Ordering::Relaxed));
        let least = u64::from(ALL) / (4 * self.own.len() as u64);
        let wanted = |thread: usize, width: u64| {
            ((3 * width + of(thread) * u64::from(ALL) / all) / 4).max(least).max(1)
        };
        let sum: u64 = (0..self.own.len()).map(|at| wanted(at, bound(at + 1) - bound(at))).sum();
        let (mut before, mut end) = (0, 0);
        for thread in 0..self.own.len() {
            let old = bound(thread + 1);
            end += wanted(thread, old - before);
            before = old;
            self.bounds[thread + 1].store((end * u64::from(ALL) / sum) as u32, Ordering::Relaxed);
            self.own[thread].0.done.store(0, Ordering::Relaxed);
        }
    }

    /// The next items of `thread`; `None` when nobody has any left.
    pub fn next(&self, thread: usize) -> Option<Range<usize>> {
        let own = &self.own[thread].0;
        let grain = self.grain.load(Ordering::Relaxed);
        let items = match own.left.take(|items| front(items, grain)) {
            Some(items) => items,
            None => {
                let stolen = self.steal(thread, grain)?;
                let (items, left) = front(stolen, grain);
                // Nobody else writes to a stretch that is empty, and no items come twice: who has seen others there
                // before will find them changed.
                own.left.set(left);
                items
            }
        };
        let done = own.done.load(Ordering::Relaxed) + items.len() as u64;
        own.done.store(done, Ordering::Relaxed);
        Some(items.start as usize..items.end as usize)
    }

    /// The back half of the fullest of some stretches.
    fn steal(&self, thief: usize, grain: u32) -> Option<Range<u32>> {
        let threads = self.own.len();
        loop {
            let others = (1..threads).map(|turn| &self.own[(thief + turn) % threads].0.left);
            let full = others.map(|stretch| (stretch.get().len(), stretch)).filter(|&(left, _)| left > 0);
            // The first of the fullest.
            let (_, victim) =
                full.take(LOOKS).reduce(|best, next| if next.0 > best.0 { next } else { best })?;
            if let Some(items) = victim.take(|items| back(items, grain)) {
                return Some(items);
            }
        }
    }
}

/// The items that are kept together: `grain`, or each by itself.
fn whole(grain: u32, count: u32, threads: usize) -> u32 {
    if u64::from(count) < u64::from(grain) * u64::from(GRAINS) * threads as u64 { 1 } else { grain.max(1) }
}

/// The first of `count` items that `thread` of `threads` begins with in equal shares.
fn equal(count: u32, thread: usize, threads: usize) -> u32 {
    (u64::from(count) * thread as u64 / threads.max(1) as u64) as u32
}

/// Takes from the front: whole grains, one at least.
fn front(items: Range<u32>, grain: u32) -> (Range<u32>, Range<u32>) {
    let end = (items.start + items.len() as u32 / SHARE) / grain * grain;
    let end = if end > items.start { end } else { (items.start / grain + 1) * grain };
    let end = end.min(items.end);
    (items.start..end, end..items.end)
}

/// Takes half from the back: whole grains, one at least.
fn back(items: Range<u32>, grain: u32) -> (Range<u32>, Range<u32>) {
    let middle = (items.start + items.len() as u32 / 2).next_multiple_of(grain);
    let middle = if middle < items.end { middle } else { (items.end - 1) / grain * grain };
    let middle = middle.max(items.start);
    (middle..items.end, items.start..middle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_taken_once_by_whoever_comes() {
        for threads in [1, 2, 3, 7, 20] {
            for (count, grain) in [(0, 1), (1, 1), (2, 8), (6, 1), (7, 4), (100, 1), (1000, 8), (1001, 3)] {
                let shares = Shares::new(threads);
                shares.deal(count, grain, threads);
                let taken: Vec<AtomicU64> = (0..count).map(|_| AtomicU64::new(0)).collect();
                std::thread::scope(|scope| {
                    // Not all come.
                    for thread in (0..threads).step_by(2) {
                        let (shares, taken) = (&shares, &taken);
                        scope.spawn(move || {
                            while let Some(items) = shares.next(thread) {
                                assert!(!items.is_empty());
                                items.for_each(|item| {
                                    taken[item].fetch_add(1, Ordering::Relaxed);
                                });
                            }
                        });
                    }
                });
                assert!(taken.iter().all(|taken| taken.load(Ordering::Relaxed) == 1), "{count}/{threads}");
            }
        }
    }

    #[test]
    fn the_fast_get_more_and_who_comes_back_is_seen() {
        let shares = Shares::new(3);
        let widths = || [0, 1, 2].map(|at| shares.first(600, 1, at + 1, 3) - shares.first(600, 1, at, 3));
        assert!(widths().into_iter().all(|width| width.abs_diff(200) <= 1));
        // Who does how much of a step, whoever it was dealt to.
        let steps = |done: [u64; 3]| {
            for _ in 0..40 * STEPS {
                shares.deal(600, 1, 3);
                for (own, done) in shares.own.iter().zip(done) {
                    own.0.left.set(0..0);
                    own.0.done.fetch_add(done, Ordering::Relaxed);
                }
            }
        };
        for done in [[100, 300, 200], [300, 300, 0], [0, 0, 600], [200, 200, 200]] {
            steps(done);
            let least = done.map(|done| done.max(50));
            let sum: u64 = least.iter().sum();
            for (width, done) in widths().into_iter().zip(least) {
                let wanted = 600.0 * done as f64 / sum as f64;
                // Those at the least take from the others.
                assert!((f64::from(width) - wanted).abs() <= 30.0, "{width} {wanted}");
            }
            shares.deal(601, 1, 3);
            let mut items: Vec<usize> = std::iter::from_fn(|| shares.next(1)).flatten().collect();
            items.sort_unstable();
            assert_eq!(items, Vec::from_iter(0..601));
            shares.own[1].0.done.store(0, Ordering::Relaxed);
        }
        // Few items go round equally.
        assert_eq!([0, 1, 2].map(|at| shares.first(3, 1, at, 3)), [0, 1, 2]);
    }

    #[test]
    fn who_is_not_in_the_team_gets_nothing() {
        let shares = Shares::new(3);
        shares.deal(10, 1, 2);
        let mut items: Vec<usize> = std::iter::from_fn(|| shares.next(0)).flatten().collect();
        items.sort_unstable();
        assert_eq!(items, Vec::from_iter(0..10));
    }

    #[test]
    fn grains_are_taken_whole_but_for_the_last() {
        let shares = Shares::new(3);
        shares.deal(203, 8, 3);
        let at = |thread| shares.first(203, 8, thread, 3);
        assert_eq!([at(0), at(1), at(2), at(3)], [0, 64, 128, 203]);
        assert_eq!(shares.next(0), Some(0..32));
        assert_eq!(shares.next(0), Some(32..48));
        assert_eq!(shares.next(0), Some(48..56));
        assert_eq!(shares.next(0), Some(56..64));
        // From the back of the longest: its grains begin at multiples of eight, too.
        assert_eq!(shares.next(0), Some(168..184));

        // So few are no grains.
        shares.deal(30, 8, 3);
        assert_eq!(shares.next(1), Some(10..15));
    }

    #[test]
    fn a_thread_goes_on_where_it_was_though_others_take_from_it() {
        let shares = Shares::new(2);
        shares.deal(80, 1, 2);
        assert_eq!(shares.next(0), Some(0..20));
        assert_eq!(shares.next(0), Some(20..30));
        // The second has gone: its items are taken from the back.
        while shares.next(0).is_some_and(|items| items.end < 40) {}
        assert_eq!(shares.next(0), Some(60..70));
        assert_eq!(shares.next(1), Some(40..50));
        assert_eq!(shares.next(0), Some(70..75));
    }
}
