//! Models from the Hugging Face Hub: only the files that are needed, into the cache that Python shares.

mod cache;
mod checksum;
mod connection;
mod download;
mod options;
mod outline;
mod progress;
mod refusal;
mod transfer;
mod wanted;

pub use options::HubOptions;
pub use progress::Progress;

use crate::checkpoint::Checkpoint;
use crate::error::{CheckpointError, shown};
use crate::files::ModelFiles;
use cache::{Cache, is_complete};
use download::Repo;
use options::Settings;
use std::path::{Path, PathBuf};

/// Opens a model: a directory if `model` is one, else the model of this id on the Hub.
///
/// # Errors
/// If it is neither, cannot be downloaded, or its files are unusable.
pub fn resolve(
    model: &str,
    options: &HubOptions,
    progress: &mut dyn Progress,
) -> Result<Checkpoint, CheckpointError> {
    let path = Path::new(model);
    if path.is_dir() {
        return Checkpoint::open(path);
    }
    if path.is_file() {
        let parent = path.parent().filter(|parent| *parent != Path::new(""));
        return Err(CheckpointError::Unsupported {
            what: format!("{}: a single file as a model", shown(model)),
            instead: format!(
                "give the directory that also holds its config.json, {}",
                parent.unwrap_or(Path::new(".")).display()
            ),
        });
    }
    if !is_hub_id(model) {
        return Err(CheckpointError::NoSuchModel { model: shown(model) });
    }
    let mut files = ModelFiles::open(&download(model, options, progress)?)?;
    files.name = model.to_string();
    Checkpoint::new(files)
}

/// What a plan needs of a model on the Hub: its configuration and the headers of its shards, by range
/// requests. `None` if there is nothing to fetch: the model is local or in the cache (or has to be, offline),
/// and [`resolve`] opens it at no cost. The weights themselves are missing from the result.
///
/// # Errors
/// [`CheckpointError::Hub`] with what happened and what to do about it; whatever is wrong with the files.
pub fn outline(model: &str, options: &HubOptions) -> Result<Option<Checkpoint>, CheckpointError> {
    let settings = Settings::new(options, &|name| std::env::var(name).ok());
    if Path::new(model).exists() || !is_hub_id(model) || settings.offline {
        return Ok(None);
    }
    let hub_error = |problem: String| CheckpointError::Hub {
        model: model.to_string(),
        problem: settings.without_token(problem),
    };
    settings.check().map_err(hub_error)?;
    let cache = Cache::new(settings.cache_dir().map_err(hub_error)?, model);
    if cache.snapshot(&settings.revision).is_some_and(|snapshot| is_complete(&snapshot)) {
        return Ok(None);
    }
    let fetched = Repo::find(model, &settings, &|_| {}).and_then(|repo| repo.outline());
    let files = fetched.map_err(|refusal| hub_error(refusal.explain(model, &settings)))?;
    Checkpoint::new(files).map(Some)
}

/// Where the 4-bit forms of models are kept: `halfbyte` beside the Hub's cache (in `HF_HOME`, mostly), or in
/// the cache directory that was given. `None` if there is no home directory.
pub fn four_bit_cache_dir(options: &HubOptions) -> Option<PathBuf> {
    let settings = Settings::new(options, &|name| std::env::var(name).ok());
    let cache = settings.cache_dir().ok()?;
    let given = options.cache_dir.is_some();
    Some(if given { &cache } else { cache.parent()? }.join("halfbyte"))
}

/// Whether a text can be a model's id on the Hub: `name` or `organization/name`.
pub fn is_hub_id(model: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && part.len() <= 96
            && !part.starts_with(['.', '-'])
            && !part.ends_with(['.', '-'])
            && !part.contains("..")
            && !part.contains("--")
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
    };
    let parts: Vec<&str> = model.split('/').collect();
    parts.len() <= 2 && parts.into_iter().all(part)
}

/// Makes sure that the files of a model are in the cache and returns their directory.
///
/// Asks the Hub for the revision's commit and downloads what the cache lacks of it. Offline, or if the
/// Hub cannot be reached, what the cache has of the revision is used if it is complete.
///
/// # Errors
/// [`CheckpointError::Hub`] with what happened and what to do about it.
pub fn download(
    model: &str,
    options: &HubOptions,
    progress: &mut dyn Progress,
) -> Result<PathBuf, CheckpointError> {
    let settings = Settings::new(options, &|name| std::env::var(name).ok());
    let hub_error = |problem: String| CheckpointError::Hub {
        model: model.to_string(),
        problem: settings.without_token(problem),
    };
    if !is_hub_id(model) {
        return Err(CheckpointError::NoSuchModel { model: shown(model) });
    }
    settings.check().map_err(hub_error)?;
    let cache = Cache::new(settings.cache_dir().map_err(hub_error)?, model);
    let cached = cache.snapshot(&settings.revision).filter(|snapshot| is_complete(snapshot));
    if settings.offline {
        return cached.ok_or_else(|| {
            hub_error(format!(
                "offline, and the cache {} does not have all of revision {}; run it once without --offline (HF_HUB_OFFLINE)",
                cache.root().display(),
                settings.revision
            ))
        });
    }
    let fetched = Repo::find(model, &settings, &|_| {}).and_then(|repo| repo.fetch_all(&cache, progress));
    match fetched {
        Ok(snapshot) => Ok(snapshot),
        Err(refusal) => match cached {
            Some(cached) if refusal.is_unreachable() => Ok(cached),
            _ => Err(hub_error(refusal.explain(model, &settings))),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_the_hub() {
        for id in ["gpt2", "meta-llama/Llama-2-7b-hf", "a/b_c.d", "Qwen/Qwen2.5-0.5B"] {
            assert!(is_hub_id(id), "{id}");
        }
        let long = "x".repeat(97);
        for id in [
            "", "/", "a/", "/a", "a/b/c", "../a", "a/..", ".hidden", "a b", "a\\b", "a/b\n", "a?b", "a--b",
            &long,
        ] {
            assert!(!is_hub_id(id), "{id}");
        }
    }
}
