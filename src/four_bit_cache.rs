//! The 4-bit form of a 16-bit model, kept beside the Hub's cache so that the next start need not make it.
//!
//! `<cache>/<model>-<hash of where it is>/<settings>/` is a model's directory as `halfbyte quantize` writes it,
//! and `manifest.json`, which says of which source files (path, length, time of change) it was made. It is
//! written as `<settings>.part` and renamed when it is complete and on the disk, under `<settings>.lock`:
//! - two processes at once: the second quantizes for itself and writes nothing;
//! - a process that is killed at any instant leaves either no `<settings>` or a complete one; the next one
//!   goes on with the shards in `<settings>.part`;
//! - a source that changes no longer fits its manifest, and the cache is made anew.
//!
//! Whatever goes wrong here is a note, never an error: the model is then quantized while it loads.

use crate::model_source::Model;
use crate::planning::Planning;
use crate::{Error, LoadOptions, Progress};
use halfbyte_backend::human_bytes;
use halfbyte_checkpoint::fingerprint::fingerprint;
use halfbyte_checkpoint::hub::{self, HubOptions};
use halfbyte_checkpoint::write::free_space;
use halfbyte_checkpoint::{Checkpoint, TensorBytes, WriteOptions, quantized_bytes, write_quantized_from};
use serde_json::{Value, json};
use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::str::FromStr;

/// Whether the 4-bit form of a 16-bit model is kept on the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FourBitCache {
    /// For models whose weights take 1 GiB or more. Smaller ones are quantized in about the time in which the
    /// cache would be read. `HALFBYTE_CACHE=never` or `always` in the environment changes that.
    #[default]
    Auto,
    /// Whatever the size.
    Always,
    /// Neither read nor written.
    Never,
}

impl FromStr for FourBitCache {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "auto" => Ok(Self::Auto),
            "always" => Ok(Self::Always),
            "never" => Ok(Self::Never),
            other => Err(Error::Usage(format!("HALFBYTE_CACHE={other}: expected auto, always or never"))),
        }
    }
}

/// What the 4-bit form is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The next start is faster with it, this one can do without.
    NextStart,
    /// Layers are read from it: another process that writes it is waited for.
    Disk,
}

/// The least bytes of weights for which [`FourBitCache::Auto`] keeps a cache.
const WORTHWHILE: u64 = 1 << 30;

/// Bytes of the disk that the cache leaves free.
pub(crate) const SPARED: u64 = 2 << 30;

/// Changes when the same source and settings would give another cache.
const VERSION: u32 = 1;

/// The 4-bit form of `model` from the cache, which is written first if it is not there; `None` where there is
/// none to be had. A model that does not fit is refused before anything is written.
pub(crate) fn cached(
    model: &Model,
    options: &LoadOptions,
    planning: &Planning,
    progress: &mut dyn Progress,
) -> Result<Option<Model>, Error> {
    let Some((checkpoint, write)) = eligible(model, options)? else { return Ok(None) };
    let Some(place) = Place::of(checkpoint, options, &write) else { return Ok(None) };
    if let Some(found) = place.open() {
        return Ok(Some(found));
    }
    planning.plan(&planning.devices(), &planning.costs())?;
    match place.make(checkpoint, checkpoint, &write, Purpose::NextStart, progress) {
        Ok(made) => Ok(made),
        Err(problem) => {
            progress
                .note(&format!("no 4-bit cache: {problem}; {} is quantized while it loads", model.name()));
            Ok(None)
        }
    }
}

/// Whether the 4-bit form is kept: as the options say, else as the environment says.
pub(crate) fn policy(options: &LoadOptions) -> Result<FourBitCache, Error> {
    match (options.four_bit_cache, std::env::var("HALFBYTE_CACHE")) {
        (FourBitCache::Auto, Ok(text)) if !text.is_empty() => text.parse(),
        (policy, _) => Ok(policy),
    }
}

/// A model that is worth a cache, and how it would be written.
fn eligible<'a>(
    model: &'a Model,
    options: &LoadOptions,
) -> Result<Option<(&'a Checkpoint, WriteOptions)>, Error> {
    let policy = policy(options)?;
    let (Some(checkpoint), Some(spec)) = (model.checkpoint(), options.quant) else { return Ok(None) };
    let on_disk = Path::new(&checkpoint.config.file).is_file();
    let large = checkpoint.index.total_bytes() >= WORTHWHILE;
    let wanted = match policy {
        FourBitCache::Auto => large,
        FourBitCache::Always => true,
        FourBitCache::Never => false,
    };
    if !wanted || !on_disk || checkpoint.config.quantization()?.is_some() {
        return Ok(None);
    }
    let write = WriteOptions { spec, convert_heads: options.convert_heads, ..WriteOptions::default() };
    Ok(Some((checkpoint, write)))
}

/// Where the cache of one model with one set of settings is.
pub(crate) struct Place {
    /// The finished directory.
    dir: PathBuf,
    /// The directory while it is written.
    part: PathBuf,
    /// Locked by the process that writes it.
    lock: PathBuf,
    /// What `manifest.json` must say.
    manifest: Value,
    /// The model's own name.
    name: String,
}

