//! Whether the devices still have the room that the model was placed in: looked at between tokens, so that
//! blocks move out before an allocation fails or the kernel kills, and come back when there is room.

use crate::devices::Candidate;
use crate::options::parse_pretend_memory;
use halfbyte_backend::Memory;
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Time between two looks at real memory: reading it takes some 0.1 ms.
const INTERVAL: Duration = Duration::from_millis(250);

/// How many looks in a row must find room before blocks come back.
const ROOMY_LOOKS: usize = 8;

/// The largest headroom in bytes.
const HEADROOM_AT_MOST: u64 = 1 << 30;

/// The part of a device's memory that is its headroom.
const HEADROOM_SHARE: u64 = 20;

/// What one look at a device found. All figures are bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reading {
    /// What is left, where that is known.
    pub(crate) free: Option<u64>,
    /// What should be left to others.
    pub(crate) headroom: u64,
    /// Whether less is left than the headroom.
    pub(crate) short: bool,
    /// What the model may hold there so that one and a half times the headroom is left.
    pub(crate) fits: u64,
}

/// The devices' state of memory over time.
pub(crate) struct Pressure {
    /// What is left to others on each device; known once the model is loaded.
    headrooms: Vec<u64>,
    /// The figures of `--pretend-memory @FILE`.
    file: Option<PathBuf>,
    last_look: Option<Instant>,
    /// What each device could hold, at the last looks.
    looks: VecDeque<Vec<u64>>,
    /// What [`lasting_room`](Self::lasting_room) answered last.
    answered: Option<Vec<u64>>,
}

impl Pressure {
    pub(crate) fn new(file: Option<PathBuf>) -> Self {
        Self { headrooms: Vec::new(), file, last_look: None, looks: VecDeque::new(), answered: None }
    }

    /// Sets the headrooms by what is left once the model is where it was planned to be.
    pub(crate) fn settle(&mut self, candidates: &[Candidate]) {
        let memories = candidates.iter().map(|one| one.backend.memory());
        self.headrooms = memories.map(|memory| headroom(&memory)).collect();
    }

    /// A look at every device, unless the last was a moment ago; a watched file is read each time.
    pub(crate) fn look(&mut self, candidates: &[Candidate]) -> Option<Vec<Reading>> {
        if self.headrooms.len() != candidates.len() {
            return None;
        }
        let watched = self.file.as_deref().is_some_and(|file| pretend(file, candidates));
        if !watched && self.last_look.is_some_and(|last| last.elapsed() < INTERVAL) {
            return None;
        }
        self.last_look = Some(Instant::now());
        Some((0..candidates.len()).map(|at| self.read(at, candidates, 0)).collect())
    }

    /// A look at one device as it would be beside an answer of `bytes` that is not a part of the model.
    pub(crate) fn with_answer(&self, at: usize, candidates: &[Candidate], bytes: u64) -> Option<Reading> {
        (self.headrooms.len() == candidates.len()).then(|| self.read(at, candidates, bytes))
    }

    /// A look at one device, of whose memory `taken` bytes more are taken.
    fn read(&self, at: usize, candidates: &[Candidate], taken: u64) -> Reading {
        let one = &candidates[at];
        let mates = candidates.iter().filter(|mate| mate.device.pool == one.device.pool);
        let held = mates.map(|mate| mate.backend.ledger().footprint().total()).sum();
        let mut memory = one.backend.memory();
        for bytes in [&mut memory.total, &mut memory.free].into_iter().flatten() {
            *bytes = bytes.saturating_sub(taken);
        }
        // A device that has shrunk is expected to leave less.
        let headroom = self.headrooms[at];
        let headroom = memory.total.map_or(headroom, |total| headroom.min(total / HEADROOM_SHARE));
        reading(&memory, held, headroom)
    }

    /// Notes what a look found. What each device could hold at every one of the last looks, in bytes: once
    /// there were enough of them, and only where that is more than at the last answer.
    pub(crate) fn lasting_room(&mut self, readings: &[Reading]) -> Option<Vec<u64>> {
        self.looks.push_back(readings.iter().map(|one| one.fits).collect());
        if self.looks.len() < ROOMY_LOOKS {
            return None;
        }
        while self.looks.len() > ROOMY_LOOKS {
            self.looks.pop_front();
        }
        let least = |device: usize| self.looks.iter().map(|look| look[device]).min().unwrap_or(0);
        let room: Vec<u64> = (0..readings.len()).map(least).collect();
        // A little more is not worth a plan.
        let more = |(now, last): (&u64, &u64)| *now > last.saturating_add(last / 64);
        let is_news = self.answered.as_ref().is_none_or(|last| room.iter().zip(last).any(more));
        is_news.then(|| {
            self.answered = Some(room.clone());
            room
        })
    }

