//! Where a model is: here, or on the Hub, from where it is planned, downloaded, or quantized as it arrives.

use super::arrival::Arrivals;
use super::cache::{Cache, is_complete};
use super::connection::Connection;
use super::download::Repo;
use super::options::{HubOptions, Settings};
use super::progress::Progress;
use super::refusal::Refusal;
use super::{id_in_address, is_hub_id};
use crate::checkpoint::Checkpoint;
use crate::error::{CheckpointError, shown};
use crate::files::{FileBytes, ModelFiles};
use crate::native::{SHARD_INDEX, foreign, read};
use crate::write::{WriteOptions, WriteReport, write_originals};
use std::path::{Path, PathBuf};

/// Where a model is.
#[derive(Debug)]
pub enum Found {
    /// All of it is in this directory.
    Here(PathBuf),
    /// It is on the Hub, or some of it.
    Away(Box<Away>),
}

/// A model that is on the Hub and not, or not wholly, in the cache.
pub struct Away {
    model: String,
    commit: String,
    cache: Cache,
    settings: Settings,
    /// The way to it; or why there is none.
    repo: Result<Repo, String>,
}

/// What came of quantizing a model while it arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrived {
    /// What was written.
    pub report: WriteReport,
    /// The most bytes of original weights that were in memory at a time, or on their way there.
    pub most_held: u64,
}

impl std::fmt::Debug for Away {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Away").field("model", &self.model).field("commit", &self.commit).finish()
    }
}

/// Finds a model: a directory if `model` is one, else the model of this id in the cache or on the Hub, which
/// is asked for the revision's commit. Offline, or if the Hub cannot be reached, the commit that the cache
/// knows is taken.
///
/// # Errors
/// If it is nowhere.
pub fn find(
    model: &str,
    options: &HubOptions,
    progress: &mut dyn Progress,
) -> Result<Found, CheckpointError> {
    let path = Path::new(model);
    if path.is_dir() {
        return Ok(Found::Here(path.to_path_buf()));
    }
    if path.is_file() {
        let parent = path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
        if let Some(refusal) = foreign(&shown(model), &parent.display().to_string(), model) {
            return Err(refusal);
        }
        return Err(CheckpointError::Unsupported {
            what: format!("{}: a single file as a model", shown(model)),
            instead: format!("give the directory that also holds its config.json, {}", parent.display()),
        });
    }
    if let Some(id) = id_in_address(model) {
        return Err(CheckpointError::Unsupported {
            what: format!("{}: an address as a model", shown(model)),
            instead: format!("give the id in it, {id} (HF_ENDPOINT names another Hub)"),
        });
    }
    if !is_hub_id(model) {
        return Err(CheckpointError::NoSuchModel { model: shown(model) });
    }
    let settings = Settings::new(options, &|name| std::env::var(name).ok());
    let error = |problem: String| CheckpointError::Hub { model: model.to_owned(), problem };
    settings.check().map_err(|problem| error(settings.without_token(problem)))?;
    let cache = Cache::new(settings.cache_dir().map_err(error)?, model);
    let refusal = if settings.offline {
        format!(
            "offline, and the cache {} does not have all of revision {}; run it once without --offline (HF_HUB_OFFLINE)",
            cache.root().display(),
            settings.revision
        )
    } else {
        match Repo::find(model, &settings, &|_| {}) {
            Ok(repo) if is_complete(&cache.snapshot_dir(&repo.commit)) => {
                // What is small may be missing all the same.
                let snapshot = repo.fetch_all(&cache, progress);
                return snapshot.map(Found::Here).map_err(|refusal| repo.connection.error(model, &refusal));
            }
            Ok(repo) => {
                let (model, commit) = (model.to_owned(), repo.commit.clone());
                return Ok(Found::Away(Box::new(Away { model, commit, cache, settings, repo: Ok(repo) })));
            }
            Err(refusal) => {
                let problem = settings.without_token(refusal.explain(model, &settings));
                if !refusal.is_unreachable() {
                    return Err(error(problem));
                }
                problem
            }
        }
    };
    if let Some(snapshot) = cache.snapshot(&settings.revision).filter(|snapshot| is_complete(snapshot)) {
        return Ok(Found::Here(snapshot));
    }
    // What was made of it may be elsewhere.
    match cache.commit(&settings.revision) {
        Some(commit) => {
            let away = Away { model: model.to_owned(), commit, cache, settings, repo: Err(refusal) };
            Ok(Found::Away(Box::new(away)))
        }
        None => Err(error(refusal)),
    }
}

