//! How fast this machine reads memory: the limit of decoding.

use crate::buffer::zeroed;
use crate::team::Team;
use halfbyte_backend::{DeviceInfo, Fault, Memory, Purpose};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Larger than the last-level cache of any processor of today that is not a server's; on those a part of
/// it may stay in the cache, and the figure is then the higher one.
const BUFFER: u64 = 1 << 30;

/// The best of this many passes at least: what the memory can do, not what other processes left of it.
const PASSES: usize = 8;

/// Passes go on for so long: virtual machines are now and then held up for tens of milliseconds.
const LEAST: Duration = Duration::from_millis(300);

/// Words that a thread reads at a time, 1 MiB: fewer spread the threads over memory too finely, which costs a
/// tenth and more of the bandwidth.
const STRETCH: usize = 1 << 17;

/// Bytes a second that all threads of `team` together read, by summing a buffer of up to 1 GiB, an eighth of the
/// free memory at most, which is backed by the same large pages as weights are.
pub(crate) fn read(team: &Team, memory: &Memory, info: &DeviceInfo) -> Result<f64, Fault> {
    let bytes = memory.free.map_or(BUFFER / 4, |free| (free / 8).min(BUFFER)) as usize;
    let mut buffer: Vec<u64> = zeroed(bytes / 8).map_err(|shortage| Fault::OutOfMemory {
        device: info.name.clone(),
        name: "the buffer that measures bandwidth".into(),
        wanted: shortage.0,
        free: memory.free,
        what: Purpose::Scratch,
    })?;
    let (mut best, mut passes, begin) = (f64::INFINITY, 0, Instant::now());
    while passes < PASSES || begin.elapsed() < LEAST {
        let start = Instant::now();
        team.chunks(black_box(&mut buffer), STRETCH, |_, _, words| {
            black_box(sum(words));
        });
        best = best.min(start.elapsed().as_secs_f64());
        passes += 1;
    }
    Ok(size_of_val(buffer.as_slice()) as f64 / best.max(f64::MIN_POSITIVE))
}

/// Many independent sums keep the loads, not the additions, the limit.
fn sum(words: &[u64]) -> u64 {
    let mut sums = [0_u64; 32];
    let (lines, rest) = words.as_chunks::<32>();
    for line in lines {
        for (sum, word) in sums.iter_mut().zip(line) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.iter().chain(rest).fold(0, |sum, word| sum.wrapping_add(*word))
}