    /// Begins to count anew.
    pub(crate) fn moved(&mut self) {
        self.looks.clear();
        self.answered = None;
    }
}

/// What is left to others: a twentieth of the memory and at most 1 GiB, but no more than half of what the
/// model has left of it.
fn headroom(memory: &Memory) -> u64 {
    let share = memory.total.map_or(HEADROOM_AT_MOST, |total| total / HEADROOM_SHARE);
    share.min(HEADROOM_AT_MOST).min(memory.free.map_or(u64::MAX, |free| free / 2))
}

/// What `memory` means for a model that holds `held` bytes of it.
fn reading(memory: &Memory, held: u64, headroom: u64) -> Reading {
    // A total below what is held, with more to be had, is no total: a driver tells of one part of its memory.
    let total = memory.total.filter(|&total| held <= total || memory.free.is_none_or(|free| free == 0));
    let leaving = |left: u64| {
        let of_total = total.map_or(u64::MAX, |total| total.saturating_sub(left));
        let of_free = memory.free.map_or(u64::MAX, |free| held.saturating_add(free).saturating_sub(left));
        of_total.min(of_free)
    };
    Reading {
        free: memory.free,
        headroom,
        short: held > leaving(headroom),
        fits: leaving(headroom + headroom / 2),
    }
}

/// Sets the limits of the devices that a watched file names; whether it could be read.
fn pretend(file: &Path, candidates: &[Candidate]) -> bool {
    match read_pretended(file) {
        Ok(sizes) => {
            for candidate in candidates {
                if let (Some(limit), Some(&size)) = (&candidate.limit, sizes.get(&candidate.device.name)) {
                    limit.set(size);
                }
            }
            true
        }
        // It may be in the middle of being written: the next look reads it again.
        Err(error) => {
            tracing::debug!("{error}");
            false
        }
    }
}

/// The sizes in a file of `--pretend-memory`.
///
/// # Errors
/// [`Error::Usage`](crate::Error::Usage) naming the file.
pub(crate) fn read_pretended(file: &Path) -> Result<BTreeMap<String, u64>, crate::Error> {
    let wrong = |why: String| crate::Error::Usage(format!("--pretend-memory @{}: {why}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
    parse_pretend_memory(&text.split_whitespace().collect::<Vec<_>>().join(","))
        .map_err(|error| wrong(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(total: u64, free: u64) -> Memory {
        Memory { pool: "host".into(), total: Some(total), free: Some(free), source: "a test".into() }
    }

    #[test]
    fn short_is_what_leaves_less_than_the_headroom() {
        let headroom = headroom(&memory(1000, 400));
        assert_eq!(headroom, 50);
        // Others take memory; the model holds 600.
        for (free, short, fits) in
            [(400, false, 925), (51, false, 576), (50, false, 575), (49, true, 574), (0, true, 525)]
        {
            let found = reading(&memory(1000, free), 600, headroom);
            assert_eq!((found.short, found.fits), (short, fits), "{free} free");
        }
        // The device itself shrinks below what is held.
        let found = reading(&memory(400, 0), 600, headroom);
        assert_eq!((found.short, found.fits), (true, 325));
        // It holds more than it says that there is, and gives more: its total is not true.
        assert!(!reading(&memory(400, 300), 600, headroom).short);
    }

    #[test]
    fn a_model_that_leaves_little_is_content_with_half_of_it() {
        let little = memory(1000, 20);
        assert_eq!(headroom(&little), 10);
        assert!(!reading(&little, 900, 10).short);
        assert!(reading(&memory(1000, 9), 900, 10).short);
        // And it may come back to where it was.
        assert!(reading(&little, 900, 10).fits >= 900);
    }

    #[test]
    fn nothing_is_short_where_nothing_is_known() {
        let unknown = Memory { pool: "gpu".into(), total: None, free: None, source: "nobody".into() };
        let found = reading(&unknown, 600, headroom(&unknown));
        assert!(!found.short && found.fits == u64::MAX);
    }

    #[test]
    fn room_must_last() {
        let mut pressure = Pressure::new(None);
        let mut look = |free| pressure.lasting_room(&[reading(&memory(1000, free), 600, 0)]);
        for _ in 0..ROOMY_LOOKS - 1 {
            assert_eq!(look(400), None);
        }
        assert_eq!(look(400), Some(vec![1000]));
        assert_eq!(look(400), None, "said already");
        for _ in 0..3 * ROOMY_LOOKS {
            // To and fro: there is no more that lasts.
            assert_eq!((look(100), look(400)), (None, None));
        }
        pressure.moved();
        let mut look = |free| pressure.lasting_room(&[reading(&memory(1000, free), 600, 0)]);
        let found: Vec<_> =
            (0..2 * ROOMY_LOOKS).filter_map(|at| look(if at == 0 { 10 } else { 200 })).collect();
        assert_eq!(found, [vec![610], vec![800]]);
    }
}
