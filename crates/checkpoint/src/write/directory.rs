//! The output directory: ours or refused, each file whole or not there.

use super::layout::Layout;
use crate::error::CheckpointError;
use crate::header::Header;
use crate::native::{SHARD_INDEX, SINGLE};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Says that a directory is being written, for what, and (by its lock) whether the writer still lives.
const MARKER: &str = ".halfbyte-unfinished.json";

/// The ending of a shard's journal.
const JOURNAL: &str = ".journal";

/// A directory that this process alone is writing.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    /// Locked while this lives.
    marker: File,
}

impl Directory {
    /// Takes `path`, which must not exist, be empty, or be what an interrupted run left. What a run for
    /// another source or with other options left is removed; what the same one left is kept.
    pub(super) fn claim(path: &Path, identity: &Value) -> Result<Directory, CheckpointError> {
        let failed = |source| CheckpointError::Write { file: path.display().to_string(), source };
        let refused = |problem: &str| CheckpointError::Output {
            dir: path.display().to_string(),
            problem: problem.to_owned(),
        };
        if path.exists() && !path.is_dir() {
            return Err(refused("it is a file; give a directory that is new or empty"));
        }
        std::fs::create_dir_all(path).map_err(failed)?;
        let marker_path = path.join(MARKER);
        let ours = marker_path.exists();
        let occupied = "it holds other files; give a directory that is new or empty";
        if !ours && std::fs::read_dir(path).map_err(failed)?.next().is_some() {
            return Err(refused(occupied));
        }
        let mut marker = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&marker_path)
            .map_err(failed)?;
        match marker.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(refused("another process is writing it; wait for it to end"));
            }
            // A file system without locks: the marker alone must do.
            Err(TryLockError::Error(_)) => {}
        }
        if !marker_path.exists() {
            // The process that held the lock has just finished the directory.
            return Err(refused(occupied));
        }
        let directory = Directory { path: path.to_path_buf(), marker: marker.try_clone().map_err(failed)? };
        let mut text = String::new();
        let read = marker.read_to_string(&mut text);
        let same = read.is_ok() && serde_json::from_str::<Value>(&text).is_ok_and(|found| found == *identity);
        if !same {
            directory.clear(|name| name.ends_with(".part") || name.ends_with(JOURNAL) || is_output(name))?;
            marker
                .set_len(0)
                .and_then(|()| marker.seek(SeekFrom::Start(0)))
                .and_then(|_| marker.write_all(identity.to_string().as_bytes()))
                .and_then(|()| marker.sync_all())
                .map_err(failed)?;
        }
        Ok(directory)
    }

    /// Removes files of ours by name.
    fn clear(&self, unwanted: impl Fn(&str) -> bool) -> Result<(), CheckpointError> {
        let failed = |source| CheckpointError::Write { file: self.path.display().to_string(), source };
        for entry in std::fs::read_dir(&self.path).map_err(failed)?.flatten() {
            if entry.file_name().to_str().is_some_and(&unwanted) {
                std::fs::remove_file(entry.path()).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Where a file is written before it is renamed.
    pub(super) fn part(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.part"))
    }

    /// Where it is noted what is done of a shard.
    pub(super) fn journal(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}{JOURNAL}"))
    }

    /// Gives a complete file its name. It is on the disk before it has it.
    pub(super) fn publish(&self, name: &str, file: &File) -> Result<(), CheckpointError> {
        let path = self.path.join(name);
        file.sync_all()
            .and_then(|()| std::fs::rename(self.part(name), &path))
            .map_err(|source| CheckpointError::Write { file: path.display().to_string(), source })
    }

    /// Writes a small file.
    pub(super) fn put(&self, name: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
        let part = self.part(name);
        let failed = |source| CheckpointError::Write { file: part.display().to_string(), source };
        let mut file = File::create(&part).map_err(failed)?;
        file.write_all(bytes).map_err(failed)?;
        self.publish(name, &file)
    }

    /// The length of a shard that an interrupted run finished, if it has the tensors that it should.
    pub(super) fn finished_shard(
        &self,
        name: &str,
        layout: &Layout<'_, '_>,
    ) -> Result<Option<u64>, CheckpointError> {
        let path = self.path.join(name);
        let failed = |source: io::Error| CheckpointError::Io { file: path.display().to_string(), source };
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let len = file.metadata().map_err(failed)?.len();
        let mut prefix = Vec::new();
        (&mut file).take(layout.data_start).read_to_end(&mut prefix).map_err(failed)?;
        let Ok(header) = Header::parse(name, &prefix, len) else { return Ok(None) };
        let found: BTreeSet<&str> = header.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        Ok((header.data_start == layout.data_start && found == layout.names().collect()).then_some(len))
    }

    /// The model is complete: removes journals and the marker.
    pub(super) fn finish(self) -> Result<(), CheckpointError> {
        self.clear(|name| name.ends_with(JOURNAL))?;
        let path = self.path.join(MARKER);
        // Renames are durable when their directory is.
        if let Ok(directory) = File::open(&self.path) {
            let _ = directory.sync_all();
        }
        let removed = std::fs::remove_file(&path);
        let _ = self.marker.unlock();
        removed.map_err(|source| CheckpointError::Write { file: path.display().to_string(), source })
    }
}

/// Bytes that the files of a directory, such as an interrupted run left, take on the disk.
pub(super) fn bytes_in(path: &Path) -> u64 {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|found| on_disk(&found)).sum()
}

/// What a file takes: one that is written here and there has holes.
fn on_disk(found: &std::fs::Metadata) -> u64 {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        found.blocks().saturating_mul(512).min(found.len())
    }
    #[cfg(not(unix))]
    {
        found.len()
    }
}

/// Whether a file name is one that a run writes before its end.
fn is_output(name: &str) -> bool {
    let shard = name.starts_with("model-") && name.ends_with(".safetensors");
    shard || [SINGLE, SHARD_INDEX, "config.json"].contains(&name)
}
