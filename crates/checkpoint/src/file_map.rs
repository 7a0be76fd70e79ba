//! A memory map that takes advice about what will be read.

use crate::region::Contents;
use memmap2::Mmap;
use std::fs::File;
use std::io;
use std::ops::Range;

/// A whole file, mapped to be read.
pub(crate) struct FileMap {
    map: Mmap,
    /// To tell the system about its pages.
    #[cfg_attr(not(unix), expect(dead_code, reason = "advice about a file is given on unix"))]
    file: File,
}

/// Bytes that one call asks the system to read: it reads no more than this ahead at once on Linux, whatever
/// the call says (`read_ahead_kb`, 128 mostly).
#[cfg(unix)]
const PIECE: usize = 128 << 10;

impl FileMap {
    /// Maps a file that is not empty.
    pub(crate) fn new(file: File) -> io::Result<FileMap> {
        // SAFETY: the map is read-only and lives as long as its bytes are borrowed. If another process
        // shortens the file meanwhile, reading beyond its new end ends this process with SIGBUS, and if it
        // rewrites the file, bytes change under us: neither is worth a copy of a 13 GB model in memory,
        // which the map avoids (its pages come from the page cache and can be dropped). All readers treat
        // the bytes as untrusted, and weights are used as plain numbers, for which any bytes are valid.
        let map = unsafe { Mmap::map(&file) }?;
        Ok(FileMap { map, file })
    }
}

impl Contents for FileMap {
    fn bytes(&self) -> &[u8] {
        &self.map
    }

    #[cfg(unix)]
    fn will_need(&self, range: &Range<usize>) {
        for at in range.clone().step_by(PIECE) {
            let len = PIECE.min(range.end - at);
            // Advice: what the system cannot do it leaves.
            _ = self.map.advise_range(memmap2::Advice::WillNeed, at, len);
        }
    }

    #[cfg(unix)]
    fn done_with(&self, range: &Range<usize>) {
        // SAFETY: the map is of a file and read-only: pages that are dropped are read again from the file with
        // the bytes that they had.
        let dropped = unsafe {
            self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len())
        };
        // Pages that no process has mapped any more leave the page cache, too.
        #[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
        if dropped.is_ok() {
            let len = std::num::NonZeroU64::new(range.len() as u64);
            _ = rustix::fs::fadvise(&self.file, range.start as u64, len, rustix::fs::Advice::DontNeed);
        }
        _ = dropped;
    }
}
