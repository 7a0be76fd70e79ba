//! How fast this machine reads memory: the limit of decoding.

use crate::buffer::zeroed;
use crate::cache_size;
use crate::team::Team;
use halfbyte_backend::{DeviceInfo, Fault, Memory, Purpose, human_bytes};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Bytes that are read, where there is room for them and caches are small.
const BUFFER: u64 = 1 << 30;

/// A buffer has this many times the bytes of all caches, or what is measured is the caches: of one pass over it nothing
/// is left there when the next one begins.
const BEYOND_CACHES: u64 = 4;

/// The best of this many passes at least: what the memory can do, not what other processes left of it.
const PASSES: usize = 8;

/// Passes go on for so long: virtual machines are now and then held up for tens of milliseconds.
const LEAST: Duration = Duration::from_millis(300);

/// Words that a thread reads at a time, 1 MiB: fewer spread the threads over memory too finely, which costs a
/// tenth and more of the bandwidth.
const STRETCH: usize = 1 << 17;

/// Bytes a second that all threads of `team` together read, by summing a [`buffer`] that is backed by the same large
/// pages as weights are.
///
/// # Errors
/// [`Fault::OutOfMemory`] where too little is free for a figure that means something.
pub(crate) fn read(team: &Team, memory: &Memory, info: &DeviceInfo) -> Result<f64, Fault> {
    let caches = cache_size::all();
    let fault = |wanted| Fault::OutOfMemory {
        device: info.name.clone(),
        name: format!("measuring its bandwidth past {} of caches", human_bytes(caches)),
        wanted,
        free: memory.free,
        what: Purpose::Scratch,
    };
    let bytes = buffer(memory.free, caches).map_err(fault)? as usize;
    let mut buffer: Vec<u64> = zeroed(bytes / 8).map_err(|shortage| fault(shortage.0))?;
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

/// Bytes to read: [`BUFFER`], an eighth of the free memory at most, but always more than `caches` hold; for that, up to
/// half of the free memory. `Err`: the bytes that were to be free.
fn buffer(free: Option<u64>, caches: u64) -> Result<u64, u64> {
    let least = caches.saturating_mul(BEYOND_CACHES);
    let bytes = free.map_or(BUFFER / 4, |free| (free / 8).min(BUFFER)).max(least);
    if free.is_some_and(|free| bytes > free / 2) { Err(least.saturating_mul(2)) } else { Ok(bytes) }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_larger_than_the_caches_or_there_is_none() {
        const MIB: u64 = 1 << 20;
        let whole = |bytes| bytes / MIB;
        let of = |free: u64, caches: u64| buffer(Some(free * MIB), caches * MIB).map(whole).map_err(whole);
        assert_eq!(of(64 << 10, 36), Ok(1024));
        assert_eq!(of(4096, 36), Ok(512));
        // An eighth is 50 MiB, which a cache of 36 would answer for.
        assert_eq!(of(400, 36), Ok(144));
        assert_eq!(of(200, 36), Err(288));
        assert_eq!(of(64 << 10, 400), Ok(1600), "a server's caches");
        assert_eq!(buffer(None, 36 * MIB), Ok(256 * MIB));
    }
}
