//! What the disk of a model reads in a second.

use super::kept::{Kept, dir, named, read, write};
use super::{Rated, Rates, Source, steadiness, words};
use crate::devices::Candidate;
use crate::file_form::form_directory;
use crate::model_source::Model;
use crate::planning::Planning;
use crate::{Error, LoadOptions};
use halfbyte_checkpoint::disk_rate::{disk_rate, file_system};
use halfbyte_placement::DeviceClass;
use std::path::{Path, PathBuf};

/// What lies on a disk the CPU multiplies.
pub(super) fn tell_products(candidates: &mut [Candidate]) {
    let cpu = candidates.iter().find(|one| one.device.kind == DeviceClass::Cpu);
    let products = cpu.and_then(|one| one.device.products);
    for disk in candidates.iter_mut().filter(|one| one.device.kind == DeviceClass::Disk) {
        disk.device.products = disk.device.products.or(products);
    }
}

/// Tells the planner the rate of the disk that a model's layers would be read from, if it is kept.
///
/// # Errors
/// What is wrong with `HALFBYTE_RATES`, or with the model.
pub(crate) fn tell_kept(
    model: &Model,
    options: &LoadOptions,
    candidates: &mut [Candidate],
) -> Result<(), Error> {
    let Source::Here { again: false } = Source::environment()? else { return Ok(()) };
    let unknown = |one: &&mut Candidate| one.device.kind == DeviceClass::Disk && one.device.rate.is_none();
    if let Some(disk) = candidates.iter_mut().find(unknown)
        && let Some(file) = kept_file(&places(model, options)?, options)
        && let Some(kept) = read(&file)
    {
        tell(disk, &kept, false);
    }
    Ok(())
}

/// Reads a piece of the model's own file, or of one that lies where its 4-bit form will, tells the planner how fast that
/// was, and keeps it for the file system. What cannot be measured stays assumed.
pub(super) fn measure(planning: &mut Planning, disk: usize, again: bool) {
    let options = planning.options.clone();
    let places = places(&planning.model, &options).unwrap_or_default();
    let found = places.iter().find_map(|place| largest_file(place));
    let Some(file) = found else { return tracing::info!("disk: there is no file yet to measure it with") };
    match disk_rate(&file) {
        Err(why) => tracing::info!("disk: its rate is assumed, since {why}"),
        Ok(rate) => {
            // Others that read the same disk show in its own spread; their processor time does not matter.
            let disturbed = steadiness::disturbed(None, None, rate.spread);
            let read_rate = Some(rate.bytes_per_second);
            let rates = Rates { read_bytes_per_second: read_rate, ..Rates::default() };
            let keep = kept_file(&places, &options);
            let earlier = keep.as_deref().filter(|_| !again).and_then(read);
            let kept = Kept::new(rates, disturbed).after(earlier);
            if let Some(keep) = keep {
                _ = write(&keep, &kept);
            }
            tracing::info!("disk: {} reads {:.2} GB/s", file.display(), rate.bytes_per_second / 1e9);
            if let Some(why) = kept.disturbed_still() {
                tracing::info!("disk: {}", words(&why));
            }
            tell(&mut planning.candidates[disk], &kept, true);
        }
    }
}

/// The rate alone: its products are the CPU's.
fn tell(disk: &mut Candidate, kept: &Kept, is_fresh: bool) {
    disk.device.rate = kept.rates.read_bytes_per_second;
    disk.rated = Rated::measured(kept, is_fresh);
}

/// Where the files are that layers are read from: the model's own if that is quantized, else where its 4-bit form is or
/// will be, and the directory of all these forms.
fn places(model: &Model, options: &LoadOptions) -> Result<Vec<PathBuf>, Error> {
    if let Some(form) = form_directory(model, options)? {
        let roots = form.ancestors().skip(1).take(2).map(Path::to_path_buf).collect::<Vec<_>>();
        return Ok([vec![form], roots].concat());
    }
    let own = model.checkpoint().and_then(|one| Path::new(&one.config.file).parent());
    Ok(own.map(Path::to_path_buf).into_iter().collect())
}

/// The largest file in a directory, or one below it: large enough or not, `disk_rate` says.
fn largest_file(directory: &Path) -> Option<PathBuf> {
    let files = |directory: &Path| -> Vec<(u64, PathBuf)> {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let file = |entry: std::fs::DirEntry| {
            let found = std::fs::metadata(entry.path()).ok().filter(std::fs::Metadata::is_file)?;
            Some((found.len(), entry.path()))
        };
        entries.filter_map(file).collect()
    };
    let mut found = files(directory);
    for entry in std::fs::read_dir(directory).ok()?.flatten() {
        found.extend(files(&entry.path()));
    }
    found.into_iter().max().map(|(_, path)| path)
}

/// Where the rate of the file system of these places is kept.
fn kept_file(places: &[PathBuf], options: &LoadOptions) -> Option<PathBuf> {
    let system = places.iter().find_map(|place| file_system(place))?;
    Some(named(&dir(options)?, &format!("disk {system}")))
}
