//! The 4-bit form of a 16-bit model, kept beside the Hub's cache so that the next start need not make it.
//!
//! `<cache>/<model>-<hash of where it is>/<settings>/` is a model's directory as `halfbyte quantize` writes it,
//! and `manifest.json`, which says of which source files (path, length, time of change) it was made. It is
//! written as `<settings>.part` and renamed when it is complete and on the disk, under `<settings>.lock`:
//! - two processes at once: the second quantizes for itself and writes nothing, or, where the model is still on
//!   the Hub, waits for the first;
//! - a process that is killed at any instant leaves either no `<settings>` or a complete one; the next one
//!   goes on with the tensors in `<settings>.part`;
//! - a source that changes no longer fits its manifest, and the cache is made anew.
//!
//! A model that is still on the Hub is quantized as it arrives, and its original weights are never on the disk.
//! It is then known by its id and commit instead of by its files.
//!
//! Whatever goes wrong with a model that is here is a note, never an error: it is then quantized while it loads.

use crate::model_source::Model;
use crate::planning::Planning;
use crate::quantize::write_arriving;
use crate::{Error, LoadOptions, Progress};
use halfbyte_backend::human_bytes;
use halfbyte_checkpoint::fingerprint::fingerprint;
use halfbyte_checkpoint::hub::{self, Away, HubOptions};
use halfbyte_checkpoint::write::{free_space, is_writable};
use halfbyte_checkpoint::{Checkpoint, TensorBytes, WriteOptions, quantized_bytes, write_quantized_from};
use halfbyte_quant::QuantSpec;
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
    if !Path::new(&checkpoint.config.file).is_file() {
        return Ok(None);
    }
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

/// The 4-bit form that was made of a model that is not here, if it is kept.
pub(crate) fn kept(away: &Away, options: &LoadOptions) -> Result<Option<Model>, Error> {
    let (Some(spec), false) = (options.quant, policy(options)? == FourBitCache::Never) else {
        return Ok(None);
    };
    if options.keep_original {
        return Ok(None);
    }
    let write = write_options(spec, options);
    Ok(Place::of_hub(away, options, &write).and_then(|place| place.open()))
}

/// The 4-bit form of a model that is on the Hub, made while it arrives; `None` if that is not to be kept, so
/// that the model has to be downloaded. `outline` has its headers. Another process that makes it is waited for.
pub(crate) fn arriving(
    away: &Away,
    outline: &Model,
    options: &LoadOptions,
    progress: &mut dyn Progress,
) -> Result<Option<Model>, Error> {
    let Some((checkpoint, write)) = eligible(outline, options)?.filter(|_| !options.keep_original) else {
        return Ok(None);
    };
    // A model without linear layers to quantize is downloaded as it is.
    let Ok(bytes) = quantized_bytes(checkpoint, &write) else { return Ok(None) };
    let Some(place) = Place::of_hub(away, options, &write) else { return Ok(None) };
    let cannot = |problem: String| {
        Error::Usage(format!("{}: {problem}; --keep-original downloads it as it is", away.model()))
    };
    let name = away.model();
    let mut waiting =
        || progress.note(&format!("another process is making the 4-bit form of {name}: waiting for it"));
    let _lock = place.wait(&mut waiting).map_err(cannot)?;
    if let Some(found) = place.open() {
        return Ok(Some(found));
    }
    progress.note(&format!(
        "quantizing {name} as it arrives: {} are downloaded, {} of them kept, in {}",
        human_bytes(checkpoint.missing_bytes()),
        human_bytes(bytes),
        place.dir.display()
    ));
    place.clear_part().map_err(cannot)?;
    write_arriving(away, &place.part, &write, progress)?;
    place.finish().map_err(cannot)?;
    match place.open() {
        Some(made) => Ok(Some(made)),
        None => Err(cannot(format!("{} cannot be read again", place.dir.display()))),
    }
}

/// Whether the 4-bit form is kept: as the options say, else as the environment says.
pub(crate) fn policy(options: &LoadOptions) -> Result<FourBitCache, Error> {
    match (options.four_bit_cache, std::env::var("HALFBYTE_CACHE")) {
        (FourBitCache::Auto, Ok(text)) if !text.is_empty() => text.parse(),
        (policy, _) => Ok(policy),
    }
}

fn write_options(spec: QuantSpec, options: &LoadOptions) -> WriteOptions {
    WriteOptions { spec, convert_heads: options.convert_heads, ..WriteOptions::default() }
}

