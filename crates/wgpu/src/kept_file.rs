//! Small files that save work at the next start, and may vanish or be spoiled at any time.
//!
//! A file is a line that names what it is for, a line with a checksum, and the bytes. It appears by rename, so
//! that no reader sees half of it; what does not read as it was written counts as absent.

use std::fs;
use std::path::{Path, PathBuf};

/// A file under a directory of such files.
#[derive(Debug, Clone)]
pub(crate) struct KeptFile {
    path: PathBuf,
    key: String,
}

/// FNV-1a, which tells apart what chance and cut writes do to a file.
fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, &byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

impl KeptFile {
    /// The file called `name` for `key`, one line that says for which adapter, driver and version it holds.
    pub(crate) fn new(dir: &Path, name: &str, key: &str) -> Self {
        let key = key.replace('\n', " ");
        let path = dir.join(format!("{name}-{:016x}", checksum(key.as_bytes())));
        Self { path, key }
    }

    /// Its bytes, if they are there and whole.
    pub(crate) fn read(&self) -> Option<Vec<u8>> {
        let bytes = fs::read(&self.path).ok()?;
        let bytes = bytes.strip_prefix(self.key.as_bytes())?.strip_prefix(b"\n")?;
        let (sum, data) = bytes.split_at_checked(17)?;
        (sum == format!("{:016x}\n", checksum(data)).as_bytes()).then(|| data.to_vec())
    }

    /// Writes it; a directory that cannot be written to is no failure, the work is then done again next time.
    pub(crate) fn write(&self, data: &[u8]) -> bool {
        let whole = [format!("{}\n{:016x}\n", self.key, checksum(data)).as_bytes(), data].concat();
        // Two processes may write at once.
        let part = self.path.with_extension(format!("{}.part", std::process::id()));
        let written = self
            .path
            .parent()
            .map_or(Ok(()), fs::create_dir_all)
            .and_then(|()| fs::write(&part, whole))
            .and_then(|()| fs::rename(&part, &self.path));
        if written.is_err() {
            let _ = fs::remove_file(&part);
        }
        written.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_as_it_was_written_is_absent() {
        let dir = tempfile::tempdir().unwrap();
        let file = KeptFile::new(dir.path(), "pipelines", "an adapter");
        assert_eq!(file.read(), None);
        assert!(file.write(b"data"));
        assert_eq!(file.read().as_deref(), Some(b"data".as_slice()));
        assert_eq!(KeptFile { key: "another".into(), ..file.clone() }.read(), None);
        let whole = fs::read(&file.path).unwrap();
        for spoiled in [&whole[..whole.len() - 1], &whole[..5], b"", &[whole.as_slice(), b"x"].concat()] {
            fs::write(&file.path, spoiled).unwrap();
            assert_eq!(file.read(), None);
        }
        let mut flipped = whole;
        *flipped.last_mut().unwrap() ^= 1;
        fs::write(&file.path, flipped).unwrap();
        assert_eq!(file.read(), None);
        assert!(file.write(b"again"));
        assert_eq!(file.read().as_deref(), Some(b"again".as_slice()));
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_no_failure() {
        let dir = tempfile::tempdir().unwrap();
        let taken = dir.path().join("taken");
        fs::write(&taken, b"a file").unwrap();
        let file = KeptFile::new(&taken, "pipelines", "an adapter");
        assert!(!file.write(b"data"));
        assert_eq!(file.read(), None);
    }
}
