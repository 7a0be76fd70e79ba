//! The files that layers on the disk are read from: a model's own if it is quantized, else its 4-bit form in
//! the cache, which is made for this if it is not there.

use crate::devices::Candidate;
use crate::four_bit_cache::{self, Place, Purpose, SPARED};
use crate::model_source::Model;
use crate::{Error, FourBitCache, LoadOptions, Progress, rates};
use halfbyte_checkpoint::write::free_space;
use halfbyte_checkpoint::{Checkpoint, CheckpointError, TensorBytes, WriteOptions, quantized_bytes};
use halfbyte_inference::SyntheticModel;
use halfbyte_placement::DeviceClass;
use std::borrow::Cow;
use std::path::PathBuf;
use std::rc::Rc;

/// Whether every matrix lies in a file in the format that it is to be held in.
pub(crate) fn lies_in_files(model: &Model, options: &LoadOptions) -> Result<bool, Error> {
    let Some(checkpoint) = model.checkpoint() else { return Ok(false) };
    Ok(options.quant.is_none() || checkpoint.config.quantization()?.is_some())
}

/// The devices that can be used for a model.
pub(crate) struct Usable {
    pub(crate) candidates: Vec<Candidate>,
    /// Why the disk is not among them, if it could have been.
    pub(crate) without_disk: Option<String>,
}

/// The devices that can be used for `model`: without the disk where nothing can be read from it, and with the
/// limit that its free space sets where a 4-bit form is still to be written.
///
/// # Errors
/// [`Error::Usage`] if a device map puts blocks on a disk that cannot be used.
pub(crate) fn usable(
    model: &Model,
    options: &LoadOptions,
    candidates: Vec<Candidate>,
) -> Result<Usable, Error> {
    let mut usable = with_files(model, options, candidates)?;
    rates::tell_kept(model, options, &mut usable.candidates)?;
    Ok(usable)
}

/// [`usable`] devices, as far as files and their room decide.
fn with_files(model: &Model, options: &LoadOptions, mut candidates: Vec<Candidate>) -> Result<Usable, Error> {
    let is_disk = |one: &Candidate| one.device.kind == DeviceClass::Disk;
    if !candidates.iter().any(is_disk) || lies_in_files(model, options)? {
        return Ok(Usable { candidates, without_disk: None });
    }
    let mut without_disk = None;
    match room(model, options)? {
        Ok(None) => {}
        Ok(Some(room)) => {
            for disk in candidates.iter_mut().filter(|one| is_disk(one)) {
                disk.device.files = Some(disk.device.files.map_or(room, |limit| limit.min(room)));
            }
        }
        Err(why) => {
            candidates.retain(|one| !is_disk(one));
            if candidates.is_empty() {
                return Err(Error::Usage(format!("{} cannot be read from the disk: {why}", model.name())));
            }
            without_disk = Some(why);
        }
    }
    Ok(Usable { candidates, without_disk })
}

/// Bytes that the 4-bit form may take on its disk, `None` if it is there or nobody knows, or why it cannot be made.
fn room(model: &Model, options: &LoadOptions) -> Result<Result<Option<u64>, String>, Error> {
    if four_bit_cache::policy(options)? == FourBitCache::Never {
        return Ok(Err("--no-cache forbids its 4-bit form there".into()));
    }
    let Some((place, outline)) = place(model, options)? else {
        return Ok(Err("there is no 4-bit form of it, and no cache directory to make one in".into()));
    };
    if place.open().is_some() {
        return Ok(Ok(None));
    }
    let downloaded = outline.missing_bytes().saturating_mul(u64::from(!model.is_made_up()));
    // However few layers are to be read from it, it is written whole.
    let bytes = write_options(options).map_or(Ok(0), |write| quantized_bytes(&outline, &write));
    let lacks = match bytes {
        Ok(bytes) => place.lacks(bytes.saturating_add(downloaded)),
        Err(error) => Some(error.to_string()),
    };
    let taken = SPARED.saturating_add(downloaded);
    let room = || free_space(place.directory()).map(|free| free.saturating_sub(taken));
    Ok(lacks.map_or_else(|| Ok(room()), Err))
}

/// Where the 4-bit form of a model is or will be, and the model's headers.
fn place(model: &Model, options: &LoadOptions) -> Result<Option<(Place, Rc<Checkpoint>)>, Error> {
    let Some(write) = write_options(options) else { return Ok(None) };
    let outline = match model {
        Model::Checkpoint(checkpoint) => Rc::clone(checkpoint),
        Model::Synthetic(_, model) => Rc::new(model.outline()?),
    };
    Ok(Place::of(&outline, options, &write).map(|place| (place, outline)))
}

/// Where the 4-bit form of a model is or will be; `None` of one whose own files serve, or where there is no place for it.
pub(crate) fn form_directory(model: &Model, options: &LoadOptions) -> Result<Option<PathBuf>, Error> {
    if lies_in_files(model, options)? {
        return Ok(None);
    }
    Ok(place(model, options)?.map(|(place, _)| place.directory().to_path_buf()))
}

/// How the 4-bit form is written.
fn write_options(options: &LoadOptions) -> Option<WriteOptions> {
    let spec = options.quant?;
    Some(WriteOptions { spec, convert_heads: options.convert_heads, ..WriteOptions::default() })
}

/// The model in a form that lies in files. The error is a phrase.
pub(crate) fn make(
    model: &Model,
    options: &LoadOptions,
    progress: &mut dyn Progress,
) -> Result<Model, String> {
    let found = place(model, options).map_err(|error| error.to_string())?;
    let ((place, outline), write) = found.zip(write_options(options)).ok_or("there is no cache directory")?;
    if let Some(found) = place.open() {
        return Ok(found);
    }
    let made = match model {
        Model::Checkpoint(checkpoint) => {
            place.make(checkpoint, &**checkpoint, &write, Purpose::Disk, progress)
        }
        Model::Synthetic(_, model) => place.make(&outline, &MadeUp(model), &write, Purpose::Disk, progress),
    }?;
    made.ok_or_else(|| "it was written, but cannot be read".into())
}

/// The tensors of a model that is made up.
pub(crate) struct MadeUp<'a>(pub(crate) &'a SyntheticModel);

impl TensorBytes for MadeUp<'_> {
    fn tensor(&self, name: &str) -> Result<Cow<'_, [u8]>, CheckpointError> {
        let missing = || CheckpointError::MissingTensor {
            tensor: name.to_owned(),
            files: self.0.config().file.clone(),
            hint: String::new(),
        };
        self.0.tensor(name).map(Cow::Owned).ok_or_else(missing)
    }
}