impl Place {
    /// `None` if there is no home directory to put it in.
    pub(crate) fn of(checkpoint: &Checkpoint, options: &LoadOptions, write: &WriteOptions) -> Option<Self> {
        let hub = HubOptions { cache_dir: options.cache_dir.clone(), ..HubOptions::default() };
        let root = hub::four_bit_cache_dir(&hub)?;
        let home = Path::new(&checkpoint.config.file).parent()?;
        // A model that is embedded or made up is in no directory; its name says which it is.
        let home = std::fs::canonicalize(home).unwrap_or_else(|_| home.to_path_buf());
        let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
        let name: String = checkpoint.name.chars().rev().take(60).map(plain).collect();
        let name: String = name.chars().rev().collect();
        let hash = fnv1a(home.to_string_lossy().as_bytes());
        let spec = write.spec;
        let settings = format!(
            "{}-{}{}{}",
            spec.quant_type,
            spec.blocksize,
            if spec.double_quant { "-dq" } else { "" },
            if write.convert_heads { "-heads" } else { "" },
        );
        let dir = root.join(format!("{}-{hash:016x}", name.trim_matches(['-', '.']))).join(settings);
        Some(Self {
            part: dir.with_extension("part"),
            lock: dir.with_extension("lock"),
            dir,
            manifest: json!({ "version": VERSION, "source": fingerprint(checkpoint) }),
            name: checkpoint.name.clone(),
        })
    }

    /// The cache, if it is there and was made of what the source is now.
    pub(crate) fn open(&self) -> Option<Model> {
        let text = std::fs::read(self.dir.join("manifest.json")).ok()?;
        let found: Value = serde_json::from_slice(&text).ok()?;
        if found != self.manifest {
            return None;
        }
        let mut checkpoint = Checkpoint::open(&self.dir).ok()?;
        checkpoint.name.clone_from(&self.name);
        tracing::info!("4-bit cache: {}", self.dir.display());
        Some(Model::Checkpoint(Rc::new(checkpoint)))
    }

    /// The directory that it is written to.
    pub(crate) fn directory(&self) -> &Path {
        &self.dir
    }

    /// Writes the cache, of `checkpoint` with its tensors from `source`, and opens it. The error is a phrase.
    pub(crate) fn make(
        &self,
        checkpoint: &Checkpoint,
        source: &dyn TensorBytes,
        write: &WriteOptions,
        purpose: Purpose,
        progress: &mut dyn Progress,
    ) -> Result<Option<Model>, String> {
        let failed = |what: &Path, error: std::io::Error| format!("{}: {error}", what.display());
        let bytes = quantized_bytes(checkpoint, write).map_err(|error| error.to_string())?;
        if let Some(free) = free_space(&self.dir).filter(|&free| free < bytes.saturating_add(SPARED)) {
            return Err(format!(
                "it takes {} and the disk of {} has {} free, of which {} are to stay",
                human_bytes(bytes),
                self.dir.display(),
                human_bytes(free),
                human_bytes(SPARED)
            ));
        }
        let parent = self.dir.parent().ok_or("it has no directory")?;
        std::fs::create_dir_all(parent).map_err(|error| failed(parent, error))?;
        let lock = OpenOptions::new().write(true).create(true).truncate(false).open(&self.lock);
        let lock = lock.map_err(|error| failed(&self.lock, error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) if purpose == Purpose::Disk => {
                lock.lock().map_err(|error| failed(&self.lock, error))?;
            }
            Err(TryLockError::WouldBlock) => return Err("another process is writing it".into()),
            Err(TryLockError::Error(error)) => return Err(failed(&self.lock, error)),
        }
        // Whoever held the lock before may have made it meanwhile.
        if let Some(found) = self.open() {
            return Ok(Some(found));
        }
        let why = match purpose {
            Purpose::NextStart => "for the next start; --no-cache for not",
            Purpose::Disk => "to read from the disk the layers that fit neither GPU nor CPU",
        };
        progress.note(&format!(
            "keeping the 4-bit form of {} ({}) in {}, {why}",
            checkpoint.name,
            human_bytes(bytes),
            self.dir.display()
        ));
        self.write(checkpoint, source, write, progress)?;
        Ok(self.open())
    }

    /// Writes `part`, then gives it its name. The lock is held.
    fn write(
        &self,
        checkpoint: &Checkpoint,
        source: &dyn TensorBytes,
        write: &WriteOptions,
        progress: &mut dyn Progress,
    ) -> Result<(), String> {
        let failed = |what: &Path, error: std::io::Error| format!("{}: {error}", what.display());
        // Complete but not renamed: of another source, or its process was killed in between.
        if self.part.join("config.json").exists() {
            remove(&self.part)?;
        }
        let mut report = |name: &str, done: u64, total: u64| progress.quantize(name, done, total);
        write_quantized_from(checkpoint, source, &self.part, write, &mut report)
            .map_err(|error| error.to_string())?;
        let manifest = self.part.join("manifest.json");
        std::fs::write(&manifest, self.manifest.to_string())
            .and_then(|()| File::open(&manifest)?.sync_all())
            .map_err(|error| failed(&manifest, error))?;
        // Who has mapped the former one keeps it: its files live until they are unmapped.
        remove(&self.dir)?;
        std::fs::rename(&self.part, &self.dir).map_err(|error| failed(&self.dir, error))?;
        if let Some(Ok(parent)) = self.dir.parent().map(File::open) {
            let _ = parent.sync_all();
        }
        Ok(())
    }
}

/// Removes a directory, if it is there.
fn remove(dir: &Path) -> Result<(), String> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("{}: {error}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// The 64-bit FNV-1a hash (Fowler, Noll, Vo): the same in every version of this program, as the standard
/// library's need not be.
fn fnv1a(bytes: &[u8]) -> u64 {
    let mix = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, mix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fnv1a_of_known_texts() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
