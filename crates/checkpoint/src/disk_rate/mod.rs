//! How fast a file is read from its disk, past what memory keeps of it.

#[cfg(target_os = "linux")]
mod dropped;
#[cfg(any(windows, all(test, target_os = "linux")))]
mod unbuffered;

#[cfg(target_os = "linux")]
use dropped as system;
#[cfg(windows)]
use unbuffered as system;

use std::path::{Component, Path};

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

/// Pieces, spread over the file.
const PIECES: u64 = 4;
/// Bytes of each at most.
const LARGEST: u64 = 32 << 20;
/// Bytes of each at least, of which all are multiples: a whole number of reads that start where the page cache and sectors
/// of disks do.
const STEP: u64 = 4 << 20;

/// Where pieces of a file of `len` bytes begin, and their length; `None` of one that is too small to tell.
fn pieces(len: u64) -> Option<([u64; PIECES as usize], u64)> {
    let piece = (len / PIECES).min(LARGEST) / STEP * STEP;
    let begin = |at: u64| (len - piece) / (PIECES - 1) * at / 4096 * 4096;
    (piece > 0).then(|| ([0, 1, 2, 3].map(begin), piece))
}

/// Reads four pieces of a file, 32 MiB each at most, past the page cache: on Linux as layers on the disk are read, after their
/// pages have left it, which is checked; on Windows through a handle without buffers.
///
/// # Errors
/// Why nothing could be measured, as a phrase: a file of less than 16 MiB; one that memory holds whatever is asked of
/// it, as on a tmpfs or while another process has it mapped; a system that does not say what memory holds, such as macOS,
/// whose `F_NOCACHE` still reads pages that are there.
pub fn disk_rate(file: &Path) -> Result<DiskRate, String> {
    #[cfg(any(target_os = "linux", windows))]
    {
        let failed = |error: std::io::Error| format!("{}: {error}", file.display());
        let len = std::fs::metadata(file).map_err(failed)?.len();
        let (begins, piece) =
            pieces(len).ok_or_else(|| format!("{} is too small to tell", file.display()))?;
        let seconds = system::seconds(file, &begins, piece).map_err(failed)?;
        DiskRate::of(piece, seconds).ok_or_else(|| format!("memory keeps {}", file.display()))
    }
    #[cfg(not(any(target_os = "linux", windows)))]
    {
        _ = (pieces, DiskRate::of);
        Err(format!("this system does not say what memory keeps of {}", file.display()))
    }
}

/// The file system that a path is on: its kind and its source, as in `ext4 /dev/nvme0n1p2`, or the drive of Windows.
/// `None` where the system does not say.
pub fn file_system(path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    if let Some(Component::Prefix(drive)) = path.components().next() {
        return Some(drive.as_os_str().to_string_lossy().into_owned());
    }
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
    fn pieces_are_whole_steps_within_the_file() {
        for len in [(16 << 20) + 1, 17 << 20, 100 << 20, (1 << 30) + 4097, 5 << 40] {
            let (begins, piece) = pieces(len).unwrap();
            assert!(piece % STEP == 0 && piece <= LARGEST);
            assert!(begins.iter().all(|begin| begin % 4096 == 0), "{begins:?}");
            assert!(begins.windows(2).all(|two| two[0] + piece <= two[1]) && begins[3] + piece <= len);
        }
        assert_eq!(pieces((16 << 20) - 1), None);
        assert_eq!(pieces(0), None);
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
