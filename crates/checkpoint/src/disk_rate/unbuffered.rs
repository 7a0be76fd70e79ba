//! Reading through a handle that knows no page cache.
//!
//! For Windows, whose `FILE_FLAG_NO_BUFFERING` (Win32, "File Buffering") reads from the disk whatever memory holds, where
//! offsets, lengths and addresses are whole sectors. Linux's `O_DIRECT` asks for the same, so that this is tested there;
//! it is not used there, since a tmpfs takes it and reads memory.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::time::Instant;

/// Bytes that are read at a time.
const READ: usize = super::STEP as usize;
/// A multiple of all sectors of disks.
const SECTOR: usize = 4096;

/// What reading each piece took.
pub(super) fn seconds(path: &Path, begins: &[u64], piece: u64) -> io::Result<Vec<f64>> {
    let file = open(path)?;
    let mut buffer = vec![0; READ + SECTOR];
    let first = buffer.as_ptr().align_offset(SECTOR);
    let buffer = buffer.get_mut(first..first.saturating_add(READ)).ok_or(io::ErrorKind::OutOfMemory)?;
    let mut seconds = Vec::new();
    for &from in begins {
        let start = Instant::now();
        for place in (from..from + piece).step_by(READ) {
            if read(&file, buffer, place)? != READ {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        seconds.push(start.elapsed().as_secs_f64());
    }
    Ok(seconds)
}

#[cfg(windows)]
fn open(path: &Path) -> io::Result<File> {
    const FILE_FLAG_NO_BUFFERING: u32 = 0x2000_0000;
    use std::os::windows::fs::OpenOptionsExt;
    OpenOptions::new().read(true).custom_flags(FILE_FLAG_NO_BUFFERING).open(path)
}

#[cfg(windows)]
fn read(file: &File, buffer: &mut [u8], place: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, buffer, place)
}

#[cfg(not(windows))]
fn open(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new().read(true).custom_flags(rustix::fs::OFlags::DIRECT.bits() as i32).open(path)
}

#[cfg(not(windows))]
fn read(file: &File, buffer: &mut [u8], place: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, buffer, place)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file system without such handles (an older tmpfs) says so; any other takes these offsets and this buffer.
    #[test]
    fn whole_sectors_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, vec![7; (17 << 20) + 5]).unwrap();
        let (begins, piece) = super::super::pieces((17 << 20) + 5).unwrap();
        match seconds(&file, &begins, piece) {
            Ok(seconds) => assert!(seconds.len() == begins.len() && seconds.iter().all(|&one| one > 0.0)),
            Err(error) => assert!(open(&file).is_err(), "{error}"),
        }
    }
}
