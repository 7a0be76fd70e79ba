//! The layout of the cache that Python's `huggingface_hub` and this program share.
//!
//! `models--org--name/` has `refs/<branch or tag>` (a file with a commit), `snapshots/<commit>/` (the
//! files by name) and `blobs/` (what the names link to).

use crate::index::ShardIndex;
use crate::native::{SHARD_INDEX, SINGLE};
use std::io;
use std::path::{Path, PathBuf};

/// One model's place in the cache.
pub(super) struct Cache {
    root: PathBuf,
    model: PathBuf,
}

impl Cache {
    pub fn new(root: PathBuf, model: &str) -> Cache {
        let folder = format!("models--{}", model.replace('/', "--"));
        Cache { model: root.join(folder), root }
    }

    /// The directory of all models.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the files of a commit are.
    pub fn snapshot_dir(&self, commit: &str) -> PathBuf {
        self.model.join("snapshots").join(commit)
    }

    /// Where the files of a branch, tag or commit are, if the cache knows it.
    pub fn snapshot(&self, revision: &str) -> Option<PathBuf> {
        let commit = if is_commit(revision) {
            revision.to_string()
        } else {
            let commit = std::fs::read_to_string(self.reference(revision)).ok()?;
            commit.trim().to_string()
        };
        let snapshot = self.snapshot_dir(&commit);
        (is_commit(&commit) && snapshot.is_dir()).then_some(snapshot)
    }

    /// Notes that a branch or tag is at a commit.
    pub fn point(&self, revision: &str, commit: &str) -> io::Result<()> {
        // hf-hub, which is asked for a commit's files, notes the commit as if it were a branch.
        let _ = std::fs::remove_file(self.reference(commit));
        if is_commit(revision) {
            return Ok(());
        }
        let reference = self.reference(revision);
        if let Some(parent) = reference.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(reference, commit)
    }

    fn reference(&self, revision: &str) -> PathBuf {
        self.model.join("refs").join(revision)
    }
}

/// Whether a text is a commit's full hash.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether a snapshot has a configuration and all its weights: a download may have broken off.
pub(super) fn is_complete(snapshot: &Path) -> bool {
    if !snapshot.join("config.json").is_file() {
        return false;
    }
    if snapshot.join(SINGLE).is_file() {
        return true;
    }
    let Ok(json) = std::fs::read(snapshot.join(SHARD_INDEX)) else {
        return false;
    };
    ShardIndex::parse(SHARD_INDEX, &json).is_ok_and(|shards| {
        let mut names = shards.shards().iter();
        names.all(|shard| snapshot.join(shard).is_file())
    })
}
