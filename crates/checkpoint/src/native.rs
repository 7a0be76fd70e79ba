//! A model in a local directory: its files found, its weights memory-mapped.

use crate::checkpoint::Checkpoint;
use crate::error::CheckpointError;
use crate::file_map::FileMap;
use crate::files::{FileBytes, ModelFiles, SENTENCEPIECE, TokenizerFiles};
use crate::header::LFS_POINTER;
use crate::index::ShardIndex;
use std::fs::File;
use std::io;
use std::path::Path;

/// The weights in one piece.
pub const SINGLE: &str = "model.safetensors";
/// The index of weights in several.
pub const SHARD_INDEX: &str = "model.safetensors.index.json";
/// Small files that a model may have beside its configuration, and that are of use here.
pub(crate) const SMALL: &[&str] = &[
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
];

impl ModelFiles {
    /// Finds the files of the model in a directory and memory-maps its weights.
    ///
    /// # Errors
    /// If the directory, `config.json` or a shard is missing or unreadable, or if the weights are in a
    /// format that is not read (PyTorch's `.bin`, GGUF); the message says what to do.
    pub fn open(dir: &Path) -> Result<ModelFiles, CheckpointError> {
        let shard_index = read(dir, SHARD_INDEX)?;
        // As transformers: weights in one piece win over an index.
        let single = map(dir, SINGLE)?;
        let (shard_index, shards) = match (single, shard_index) {
            (Some(single), _) => (None, vec![single]),
            (None, Some(index)) => {
                let shards = map_shards(dir, &index)?;
                (Some(index), shards)
            }
            (None, None) => {
                // That there is no such directory is said first.
                read(dir, "config.json")?;
                return Err(no_weights(dir, &dir.display().to_string()));
            }
        };
        Self::around(dir, shard_index, shards)
    }

    /// The files of a directory besides its weights, with these as the weights.
    ///
    /// # Errors
    /// If `config.json` is missing or a file is unreadable.
    pub(crate) fn around(
        dir: &Path,
        shard_index: Option<FileBytes>,
        shards: Vec<FileBytes>,
    ) -> Result<ModelFiles, CheckpointError> {
        let name = dir.display().to_string();
        let Some(config) = read(dir, "config.json")? else {
            return Err(CheckpointError::MissingFile {
                place: name,
                missing: "config.json".to_string(),
                instead: "copy it from the model's page; it says what the weights are for".to_string(),
            });
        };
        Ok(ModelFiles {
            name,
            config,
            shard_index,
            shards,
            generation: read(dir, "generation_config.json")?,
            tokenizer: TokenizerFiles {
                tokenizer: read(dir, "tokenizer.json")?,
                config: read(dir, "tokenizer_config.json")?,
                special_tokens: read(dir, "special_tokens_map.json")?,
                chat_template: read(dir, "chat_template.jinja")?,
                sentencepiece: first(dir, &SENTENCEPIECE)?,
                added_tokens: read(dir, "added_tokens.json")?,
                model_type: None,
                other: ["sentencepiece.bpe.model", "vocab.json", "vocab.txt"]
                    .into_iter()
                    .find(|file| dir.join(file).is_file())
                    .map(str::to_string),
            },
        })
    }
}

impl Checkpoint {
    /// Opens the model in a directory.
    ///
    /// # Errors
    /// As [`ModelFiles::open`] and [`Checkpoint::new`].
    pub fn open(dir: &Path) -> Result<Checkpoint, CheckpointError> {
        Checkpoint::new(ModelFiles::open(dir)?)
    }
}

fn map_shards(dir: &Path, index: &FileBytes) -> Result<Vec<FileBytes>, CheckpointError> {
    let (file, json) = index.named();
    let shards = ShardIndex::parse(file, json)?;
    let mut mapped = Vec::with_capacity(shards.shards().len());
    let mut absent = Vec::new();
    for shard in shards.shards() {
        match map(dir, shard)? {
            Some(bytes) => mapped.push(bytes),
            None => absent.push(shard.as_str()),
        }
    }
    if let [first, others @ ..] = absent.as_slice() {
        let others = match others.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        return Err(CheckpointError::ShardIndex {
            file: file.to_string(),
            problem: format!(
                "the shard {first}{others} of {} is missing; download it into {}",
                shards.shards().len(),
                dir.display()
            ),
        });
    }
    Ok(mapped)
}

