//! A shard that is being written, and the journal of what is done of it.
//!
//! The journal (`<shard>.journal`) has a line of JSON for each tensor of the source that is done: the checksum
//! of every tensor that it became, its quant state, and what the source notes of itself. A line is
//! written after the bytes that it speaks of, and is believed only as far as their sums agree, so that a run
//! that ended at any instant, even by a failing machine, is gone on with from the last tensor that is whole.

use super::checksum::Checksum;
use super::layout::Layout;
use crate::error::CheckpointError;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Bytes that are handed to the system at once. Copied tensors come straight from the memory map: a piece
/// is in memory only while it is written.
const PIECE: usize = 8 << 20;

/// What is done with one tensor of the source.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Line {
    /// The tensor of the source.
    pub(super) tensor: String,
    /// The tensors that it became and that have their place, with the checksum of each.
    pub(super) sums: Vec<(String, u64)>,
    /// Its quant state.
    pub(super) state: Option<String>,
    /// What the source notes of itself.
    pub(super) mark: Option<String>,
}

/// The file of a shard before it has its name.
pub(super) struct Part {
    pub(super) file: File,
    path: PathBuf,
    journal: File,
    /// What an interrupted run did, in the order of the layout.
    pub(super) done: Vec<Line>,
}

impl Part {
    /// What an interrupted run left of the shard, checked, or an empty file; from now on `journal` notes what
    /// is done.
    pub(super) fn open(
        path: &Path,
        journal: &Path,
        layout: &Layout<'_, '_>,
    ) -> Result<Part, CheckpointError> {
        let open = |path: &Path| {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
            file.map_err(|error| failed(path, error))
        };
        let mut file = open(path)?;
        let mut lines = open(journal)?;
        let mut done = Vec::new();
        for (line, item) in lines_of(&lines).zip(layout.items) {
            if line.tensor != item.name() || !holds(&mut file, layout, &line) {
                break;
            }
            done.push(line);
        }
        // What does not hold is written anew.
        let text: String =
            done.iter().filter_map(|line| Some(serde_json::to_string(line).ok()? + "\n")).collect();
        lines
            .set_len(0)
            .and_then(|()| lines.seek(SeekFrom::Start(0)))
            .and_then(|_| lines.write_all(text.as_bytes()))
            .map_err(|error| failed(journal, error))?;
        Ok(Part { file, path: path.to_path_buf(), journal: lines, done })
    }

    pub(super) fn failed(&self, source: io::Error) -> CheckpointError {
        failed(&self.path, source)
    }

    pub(super) fn put(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut file = &self.file;
        file.seek(SeekFrom::Start(at))?;
        bytes.chunks(PIECE).try_for_each(|piece| file.write_all(piece))
    }

    /// Notes that a tensor is done. Its bytes have been put.
    pub(super) fn note(&self, line: &Line) -> io::Result<()> {
        let text = serde_json::to_string(line).map_err(io::Error::other)? + "\n";
        (&self.journal).write_all(text.as_bytes())
    }
}

/// The last line of a finished shard's journal, if there is one.
pub(super) fn last_line(journal: &Path) -> Option<Line> {
    lines_of(&File::open(journal).ok()?).last()
}

/// The lines of a journal up to the first that was not written to its end.
fn lines_of(journal: &File) -> impl Iterator<Item = Line> {
    BufReader::new(journal).lines().map_while(|line| serde_json::from_str(&line.ok()?).ok())
}

/// Whether the bytes of a line are where they should be.
fn holds(file: &mut File, layout: &Layout<'_, '_>, line: &Line) -> bool {
    let places: HashMap<&str, (u64, u64)> =
        layout.fixed.iter().map(|entry| (entry.name.as_str(), (entry.offset, entry.bytes))).collect();
    line.sums.iter().all(|(name, wanted)| {
        places.get(name.as_str()).is_some_and(|&(offset, bytes)| {
            sum_of(file, layout.data_start + offset, bytes).is_ok_and(|found| found == *wanted)
        })
    })
}

fn sum_of(file: &mut File, at: u64, bytes: u64) -> io::Result<u64> {
    file.seek(SeekFrom::Start(at))?;
    let mut sum = Checksum::new();
    let mut piece = vec![0; PIECE.min(bytes as usize)];
    let mut left = bytes;
    while left > 0 {
        let piece = &mut piece[..PIECE.min(left as usize)];
        file.read_exact(piece)?;
        sum.update(piece);
        left -= piece.len() as u64;
    }
    Ok(sum.finish())
}

fn failed(path: &Path, source: io::Error) -> CheckpointError {
    CheckpointError::Write { file: path.display().to_string(), source }
}
