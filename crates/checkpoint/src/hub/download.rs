//! All the files of a model that are needed: several at a time, told of by file and in total.

use super::cache::{Cache, is_commit};
use super::connection::{Ask, Connection, retrying};
use super::options::Settings;
use super::progress::Progress;
use super::refusal::Refusal;
use super::transfer::{self, Remote, Watch};
use super::wanted::{Weights, small};
use crate::error::shown;
use crate::index::ShardIndex;
use crate::native::SHARD_INDEX;
use crate::write::free_space;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};

/// Files that are fetched at a time.
const WORKERS: usize = 4;

/// A model at a commit on the Hub.
pub(super) struct Repo {
    pub connection: Connection,
    pub settings: Settings,
    pub model: String,
    pub commit: String,
    /// The names of its files.
    pub files: Vec<String>,
}

/// The names in the Hub's answer about a model.
#[derive(serde::Deserialize)]
struct Info {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(serde::Deserialize)]
struct Sibling {
    rfilename: String,
}

/// The longest answer about a model that is read.
const LONGEST_INFO: u64 = 64 << 20;

impl Repo {
    /// Asks the Hub what the revision of the settings is. All files then come from this one commit, even if
    /// the branch moves meanwhile.
    pub fn find(model: &str, settings: &Settings, note: &dyn Fn(String)) -> Result<Repo, Refusal> {
        let connection = Connection::new(settings)?;
        let url = connection.info_url(model);
        let info: Info = retrying(note, &mut || {
            let mut response = connection.ask("", &url, Ask::Whole)?;
            let body = response.body_mut().with_config().limit(LONGEST_INFO);
            body.read_json().map_err(|error| Refusal::of_request("", error))
        })?;
        if !is_commit(&info.sha) {
            return Err(Refusal::Malformed(format!("its commit is {}", shown(&info.sha))));
        }
        let files = info.siblings.into_iter().map(|file| file.rfilename).collect();
        Ok(Repo { connection, settings: settings.clone(), model: model.to_owned(), commit: info.sha, files })
    }

    /// The names of its files.
    pub fn names(&self) -> Vec<&str> {
        self.files.iter().map(String::as_str).collect()
    }

    /// Downloads what the cache lacks of configuration, tokenizer and index, and returns the snapshot.
    pub fn fetch_small(&self, cache: &Cache, progress: &mut dyn Progress) -> Result<PathBuf, Refusal> {
        let names = self.names();
        let weights = Weights::of(&names).map_err(Refusal::NoWeights)?;
        let mut wanted = small(&names);
        if weights == Weights::Sharded {
            wanted.push(SHARD_INDEX.to_owned());
        }
        self.fetch(cache, &wanted, progress)?;
        Ok(cache.snapshot_dir(&self.commit))
    }

    /// Downloads what the cache lacks and notes where the revision is.
    pub fn fetch_all(&self, cache: &Cache, progress: &mut dyn Progress) -> Result<PathBuf, Refusal> {
        let snapshot = self.fetch_small(cache, progress)?;
        self.fetch(cache, &self.weights(&snapshot)?, progress)?;
        cache.point(&self.settings.revision, &self.commit).map_err(Refusal::Disk)?;
        Ok(snapshot)
    }

    /// The names of the files with the weights; the index is in `snapshot`.
    pub fn weights(&self, snapshot: &Path) -> Result<Vec<String>, Refusal> {
        match Weights::of(&self.names()).map_err(Refusal::NoWeights)? {
            Weights::Single(file) => Ok(vec![file.to_owned()]),
            Weights::Sharded => {
                let index = snapshot.join(SHARD_INDEX);
                let json = std::fs::read(&index).map_err(Refusal::Disk)?;
                let shards = ShardIndex::parse(&index.display().to_string(), &json)
                    .map_err(|error| Refusal::Malformed(error.to_string()))?;
                Ok(shards.shards().to_vec())
            }
        }
    }

    /// What the Hub says about each of these files, asked for several at a time.
    pub fn ask(&self, files: &[String], progress: &mut dyn Progress) -> Result<Vec<Remote>, Refusal> {
        in_parallel(files, progress, |file, _, events| {
            let note = |text| drop(events.send(Event::Note(text)));
            Remote::ask(&self.connection, &self.model, &self.commit, file, &note)
        })
    }

