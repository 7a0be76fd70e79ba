//! Reading matrices in their files at the pace of the disk: ahead of the steps, and given back behind them.
//!
//! A submission reads all matrices once, in order, and the next one does so again. Left to itself, a system
//! that has less memory than that drops what was used longest ago, which is what will be needed next, and
//! each pass reads everything from the disk. So the first matrices, as many as memory can keep, stay; those
//! after them are given back as soon as they were used. Every pass then reads only these.
//!
//! Of a mixture a pass reads only the experts that its router chooses. Where there is room for all of them they stay as
//! any matrix does: those that are chosen often are then read from the disk once. Where there is not, those that were
//! chosen are given back, too, or they would push out what every pass reads.

use crate::bound::BoundStep;
use crate::matrix::Matrix;
use crate::memory;
use crate::slots::Shared;
use halfbyte_backend::{Fault, MappedBytes};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

/// Bytes that are read ahead of the step that runs: about a layer of a 7B model. Enough to keep a disk
/// busy while the processor works.
const AHEAD: u64 = 128 << 20;

/// The part of the free memory that is read ahead at most: what has no room drops out again before it was used.
const AHEAD_SHARE: u64 = 4;

/// Fewer would leave the disk idle between two steps.
const AHEAD_AT_LEAST: u64 = 8 << 20;

/// Part of the free memory that stays free when files are kept.
const SPARED: f64 = 0.25;

/// Parts of files that are read together.
type Files = Vec<Arc<dyn MappedBytes>>;

/// What a step reads in files.
struct Read {
    /// At every use.
    always: Files,
    /// Of each expert, if it is chosen.
    experts: Vec<Files>,
}

/// Bytes of what a step reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Size {
    /// At every use.
    always: u64,
    /// Of all experts.
    experts: u64,
    /// Of as many experts as one token chooses.
    chosen: u64,
}

/// An advice to the system.
enum Advice {
    /// To read.
    WillNeed(usize),
    /// To give back, with the experts of these numbers.
    DoneWith(usize, Vec<usize>),
}

/// The steps of a program and the files that they read.
pub(crate) struct Sweep {
    /// What each step reads.
    sizes: Vec<Size>,
    /// The limit that memory was given.
    limit: Option<u64>,
    /// Steps from here on are given back.
    keep: usize,
    /// The first step that was not yet asked for.
    next: usize,
    /// Bytes asked for, but not yet used, and how many they may be.
    ahead: u64,
    reach: u64,
    /// A thread of its own: the system may take its time.
    advice: Sender<Advice>,
}

impl Sweep {
    /// The sweep of `steps`, in memory of at most `limit` bytes.
    ///
    /// # Errors
    /// [`Fault::Internal`] if no thread can be started.
    pub fn new(steps: &[BoundStep], limit: Option<u64>) -> Result<Self, Fault> {
        let reads: Vec<Read> = steps.iter().map(Read::of).collect();
        let sizes = steps.iter().zip(&reads).map(|(step, read)| read.size(step)).collect();
        let (advice, orders) = channel();
        std::thread::Builder::new()
            .name("halfbyte-disk".into())
            .spawn(move || {
                for order in orders {
                    match order {
                        Advice::WillNeed(step) => reads[step].always.iter().for_each(|file| file.will_need()),
                        Advice::DoneWith(step, experts) => {
                            let Read { always, experts: all } = &reads[step];
                            let experts = experts.iter().filter_map(|&expert| all.get(expert));
                            always.iter().chain(experts.flatten()).for_each(|file| file.done_with());
                        }
                    }
                }
            })
            .map_err(|fault| Fault::Internal(format!("a thread that reads ahead: {fault}")))?;
        Ok(Self { sizes, limit, keep: 0, next: 0, ahead: 0, reach: AHEAD, advice })
    }

    /// A submission begins.
    pub fn begin(&mut self) {
        let free = memory::host(self.limit, 0).free;
        self.keep = kept(&self.sizes, free);
        (self.next, self.ahead, self.reach) = (0, 0, reach(free));
        self.read_ahead();
    }

    /// A step has ended; `used` are the experts that it chose, if it is a mixture.
    pub fn done_with(&mut self, step: usize, used: &[bool]) {
        let Size { always, experts, .. } = self.sizes[step];
        self.ahead = self.ahead.saturating_sub(always);
        self.next = self.next.max(step + 1);
        if step >= self.keep && always + experts > 0 {
            let used = used.iter().enumerate().filter(|(_, used)| **used && experts > 0);
            // The thread ends with this sender only.
            _ = self.advice.send(Advice::DoneWith(step, used.map(|(expert, _)| expert).collect()));
        }
        self.read_ahead();
    }

    fn read_ahead(&mut self) {
        while self.next < self.sizes.len() && self.ahead < self.reach {
            let bytes = self.sizes[self.next].always;
            if bytes > 0 {
                _ = self.advice.send(Advice::WillNeed(self.next));
                self.ahead += bytes;
            }
            self.next += 1;
        }
    }
}

