//! Reading matrices in their files at the pace of the disk: ahead of the steps, and given back behind them.
//!
//! A submission reads all matrices once, in order, and the next one does so again. Left to itself, a system
//! that has less memory than that drops what was used longest ago, which is what will be needed next, and
//! each pass reads everything from the disk. So the first matrices, as many as memory can keep, stay; those
//! after them are given back as soon as they were used. Every pass then reads only these.

use crate::bound::BoundStep;
use crate::memory;
use halfbyte_backend::{Fault, MappedBytes};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

/// Bytes that are read ahead of the step that runs: about a layer of a 7B model. Enough to keep a disk
/// busy while the processor works.
const AHEAD: u64 = 128 << 20;

/// Part of the free memory that stays free when files are kept.
const SPARED: f64 = 0.25;

/// What a step reads in files.
type Files = Vec<Arc<dyn MappedBytes>>;

/// An advice to the system.
enum Advice {
    /// To read.
    WillNeed(usize),
    /// To give back.
    DoneWith(usize),
}

/// The steps of a program and the files that they read.
pub(crate) struct Sweep {
    /// Bytes that each step reads.
    bytes: Vec<u64>,
    total: u64,
    /// The limit that memory was given.
    limit: Option<u64>,
    /// Steps from here on are given back.
    keep: usize,
    /// The first step that was not yet asked for.
    next: usize,
    /// Bytes asked for, but not yet used.
    ahead: u64,
    /// A thread of its own: the system may take its time.
    advice: Sender<Advice>,
}

impl Sweep {
    /// The sweep of `steps`, in memory of at most `limit` bytes.
    ///
    /// # Errors
    /// [`Fault::Internal`] if no thread can be started.
    pub fn new(steps: &[BoundStep], limit: Option<u64>) -> Result<Self, Fault> {
        let files: Vec<Files> = steps.iter().map(files).collect();
        let bytes: Vec<u64> = files.iter().map(size).collect();
        let (advice, orders) = channel();
        std::thread::Builder::new()
            .name("halfbyte-disk".into())
            .spawn(move || {
                for order in orders {
                    match order {
                        Advice::WillNeed(step) => {
                            files[step].iter().for_each(|file: &Arc<_>| file.will_need())
                        }
                        Advice::DoneWith(step) => {
                            files[step].iter().for_each(|file: &Arc<_>| file.done_with())
                        }
                    }
                }
            })
            .map_err(|fault| Fault::Internal(format!("a thread that reads ahead: {fault}")))?;
        let total = bytes.iter().sum();
        Ok(Self { bytes, total, limit, keep: 0, next: 0, ahead: 0, advice })
    }

    /// A submission begins.
    pub fn begin(&mut self) {
        let free = memory::host(self.limit, 0).free;
        self.keep = kept(&self.bytes, self.total, free);
        (self.next, self.ahead) = (0, 0);
        self.read_ahead();
    }

    /// A step has ended.
    pub fn done_with(&mut self, step: usize) {
        self.ahead = self.ahead.saturating_sub(self.bytes[step]);
        self.next = self.next.max(step + 1);
        if step >= self.keep && self.bytes[step] > 0 {
            // The thread ends with this sender only.
            _ = self.advice.send(Advice::DoneWith(step));
        }
        self.read_ahead();
    }

    fn read_ahead(&mut self) {
        while self.next < self.bytes.len() && self.ahead < AHEAD {
            if self.bytes[self.next] > 0 {
                _ = self.advice.send(Advice::WillNeed(self.next));
                self.ahead += self.bytes[self.next];
            }
            self.next += 1;
        }
    }
}

/// How many of the first steps can stay in memory between submissions, by the bytes of each.
fn kept(bytes: &[u64], total: u64, free: Option<u64>) -> usize {
    let Some(free) = free else { return bytes.len() };
    let room = (free as f64 * (1.0 - SPARED)) as u64;
    if total <= room {
        return bytes.len();
    }
    // What is read ahead, and the step that runs, pass through the rest.
    let largest = bytes.iter().copied().max().unwrap_or(0);
    let room = room.saturating_sub(AHEAD + 2 * largest);
    let mut held = 0;
    bytes
        .iter()
        .take_while(|&&step| {
            held += step;
            held <= room
        })
        .count()
}

/// What a step reads in files at every use. Embeddings are looked up, not read; of a mixture of experts
/// only the router is known to be.
fn files(step: &BoundStep) -> Files {
    step.matrix().map_or_else(Vec::new, |matrix| matrix.read().files().cloned().collect())
}

fn size(files: &Files) -> u64 {
    files.iter().map(|file| file.bytes().len() as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_kept_and_what_does_not_passes_through() {
        const MIB: u64 = 1 << 20;
        let steps = [0, 100 * MIB, 100 * MIB, 100 * MIB, 100 * MIB];
        let keep = |free| kept(&steps, 400 * MIB, free);
        assert_eq!(keep(None), 5);
        assert_eq!(keep(Some(600 * MIB)), 5, "all of it fits");
        // 3/4 of 530 less 128 ahead and two steps: 69 MiB, not one step.
        assert_eq!(keep(Some(530 * MIB)), 1);
        assert_eq!(keep(Some(0)), 1, "a step that reads nothing costs nothing");
        let many = vec![10 * MIB; 100];
        // 3/4 of 800 less 128 and 20: 452 MiB.
        assert_eq!(kept(&many, 1000 * MIB, Some(800 * MIB)), 45);
    }
}