    /// Downloads those of the files that the snapshot lacks.
    fn fetch(&self, cache: &Cache, files: &[String], progress: &mut dyn Progress) -> Result<(), Refusal> {
        let snapshot = cache.snapshot_dir(&self.commit);
        let missing = |file: &&String| !snapshot.join(file.as_str()).is_file();
        let missing: Vec<String> = files.iter().filter(missing).cloned().collect();
        if missing.is_empty() {
            return Ok(());
        }
        let remotes = self.ask(&missing, progress)?;
        check_space(cache, &remotes)?;
        let total = remotes.iter().map(|remote| remote.size).sum();
        progress.all(0, total);
        let done: Vec<AtomicU64> = remotes.iter().map(|_| AtomicU64::new(0)).collect();
        in_parallel(&remotes, progress, |remote, stop, events| {
            let at = remotes.iter().position(|one| std::ptr::eq(one, remote)).unwrap_or(0);
            let watch = Watcher { remote, stop, events, done: &done, at, total };
            transfer::fetch(&self.connection, cache, &self.model, &self.commit, remote, &watch)
        })?;
        Ok(())
    }
}

/// What a worker tells the thread that has the progress.
enum Event {
    /// Bytes of a file, then of all.
    At {
        file: String,
        done: u64,
        size: u64,
        all: u64,
        total: u64,
    },
    Note(String),
}

/// Passes on what becomes of one file.
struct Watcher<'a> {
    remote: &'a Remote,
    stop: &'a AtomicBool,
    events: &'a Sender<Event>,
    /// Bytes of each file that are there.
    done: &'a [AtomicU64],
    at: usize,
    total: u64,
}

impl Watch for Watcher<'_> {
    fn at(&self, bytes: u64) -> Result<(), Refusal> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Refusal::Stopped);
        }
        if let Some(done) = self.done.get(self.at) {
            done.store(bytes, Ordering::Relaxed);
        }
        let all = self.done.iter().map(|done| done.load(Ordering::Relaxed)).sum();
        let (file, size) = (self.remote.file.clone(), self.remote.size);
        // Nobody listens any more only when the download is over.
        let _ = self.events.send(Event::At { file, done: bytes, size, all, total: self.total });
        Ok(())
    }

    fn note(&self, text: String) {
        let _ = self.events.send(Event::Note(text));
    }
}

/// Does `work` for each of `items` on several threads; the results in their order. After a failure the others
/// end soon, and it is what is returned.
fn in_parallel<I: Sync, T: Send>(
    items: &[I],
    progress: &mut dyn Progress,
    work: impl Fn(&I, &AtomicBool, &Sender<Event>) -> Result<T, Refusal> + Sync,
) -> Result<Vec<T>, Refusal> {
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (events, heard) = channel();
    let done = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS.min(items.len()))
            .map(|_| {
                let events = events.clone();
                let (next, stop, work) = (&next, &stop, &work);
                scope.spawn(move || {
                    let mut done = Vec::new();
                    while let Some((at, item)) =
                        Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, items.get(at)?)))
                    {
                        let result = work(item, stop, &events);
                        let failed = result.is_err();
                        done.push((at, result));
                        if failed {
                            stop.store(true, Ordering::Relaxed);
                            break;
                        }
                    }
                    done
                })
            })
            .collect();
        drop(events);
        for event in heard {
            match event {
                Event::At { file, done, size, all, total } => {
                    progress.file(&file, done, size);
                    progress.all(all, total);
                }
                Event::Note(text) => progress.note(&text),
            }
        }
        let joined = workers.into_iter().map(|worker| worker.join().unwrap_or_default());
        joined.flatten().collect::<Vec<_>>()
    });
    let mut results: Vec<Option<T>> = items.iter().map(|_| None).collect();
    let mut first: Option<Refusal> = None;
    for (at, result) in done {
        match result {
            Ok(value) => results[at] = Some(value),
            Err(Refusal::Stopped) if first.is_some() => {}
            Err(refusal) if first.as_ref().is_none_or(|first| matches!(first, Refusal::Stopped)) => {
                first = Some(refusal);
            }
            Err(_) => {}
        }
    }
    match first {
        Some(refusal) => Err(refusal),
        None => results.into_iter().collect::<Option<Vec<T>>>().ok_or(Refusal::Stopped),
    }
}

/// Refuses to begin what the disk cannot hold, where the system tells.
fn check_space(cache: &Cache, remotes: &[Remote]) -> Result<(), Refusal> {
    let there = |remote: &Remote| {
        let found = std::fs::metadata(cache.incomplete(&remote.etag))
            .or_else(|_| std::fs::metadata(cache.blob(&remote.etag)));
        found.map_or(0, |found| found.len())
    };
    let needed: u64 = remotes.iter().map(|remote| remote.size.saturating_sub(there(remote))).sum();
    match free_space(cache.root()) {
        Some(free) if free < needed => {
            Err(Refusal::NoSpace { dir: cache.root().to_path_buf(), needed, free })
        }
        _ => Ok(()),
    }
}