/// A model that is worth a cache, and how it would be written.
fn eligible<'a>(
    model: &'a Model,
    options: &LoadOptions,
) -> Result<Option<(&'a Checkpoint, WriteOptions)>, Error> {
    let policy = policy(options)?;
    let (Some(checkpoint), Some(spec)) = (model.checkpoint(), options.quant) else { return Ok(None) };
    let large = checkpoint.index.total_bytes() >= WORTHWHILE;
    let wanted = match policy {
        FourBitCache::Auto => large,
        FourBitCache::Always => true,
        FourBitCache::Never => false,
    };
    if !wanted || checkpoint.config.quantization()?.is_some() {
        return Ok(None);
    }
    Ok(Some((checkpoint, write_options(spec, options))))
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
    /// Of a model that is open. `None` if there is no home directory to put it in.
    pub(crate) fn of(checkpoint: &Checkpoint, options: &LoadOptions, write: &WriteOptions) -> Option<Self> {
        let home = Path::new(&checkpoint.config.file).parent()?;
        // A model that is embedded or made up is in no directory; its name says which it is.
        let home = std::fs::canonicalize(home).unwrap_or_else(|_| home.to_path_buf());
        Self::new(&checkpoint.name, &home.to_string_lossy(), fingerprint(checkpoint), options, write)
    }

    /// Of a model that is not here.
    fn of_hub(away: &Away, options: &LoadOptions, write: &WriteOptions) -> Option<Self> {
        let (model, commit) = (away.model(), away.commit());
        let source = json!({ "hub": model, "commit": commit });
        Self::new(model, &format!("hub:{model}@{commit}"), source, options, write)
    }

    /// `home` is where the model is, `source` what it is.
    fn new(
        model: &str,
        home: &str,
        source: Value,
        options: &LoadOptions,
        write: &WriteOptions,
    ) -> Option<Self> {
        let hub = HubOptions { cache_dir: options.cache_dir.clone(), ..HubOptions::default() };
        let root = hub::four_bit_cache_dir(&hub)?;
        let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
        let name: String = model.chars().rev().take(60).map(plain).collect();
        let name: String = name.chars().rev().collect();
        let hash = fnv1a(home.as_bytes());
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
            manifest: json!({ "version": VERSION, "source": source }),
            name: model.to_owned(),
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
        let bytes = quantized_bytes(checkpoint, write).map_err(|error| error.to_string())?;
        if let Some(why) = self.lacks(bytes) {
            return Err(why);
        }
        let lock = self.lock_file()?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) if purpose == Purpose::Disk => {
                lock.lock().map_err(|error| failed(&self.lock, &error))?;
            }
            Err(TryLockError::WouldBlock) => return Err("another process is writing it".into()),
            Err(TryLockError::Error(error)) => return Err(failed(&self.lock, &error)),
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

    /// Why `bytes` cannot be written there, as a phrase.
    pub(crate) fn lacks(&self, bytes: u64) -> Option<String> {
        let dir = self.dir.display();
        if !is_writable(&self.dir) {
            return Some(format!("{dir} cannot be written to (--cache-dir names another directory)"));
        }
        let free = free_space(&self.dir).filter(|&free| free < bytes.saturating_add(SPARED))?;
        Some(format!(
            "it takes {} and the disk of {dir} has {} free, of which {} are to stay (--cache-dir names another directory)",
            human_bytes(bytes),
            human_bytes(free),
            human_bytes(SPARED)
        ))
    }

    /// Writes `part`, then gives it its name. The lock is held.
    fn write(
        &self,
        checkpoint: &Checkpoint,
        source: &dyn TensorBytes,
        write: &WriteOptions,
        progress: &mut dyn Progress,
    ) -> Result<(), String> {
        self.clear_part()?;
        let mut report = |name: &str, done: u64, total: u64| progress.quantize(name, done, total);
        write_quantized_from(checkpoint, source, &self.part, write, &mut report)
            .map_err(|error| error.to_string())?;
        self.finish()
    }

    /// The file that who writes the cache locks.
    fn lock_file(&self) -> Result<File, String> {
        let parent = self.dir.parent().ok_or("it has no directory")?;
        std::fs::create_dir_all(parent).map_err(|error| failed(parent, &error))?;
        let lock = OpenOptions::new().write(true).create(true).truncate(false).open(&self.lock);
        lock.map_err(|error| failed(&self.lock, &error))
    }

    /// Takes the lock; if another process has it, `waiting` is called, and that process waited for.
    fn wait(&self, waiting: &mut dyn FnMut()) -> Result<File, String> {
        let lock = self.lock_file()?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                waiting();
                lock.lock().map_err(|error| failed(&self.lock, &error))?;
            }
            Err(TryLockError::Error(error)) => return Err(failed(&self.lock, &error)),
        }
        Ok(lock)
    }

    /// Removes a `part` that is complete but was not renamed: it is of another source, or its process was
    /// killed in between.
    fn clear_part(&self) -> Result<(), String> {
        if self.part.join("config.json").exists() { remove(&self.part) } else { Ok(()) }
    }

    /// Gives a complete `part` its name. The lock is held.
    fn finish(&self) -> Result<(), String> {
        let manifest = self.part.join("manifest.json");
        std::fs::write(&manifest, self.manifest.to_string())
            .and_then(|()| File::open(&manifest)?.sync_all())
            .map_err(|error| failed(&manifest, &error))?;
        // Who has mapped the former one keeps it: its files live until they are unmapped.
        remove(&self.dir)?;
        std::fs::rename(&self.part, &self.dir).map_err(|error| failed(&self.dir, &error))?;
        if let Some(Ok(parent)) = self.dir.parent().map(File::open) {
            let _ = parent.sync_all();
        }
        Ok(())
    }
}

fn failed(what: &Path, error: &std::io::Error) -> String {
    format!("{}: {error}", what.display())
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
