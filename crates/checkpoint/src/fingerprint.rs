//! What tells a model's files from those of another model, or from their own later selves.

use crate::checkpoint::Checkpoint;
use serde_json::{Value, json};
use std::path::Path;
use std::time::UNIX_EPOCH;

/// The files of a checkpoint, each with its real path, length and time of change: `[[path, bytes, ns], …]`.
///
/// In the Hub's cache the real path is that of a blob, whose name is its hash, so a new revision is another
/// path. What is not a file, such as an embedded model, has the name and length of its bytes.
pub fn fingerprint(checkpoint: &Checkpoint) -> Value {
    let config = std::iter::once(checkpoint.config.file.as_str());
    let files = config.chain(checkpoint.index.files().iter().map(String::as_str));
    files.map(|file| of_file(file, checkpoint)).collect()
}

fn of_file(file: &str, checkpoint: &Checkpoint) -> Value {
    let path = std::fs::canonicalize(file).unwrap_or_else(|_| Path::new(file).to_path_buf());
    match std::fs::metadata(&path) {
        Ok(found) => {
            let changed = found.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            json!([path.to_string_lossy(), found.len(), changed.map_or(0, |time| time.as_nanos() as u64)])
        }
        Err(_) => json!([file, checkpoint.index.total_bytes(), 0]),
    }
}
