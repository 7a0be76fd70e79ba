//! Reading pages that have left the page cache, as layers on the disk are read.

use rustix::fs::{Advice, fadvise};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

/// Bytes that one call asks the system to read ahead, as for the maps of layers.
const AHEAD: u64 = 128 << 10;
/// Bytes that are read at a time.
const READ: usize = 1 << 20;

/// What reading each piece took of those that memory did not keep. They are in the page cache afterwards.
pub(super) fn seconds(path: &Path, begins: &[u64], piece: u64) -> io::Result<Vec<f64>> {
    let file = File::open(path)?;
    let mut buffer = vec![0; READ];
    let mut seconds = Vec::new();
    for &from in begins {
        fadvise(&file, from, NonZeroU64::new(piece), Advice::DontNeed)?;
        if !is_away(&file, from, piece)? {
            continue;
        }
        let start = Instant::now();
        for ahead in (from..from + piece).step_by(AHEAD as usize) {
            fadvise(&file, ahead, NonZeroU64::new(AHEAD), Advice::WillNeed)?;
        }
        for read in (from..from + piece).step_by(READ) {
            file.read_exact_at(&mut buffer, read)?;
        }
        seconds.push(start.elapsed().as_secs_f64());
    }
    Ok(seconds)
}

/// Whether memory holds nothing of four places of this range.
fn is_away(file: &File, from: u64, len: u64) -> io::Result<bool> {
    for place in (from..from + len).step_by((len / 4) as usize) {
        let mut byte = [0];
        match preadv2(file, &mut [IoSliceMut::new(&mut byte)], place, ReadWriteFlags::NOWAIT) {
            Err(Errno::AGAIN) => {}
            Ok(_) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}
