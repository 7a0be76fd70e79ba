//! How fast a file is read from its disk, past what memory keeps of it.

use std::path::Path;

/// What reading pieces of a file took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DiskRate {
    /// Bytes a second, the median of the pieces.
    pub bytes_per_second: f64,
    /// The fastest piece by the slowest: how steady that was.
    pub spread: f64,
}

impl DiskRate {
    /// Of the seconds that pieces of `bytes` took; `None` of none.
    fn of(bytes: u64, mut seconds: Vec<f64>) -> Option<Self> {
        seconds.sort_by(f64::total_cmp);
        let (first, last) = (seconds.first()?, seconds.last()?);
        let median = seconds[seconds.len() / 2].max(f64::MIN_POSITIVE);
        Some(Self { bytes_per_second: bytes as f64 / median, spread: last / first.max(f64::MIN_POSITIVE) })
    }
}

/// Reads four pieces of a file as layers on the disk are read, 32 MiB each at most, after their pages have left the page
/// cache, and checks that they have. They are in the page cache afterwards.
///
/// # Errors
/// Why nothing could be measured, as a phrase: a file of less than 16 MiB; one that memory holds whatever is asked of
/// it, as on a tmpfs or while another process has it mapped; a system that does not say what memory holds (any but Linux).
pub fn disk_rate(file: &Path) -> Result<DiskRate, String> {
    system::disk_rate(file)
}

/// The file system that a path is on: its kind and its source, as in `ext4 /dev/nvme0n1p2`. `None` where the system does
/// not say (it is not Linux).
pub fn file_system(path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    file_system_of(&path, &std::fs::read_to_string("/proc/self/mountinfo").ok()?)
}

/// By the lines of `/proc/self/mountinfo` (proc_pid_mountinfo(5)): the mount with the longest path above this one, of
/// equal ones the last, which hides the others.
fn file_system_of(path: &Path, mounts: &str) -> Option<String> {
    let mount = |line: &str| {
        let (mount, kind) = line.split_once(" - ")?;
        let point = mount.split(' ').nth(4)?.replace("\\040", " ");
        let mut kind = kind.split(' ');
        let name = format!("{} {}", kind.next()?, kind.next()?);
        path.starts_with(&point).then_some((point.len(), name))
    };
    mounts.lines().filter_map(mount).max_by_key(|(len, _)| *len).map(|(_, name)| name)
}

#[cfg(target_os = "linux")]
mod system {
    use super::DiskRate;
    use rustix::fs::{Advice, fadvise};
    use rustix::io::{Errno, ReadWriteFlags, preadv2};
    use std::fs::File;
    use std::io::{self, IoSliceMut};
    use std::num::NonZeroU64;
    use std::os::unix::fs::FileExt;
    use std::path::Path;
    use std::time::Instant;

    /// Pieces, spread over the file.
    const PIECES: u64 = 4;
    /// Bytes of each at most, and at least.
    const LARGEST: u64 = 32 << 20;
    const SMALLEST: u64 = 4 << 20;
    /// Bytes that one call asks the system to read ahead, as for the maps of layers.
    const AHEAD: u64 = 128 << 10;
    /// Bytes that are read at a time.
    const READ: usize = 1 << 20;
    const PAGE: u64 = 4096;

    pub(super) fn disk_rate(path: &Path) -> Result<DiskRate, String> {
        let failed = |error: io::Error| format!("{}: {error}", path.display());
        let file = File::open(path).map_err(failed)?;
        let len = file.metadata().map_err(failed)?.len();
        let piece = (len / PIECES).min(LARGEST) / PAGE * PAGE;
        if piece < SMALLEST {
            return Err(format!("{} is too small to tell", path.display()));
        }
        let mut buffer = vec![0; READ];
        let mut seconds = Vec::new();
        for at in 0..PIECES {
            let from = (len - piece) / (PIECES - 1) * at / PAGE * PAGE;
            let length = NonZeroU64::new(piece);
            fadvise(&file, from, length, Advice::DontNeed).map_err(|error| failed(error.into()))?;
            if !is_away(&file, from, piece).map_err(failed)? {
                continue;
            }
            let start = Instant::now();
            for ahead in (from..from + piece).step_by(AHEAD as usize) {
                let length = NonZeroU64::new(AHEAD.min(from + piece - ahead));
                fadvise(&file, ahead, length, Advice::WillNeed).map_err(|error| failed(error.into()))?;
            }
            for read in (from..from + piece).step_by(READ) {
                let wanted = READ.min((from + piece - read) as usize);
                file.read_exact_at(&mut buffer[..wanted], read).map_err(failed)?;
            }
            seconds.push(start.elapsed().as_secs_f64());
        }
        DiskRate::of(piece, seconds).ok_or_else(|| format!("memory keeps {}", path.display()))
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
}

#[cfg(not(target_os = "linux"))]
mod system {
    use super::DiskRate;
    use std::path::Path;

    pub(super) fn disk_rate(_file: &Path) -> Result<DiskRate, String> {
        Err("this system does not say what memory keeps of a file".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_above_a_path_is_found() {
        let mounts = "22 1 254:0 / / rw shared:1 - ext4 /dev/vda rw\n\
            30 22 0:26 / /dev/shm rw,nosuid - tmpfs shm rw\n\
            31 22 259:2 / /mnt/my\\040disk rw master:1 propagate_from:2 - xfs /dev/nvme1n1 rw\n\
            32 22 0:99 / /mnt/my\\040disk rw - overlay overlay rw\nnonsense\n";
        let of = |path: &str| file_system_of(Path::new(path), mounts);
        assert_eq!(of("/home/a/model.safetensors").as_deref(), Some("ext4 /dev/vda"));
        assert_eq!(of("/dev/shm/a").as_deref(), Some("tmpfs shm"));
        assert_eq!(of("/dev/shmother").as_deref(), Some("ext4 /dev/vda"));
        assert_eq!(of("/mnt/my disk/a").as_deref(), Some("overlay overlay"), "the later hides the earlier");
        assert_eq!(file_system_of(Path::new("/"), ""), None);
    }

    #[test]
    fn a_rate_is_the_median_of_its_pieces() {
        let rate = DiskRate::of(100, vec![0.5, 0.1, 0.2]).unwrap();
        assert_eq!((rate.bytes_per_second, rate.spread), (500.0, 5.0));
        assert_eq!(DiskRate::of(100, Vec::new()), None);
    }

    /// What memory keeps is not taken for a disk: either the figure is of a disk, or there is none.
    #[test]
    #[cfg(target_os = "linux")]
    fn a_file_is_measured_past_the_page_cache_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, vec![7; 17 << 20]).unwrap();
        // Pages that were never written back cannot leave the page cache.
        std::fs::File::open(&file).unwrap().sync_all().unwrap();
        match disk_rate(&file) {
            Ok(rate) => assert!(rate.bytes_per_second > 0.0 && rate.spread >= 1.0, "{rate:?}"),
            Err(why) => assert!(why.contains("memory keeps") || why.contains("not supported"), "{why}"),
        }
        std::fs::write(&file, [7; 100]).unwrap();
        assert!(disk_rate(&file).unwrap_err().contains("too small"));
    }
}