/// Why a directory without safetensors cannot be used: by what is there instead.
fn no_weights(dir: &Path, name: &str) -> CheckpointError {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(source) => {
            return CheckpointError::Io { file: name.to_string(), source };
        }
    };
    let mut files: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    files.sort();
    let with_ending = |ending: &str| files.iter().find(|file| file.ends_with(ending));
    if let Some(file) = std::iter::once(GGUF).chain(PICKLES.iter().copied()).find_map(with_ending)
        && let Some(refusal) = foreign(&format!("{name}: {file}"), name, file)
    {
        return refusal;
    }
    let instead = match with_ending(".safetensors") {
        Some(file) => format!("it has {file}: rename it to {SINGLE} if it is the whole model"),
        None if files.is_empty() => "the directory is empty".to_string(),
        None => "give the directory that holds the weights, or a Hub id".to_string(),
    };
    CheckpointError::MissingFile {
        place: name.to_string(),
        missing: format!("{SINGLE} or {SHARD_INDEX}"),
        instead,
    }
}

/// How the files of llama.cpp end.
const GGUF: &str = ".gguf";

/// How PyTorch's pickles end, the usual name first.
const PICKLES: &[&str] = &["pytorch_model.bin", ".bin", ".pt", ".pth", ".ckpt"];

/// Why a file in a format that is not read cannot be used, if its name is that of one. `shown` is what the message calls it,
/// `dir` the directory that Python would convert.
pub(crate) fn foreign(shown: &str, dir: &str, file: &str) -> Option<CheckpointError> {
    if file.ends_with(GGUF) {
        return Some(CheckpointError::Unsupported {
            what: format!("{shown} is a GGUF file, llama.cpp's format, which"),
            instead: "take the Hugging Face repository with safetensors that it was converted from"
                .to_string(),
        });
    }
    PICKLES.iter().any(|ending| file.ends_with(ending)).then(|| CheckpointError::Unsupported {
        what: format!("{shown} is a PyTorch pickle, which can run any code and"),
        instead: format!(
            "convert it in Python with AutoModelForCausalLM.from_pretrained(\"{dir}\").save_pretrained(DIR, safe_serialization=True)"
        ),
    })
}

/// The contents of the first of some small files that is there.
fn first(dir: &Path, files: &[&str]) -> Result<Option<FileBytes>, CheckpointError> {
    files.iter().find_map(|file| read(dir, file).transpose()).transpose()
}

/// A small file's contents, `None` if it is not there.
pub(crate) fn read(dir: &Path, file: &str) -> Result<Option<FileBytes>, CheckpointError> {
    let path = dir.join(file);
    let name = path.display().to_string();
    let read = || {
        // Asked before the file is opened: a pipe has no end, and opening one waits for its writer.
        let metadata = std::fs::metadata(&path)?;
        if metadata.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        if !metadata.is_file() || metadata.len() > LARGEST_TEXT {
            let message = format!("not a file of at most {} MiB, as it should be", LARGEST_TEXT >> 20);
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        std::fs::read(&path)
    };
    match read() {
        Ok(bytes) if bytes.starts_with(LFS_POINTER) => Err(CheckpointError::Pointer { file: name }),
        Ok(bytes) => Ok(Some(FileBytes::new(name, bytes))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(CheckpointError::Io { file: name, source }),
    }
}

/// The largest configuration or tokenizer that is read: ten times the largest of today.
const LARGEST_TEXT: u64 = 512 << 20;

/// A large file as a memory map, `None` if it is not there.
fn map(dir: &Path, file: &str) -> Result<Option<FileBytes>, CheckpointError> {
    let path = dir.join(file);
    let name = path.display().to_string();
    let failed = |source: io::Error| CheckpointError::Io { file: name.clone(), source };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let metadata = file.metadata().map_err(failed)?;
    if metadata.is_dir() {
        // Mapping one fails, too, but says "no such device".
        return Err(failed(io::ErrorKind::IsADirectory.into()));
    }
    if metadata.is_file() && metadata.len() == 0 {
        // An empty file cannot be mapped everywhere; the header's reader says what is wrong with it.
        return Ok(Some(FileBytes::new(name, Vec::new())));
    }
    let map = FileMap::new(file).map_err(failed)?;
    Ok(Some(FileBytes::of(name, map)))
}