/// Bytes that are read ahead.
fn reach(free: Option<u64>) -> u64 {
    free.map_or(AHEAD, |free| (free / AHEAD_SHARE).clamp(AHEAD_AT_LEAST, AHEAD))
}

/// How many of the first steps can stay in memory between submissions, with all experts of theirs.
fn kept(sizes: &[Size], free: Option<u64>) -> usize {
    let Some(free) = free else { return sizes.len() };
    let room = (free as f64 * (1.0 - SPARED)) as u64;
    let whole = |size: &Size| size.always + size.experts;
    if sizes.iter().map(whole).sum::<u64>() <= room {
        return sizes.len();
    }
    // What is read ahead, and the step that runs, pass through the rest.
    let largest = sizes.iter().map(|size| size.always + size.chosen).max().unwrap_or(0);
    let room = room.saturating_sub(reach(Some(free)) + 2 * largest);
    let mut held = 0;
    sizes
        .iter()
        .take_while(|size| {
            held += whole(size);
            held <= room
        })
        .count()
}

impl Read {
    /// Embeddings are looked up, not read.
    fn of(step: &BoundStep) -> Self {
        let files = |matrix: &Shared<Matrix>| -> Files { matrix.read().files().cloned().collect() };
        let experts = match step {
            BoundStep::Moe { experts, .. } => {
                experts.iter().map(|(gate_up, down)| [files(gate_up), files(down)].concat()).collect()
            }
            _ => Vec::new(),
        };
        Self { always: step.matrix().map_or_else(Vec::new, files), experts }
    }

    fn size(&self, step: &BoundStep) -> Size {
        let bytes = |files: &Files| files.iter().map(|file| file.bytes().len() as u64).sum::<u64>();
        let experts: u64 = self.experts.iter().map(bytes).sum();
        let chosen = match step {
            BoundStep::Moe { step, .. } => experts * step.top_k as u64 / step.experts.max(1) as u64,
            _ => 0,
        };
        Size { always: bytes(&self.always), experts, chosen }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn dense(mebibytes: u64) -> Size {
        Size { always: mebibytes * MIB, ..Size::default() }
    }

    #[test]
    fn what_fits_is_kept_and_what_does_not_passes_through() {
        let steps = [0, 100, 100, 100, 100].map(dense);
        let keep = |free| kept(&steps, free);
        assert_eq!(keep(None), 5);
        assert_eq!(keep(Some(600 * MIB)), 5, "all of it fits");
        // 3/4 of 530 less 128 ahead and two steps: 69 MiB, not one step.
        assert_eq!(keep(Some(530 * MIB)), 1);
        assert_eq!(keep(Some(0)), 1, "a step that reads nothing costs nothing");
        let many = vec![dense(10); 100];
        // 3/4 of 800 less 128 and 20: 452 MiB.
        assert_eq!(kept(&many, Some(800 * MIB)), 45);
    }

    #[test]
    fn no_more_is_read_ahead_than_memory_has_room_for() {
        let mebibytes = |free| reach(free) / MIB;
        assert_eq!([None, Some(4096 * MIB), Some(512 * MIB)].map(mebibytes), [128; 3]);
        assert_eq!([Some(100 * MIB), Some(48 * MIB), Some(0)].map(mebibytes), [25, 12, 8]);
    }

    /// Layers as Mixtral has them, an eighth as large: attention, then a router with eight experts, of which two are chosen.
    #[test]
    fn experts_stay_as_far_as_there_is_room_for_all_of_them() {
        let experts = Size { always: MIB / 64, experts: 88 * MIB, chosen: 22 * MIB };
        let layers: Vec<Size> = (0..32).flat_map(|_| [dense(3), experts]).collect();
        let keep = |mebibytes: u64| kept(&layers, Some(mebibytes * MIB));
        assert_eq!(keep(4096), 64, "all of it fits: 2,912 MiB");
        // 3/4 of 2048, less 128 ahead and twice what a token reads of a layer: 1,363 MiB are 14 layers and an attention.
        assert_eq!(keep(2048), 29);
        // 3/4 of 256 less all that: nothing but the first attention.
        assert_eq!(keep(256), 1);
    }

    #[test]
    fn only_the_experts_that_were_chosen_are_given_back() {
        let mixture = Size { always: MIB, experts: 80 * MIB, chosen: 20 * MIB };
        let (advice, orders) = channel();
        let sizes = vec![dense(3), mixture, dense(3), mixture];
        let mut sweep = Sweep { sizes, limit: None, keep: 2, next: 4, ahead: 0, reach: AHEAD, advice };
        let used = [false, true, false, true];
        (0..4).for_each(|step| sweep.done_with(step, &used));
        drop(sweep);
        let given: Vec<(usize, Vec<usize>)> = orders
            .iter()
            .filter_map(|order| match order {
                Advice::DoneWith(step, experts) => Some((step, experts)),
                Advice::WillNeed(_) => None,
            })
            .collect();
        // Steps 0 and 1 stay; step 2 has no experts, whoever was chosen before it.
        assert_eq!(given, [(2, vec![]), (3, vec![1, 3])]);
    }
}
