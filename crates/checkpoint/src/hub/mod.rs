//! Models from the Hugging Face Hub: only the files that are needed, into the cache that Python shares.

mod arrival;
mod cache;
mod checksum;
mod connection;
mod download;
mod found;
mod options;
mod outline;
mod progress;
mod refusal;
mod steady;
mod transfer;
mod wanted;

pub use found::{Arrived, Away, Found, find};
pub use options::HubOptions;
pub use progress::Progress;

use crate::checkpoint::Checkpoint;
use crate::error::CheckpointError;
use crate::files::ModelFiles;
use options::Settings;
use std::path::PathBuf;

/// Opens a model: a directory if `model` is one, else the model of this id on the Hub, of which what the cache
/// lacks is downloaded.
///
/// # Errors
/// If it is neither, cannot be downloaded, or its files are unusable.
pub fn resolve(
    model: &str,
    options: &HubOptions,
    progress: &mut dyn Progress,
) -> Result<Checkpoint, CheckpointError> {
    match find(model, options, progress)? {
        Found::Here(dir) => open(model, &dir),
        Found::Away(away) => away.download(progress),
    }
}

/// Opens what was [found](Found::Here) of `model`, under its own name.
///
/// # Errors
/// If its files are unusable.
pub fn open(model: &str, dir: &std::path::Path) -> Result<Checkpoint, CheckpointError> {
    let mut files = ModelFiles::open(dir)?;
    if dir.as_os_str() != model {
        files.name = model.to_owned();
    }
    Checkpoint::new(files)
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

/// The id of a model whose page has this address, as people copy it from a browser.
fn id_in_address(address: &str) -> Option<String> {
    let rest = address.strip_prefix("https://").or_else(|| address.strip_prefix("http://"))?;
    let rest = rest.split(['?', '#']).next()?;
    let parts: Vec<&str> = rest.split('/').skip(1).take(2).filter(|part| !part.is_empty()).collect();
    Some(parts.join("/")).filter(|id| is_hub_id(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_models() {
        let id = "meta-llama/Llama-2-7b-hf";
        for end in ["", "/", "/tree/main", "?library=transformers", "#usage"] {
            assert_eq!(id_in_address(&format!("https://huggingface.co/{id}{end}")).as_deref(), Some(id));
        }
        for other in ["https://huggingface.co", "https://huggingface.co/", "https://h/a b/c", id, "./http"] {
            assert_eq!(id_in_address(other), None, "{other}");
        }
    }

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