impl Away {
    /// The model's id.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// The commit that the revision is at.
    pub fn commit(&self) -> &str {
        &self.commit
    }

    /// What a plan needs: the configuration and the headers of the shards, by range requests. The weights
    /// themselves are missing from the result, and nothing is written.
    ///
    /// # Errors
    /// [`CheckpointError::Hub`] with what happened and what to do about it; whatever is wrong with the files.
    pub fn outline(&self) -> Result<Checkpoint, CheckpointError> {
        Checkpoint::new(self.reach(Repo::outline)?)
    }

    /// Downloads what the cache lacks and opens it.
    ///
    /// # Errors
    /// As [`Self::outline`].
    pub fn download(&self, progress: &mut dyn Progress) -> Result<Checkpoint, CheckpointError> {
        let mut files = ModelFiles::open(&self.reach(|repo| repo.fetch_all(&self.cache, progress))?)?;
        files.name.clone_from(&self.model);
        Checkpoint::new(files)
    }

    /// Writes the model into `dir` as [`write_quantized`](crate::write_quantized) does, while it arrives: the
    /// original weights are nowhere but in memory, and there no more of them than the window allows, or one
    /// tensor. An interrupted run goes on where it was; no tensor that is done is fetched again. `written`
    /// hears of each tensor as in [`write_quantized`](crate::write_quantized).
    ///
    /// # Errors
    /// As [`Self::outline`] and [`write_quantized`](crate::write_quantized).
    pub fn quantize(
        &self,
        dir: &Path,
        options: &WriteOptions,
        progress: &mut dyn Progress,
        written: &mut dyn FnMut(&str, u64, u64),
    ) -> Result<Arrived, CheckpointError> {
        let (files, remotes) = self.reach(|repo| {
            let snapshot = repo.fetch_small(&self.cache, progress)?;
            let shards = repo.weights(&snapshot)?;
            let remotes = repo.ask(&shards, progress)?;
            let headers: Vec<FileBytes> =
                shards.iter().map(|shard| repo.header(shard)).collect::<Result<_, _>>()?;
            for (remote, header) in remotes.iter().zip(&headers) {
                if header.len() != remote.size {
                    let (file, said, sent) = (remote.file.clone(), remote.size, header.len());
                    return Err(Refusal::Lie { file, said, sent });
                }
            }
            Ok(((snapshot, headers), remotes))
        })?;
        let (snapshot, shards) = files;
        let headers = shards.iter().map(|shard| (shard.bytes().to_vec(), shard.len())).collect();
        let mut files = ModelFiles::around(&snapshot, read(&snapshot, SHARD_INDEX)?, shards)?;
        files.name.clone_from(&self.model);
        let checkpoint = Checkpoint::new(files)?;
        let connection = self.reach(|_| Connection::new(&self.settings))?;
        let window = self.settings.window;
        let mut arrivals =
            Arrivals::new(&checkpoint, connection, &self.commit, remotes, headers, window, progress);
        let result = write_originals(&checkpoint, &mut arrivals, dir, options, written);
        if arrivals.damaged {
            // What was made of damaged bytes is not to be gone on with.
            let _ = std::fs::remove_dir_all(dir);
        }
        let report = result?;
        self.reach(|repo| self.cache.point(&repo.settings.revision, &self.commit).map_err(Refusal::Disk))?;
        Ok(Arrived { report, most_held: arrivals.most_held() })
    }

    /// Does something with the repository, if there is a way to it.
    fn reach<T>(&self, work: impl FnOnce(&Repo) -> Result<T, Refusal>) -> Result<T, CheckpointError> {
        match &self.repo {
            Ok(repo) => work(repo).map_err(|refusal| repo.connection.error(&self.model, &refusal)),
            Err(problem) => Err(CheckpointError::Hub { model: self.model.clone(), problem: problem.clone() }),
        }
    }
}
