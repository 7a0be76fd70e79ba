//! The layout of the cache that Python's `huggingface_hub` and this program share.
//!
//! `models--org--name/` has `refs/<branch or tag>` (a file with a commit), `snapshots/<commit>/` (the
//! files by name, links) and `blobs/` (what the names link to, named by their etags; `.incomplete` while they
//! are fetched). `.locks/models--org--name/<etag>.lock` is locked by who fetches a blob.

use crate::index::ShardIndex;
use crate::native::{SHARD_INDEX, SINGLE};
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One model's place in the cache.
pub(super) struct Cache {
    root: PathBuf,
    folder: String,
}

impl Cache {
    pub fn new(root: PathBuf, model: &str) -> Cache {
        Cache { root, folder: format!("models--{}", model.replace('/', "--")) }
    }

    /// The directory of all models.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn model(&self) -> PathBuf {
        self.root.join(&self.folder)
    }

    /// Where the files of a commit are.
    pub fn snapshot_dir(&self, commit: &str) -> PathBuf {
        self.model().join("snapshots").join(commit)
    }

    /// The commit of a branch, tag or commit, if the cache knows it.
    pub fn commit(&self, revision: &str) -> Option<String> {
        let commit = if is_commit(revision) {
            revision.to_string()
        } else {
            std::fs::read_to_string(self.reference(revision)).ok()?.trim().to_string()
        };
        is_commit(&commit).then_some(commit)
    }

    /// Where the files of a branch, tag or commit are, if the cache has it.
    pub fn snapshot(&self, revision: &str) -> Option<PathBuf> {
        let snapshot = self.snapshot_dir(&self.commit(revision)?);
        snapshot.is_dir().then_some(snapshot)
    }

    /// Notes that a branch or tag is at a commit.
    pub fn point(&self, revision: &str, commit: &str) -> io::Result<()> {
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
        self.model().join("refs").join(revision)
    }

    /// Where the bytes of an etag are.
    pub fn blob(&self, etag: &str) -> PathBuf {
        self.model().join("blobs").join(etag)
    }

    /// Where they are while they are fetched.
    pub fn incomplete(&self, etag: &str) -> PathBuf {
        self.model().join("blobs").join(format!("{etag}.incomplete"))
    }

    /// Makes `file` of `commit` a link to the bytes of `etag`; where there are no links, the bytes move there.
    pub fn link(&self, commit: &str, file: &str, etag: &str) -> io::Result<PathBuf> {
        let path = self.snapshot_dir(commit).join(file);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let mut target: PathBuf = (0..file.split('/').count() + 1).map(|_| "..").collect();
        target.extend(["blobs", etag]);
        // Under another name first: at no time is the name missing or half there.
        let new = path.with_file_name(format!(".{etag}.{}.link", std::process::id()));
        let _ = std::fs::remove_file(&new);
        match symlink(&target, &new) {
            Ok(()) => std::fs::rename(&new, &path)?,
            Err(_) => std::fs::rename(self.blob(etag), &path)?,
        }
        Ok(path)
    }

    /// Waits until no other process fetches `etag`; `waiting` is called once if that takes time. On a file
    /// system without locks there is no waiting.
    pub fn lock(&self, etag: &str, waiting: &dyn Fn()) -> io::Result<File> {
        let dir = self.root.join(".locks").join(&self.folder);
        std::fs::create_dir_all(&dir)?;
        let path = dir.join(format!("{etag}.lock"));
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        let mut said = false;
        loop {
            match file.try_lock() {
                Err(TryLockError::WouldBlock) if !said => {
                    said = true;
                    waiting();
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(50)),
                Ok(()) | Err(TryLockError::Error(_)) => return Ok(file),
            }
        }
    }
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_target: &Path, _link: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Whether a text is a commit's full hash.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether an etag can be the name of a file.
pub(super) fn is_plain_etag(etag: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !etag.is_empty() && etag.len() <= 128 && !etag.starts_with('.') && etag.chars().all(plain)
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
