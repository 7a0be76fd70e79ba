//! How fast this machine reads memory: the limit of decoding.

use halfbyte_backend::{DeviceInfo, Fault, Memory, Purpose};
use halfbyte_quant::allocation::handled;
use rayon::ThreadPool;
use rayon::prelude::*;
use std::hint::black_box;
use std::time::Instant;

/// Larger than the last-level cache of any processor of today that is not a server's; on those a part of
/// it may stay in the cache, and the figure is then the higher one.
const BUFFER: u64 = 1 << 30;

/// The best of this many passes: what the memory can do, not what other processes left of it.
const PASSES: usize = 5;

/// Bytes a second that all threads together read, by summing a buffer of up to 1 GiB, an eighth of the
/// free memory at most.
pub(crate) fn read(pool: Option<&ThreadPool>, memory: &Memory, info: &DeviceInfo) -> Result<f64, Fault> {
    let bytes = memory.free.map_or(BUFFER / 4, |free| (free / 8).min(BUFFER)) as usize;
    let words = bytes / 8;
    let mut buffer: Vec<u64> = Vec::new();
    handled(|| buffer.try_reserve_exact(words)).map_err(|_| Fault::OutOfMemory {
        device: info.name.clone(),
        name: "the buffer that measures bandwidth".into(),
        wanted: bytes as u64,
        free: memory.free,
        what: Purpose::Scratch,
    })?;
    buffer.resize(words, 1);
    // Many independent sums keep the loads, not the additions, the limit.
    let fast = |chunk: &[u64]| -> u64 {
        let mut sums = [0_u64; 32];
        let (lines, rest) = chunk.as_chunks::<32>();
        for line in lines {
            for (sum, word) in sums.iter_mut().zip(line) {
                *sum = sum.wrapping_add(*word);
            }
        }
        sums.iter().chain(rest).sum()
    };
    let pass = |buffer: &[u64]| -> u64 {
        match pool {
            Some(pool) => pool.install(|| buffer.par_chunks(1 << 15).map(fast).sum()),
            None => buffer.chunks(1 << 15).map(fast).sum(),
        }
    };
    let mut best = f64::INFINITY;
    for _ in 0..PASSES {
        let start = Instant::now();
        black_box(pass(black_box(&buffer)));
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok((words * 8) as f64 / best)
}
