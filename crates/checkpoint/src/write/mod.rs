//! Writing a model as a bitsandbytes 4-bit checkpoint, one tensor at a time.
//!
//! What is written is what `save_pretrained` of transformers 5 writes for a model that was loaded with
//! `load_in_4bit`: the same tensors under the same names with the same bytes (`quant_state.rs` reads them
//! back), `config.json` with a `quantization_config`, the tokenizer's files beside it.
//!
//! A tensor is read from the memory map, quantized on all cores and written to its place in its shard while
//! the next one is quantized, so that private memory holds a few tensors, never a model. Every file is
//! written under a name that ends in `.part` and renamed when it is complete; `config.json`, without which
//! the directory is no model, comes last. What an interrupted run finished is kept when it is started again, to
//! the single tensor.

mod checksum;
mod companions;
mod directory;
mod layout;
mod originals;
mod part;
mod shard;
mod sharding;
mod space;
mod state_json;

pub use originals::{Original, Originals};
pub use space::{free_space, is_writable};

use crate::checkpoint::Checkpoint;
use crate::dtype::TensorDtype;
use crate::error::{CheckpointError, shown};
use crate::selection::Selection;
use directory::Directory;
use halfbyte_quant::QuantSpec;
use layout::{Item, Layout};
use originals::Given;
use part::Part;
use std::borrow::Cow;
use std::path::Path;

/// How a checkpoint is written.
#[derive(Debug, Clone, PartialEq)]
pub struct WriteOptions {
    /// Codebook, block size and double quantization.
    pub spec: QuantSpec,
    /// The type that the packed bytes are stored under (`bnb_4bit_quant_storage`).
    pub storage: TensorDtype,
    /// What transformers is to compute in (`bnb_4bit_compute_dtype`); `None` for the model's own type.
    pub compute_dtype: Option<TensorDtype>,
    /// Whether classification heads and poolers become 4-bit too, as transformers 5 does.
    pub convert_heads: bool,
    /// Modules that are kept as they are, besides those that always are (`llm_int8_skip_modules`).
    pub skip_modules: Vec<String>,
    /// The most bytes of one shard; a module that is larger has a shard to itself.
    pub max_shard_bytes: u64,
}

impl Default for WriteOptions {
    fn default() -> Self {
        WriteOptions {
            spec: QuantSpec::default(),
            storage: TensorDtype::U8,
            compute_dtype: None,
            convert_heads: false,
            skip_modules: Vec::new(),
            max_shard_bytes: 5_000_000_000,
        }
    }
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteReport {
    /// Weights that became 4-bit.
    pub quantized: usize,
    /// Tensors that were copied as they are.
    pub kept: usize,
    /// Bytes of the tensors that were read.
    pub bytes_in: u64,
    /// Bytes of the shards that were written.
    pub bytes_out: u64,
    /// Number of shards.
    pub shards: usize,
    /// Shards among them that an interrupted run had finished.
    pub resumed: usize,
    /// Tensors of the source that an interrupted run had done, in finished shards or not.
    pub resumed_tensors: usize,
}

/// Bytes that [`write_quantized`] will write, to within some dozen a tensor; from headers alone.
///
/// # Errors
/// As [`write_quantized`], as far as headers tell.
pub fn quantized_bytes(checkpoint: &Checkpoint, options: &WriteOptions) -> Result<u64, CheckpointError> {
    let selection = select(checkpoint, options)?;
    let items = items(checkpoint, options, &selection)?;
    Ok(items.iter().map(|item| item.bytes(options)).sum())
}

/// Where tensors are read from: a checkpoint, or what makes them up as they are asked for.
pub trait TensorBytes {
    /// The bytes of a tensor, little-endian in its own type.
    ///
    /// # Errors
    /// If there is no such tensor.
    fn tensor(&self, name: &str) -> Result<Cow<'_, [u8]>, CheckpointError>;
}

impl TensorBytes for Checkpoint {
    fn tensor(&self, name: &str) -> Result<Cow<'_, [u8]>, CheckpointError> {
        self.tensor_bytes(name).map(Cow::Borrowed)
    }
}

/// Writes `checkpoint` into `dir` as a bitsandbytes 4-bit checkpoint. `progress` hears the tensor that was
/// written last, and how many of the bytes to read have been.
///
/// # Errors
/// A model that is quantized already, options that are out of range, weights that are not finite, a
/// directory that holds something else, a disk that is full or fails.
pub fn write_quantized(
    checkpoint: &Checkpoint,
    dir: &Path,
    options: &WriteOptions,
    progress: &mut dyn FnMut(&str, u64, u64),
) -> Result<WriteReport, CheckpointError> {
    write_quantized_from(checkpoint, checkpoint, dir, options, progress)
}

/// [`write_quantized`] of a checkpoint of which only headers are here, with its tensors from elsewhere.
///
/// # Errors
/// As [`write_quantized`], and what `source` says.
pub fn write_quantized_from(
    checkpoint: &Checkpoint,
    source: &dyn TensorBytes,
    dir: &Path,
    options: &WriteOptions,
    progress: &mut dyn FnMut(&str, u64, u64),
) -> Result<WriteReport, CheckpointError> {
    write_originals(checkpoint, &mut Given { checkpoint, source }, dir, options, progress)
}

/// [`write_quantized_from`] of tensors that come one after the other, each once.
///
/// # Errors
/// As [`write_quantized`], and what `originals` says.
pub fn write_originals<'a>(
    checkpoint: &'a Checkpoint,
    originals: &mut dyn Originals<'a>,
    dir: &Path,
    options: &WriteOptions,
    progress: &mut dyn FnMut(&str, u64, u64),
) -> Result<WriteReport, CheckpointError> {
    let selection = select(checkpoint, options)?;
    let items = items(checkpoint, options, &selection)?;
    // Before anything is made there.
    let wanted = items.iter().map(|item| item.bytes(options)).sum();
    check_space(dir, wanted, directory::bytes_in(dir))?;
    let directory = Directory::claim(dir, &identity(originals.identity(), options))?;

    let shards = sharding::split(&items, options);
    let mut report = WriteReport {
        quantized: items.iter().filter(|item| item.quantized()).count(),
        kept: items.iter().filter(|item| !item.quantized()).count(),
        bytes_in: items.iter().map(Item::bytes_in).sum(),
        bytes_out: 0,
        shards: shards.len(),
        resumed: 0,
        resumed_tensors: 0,
    };
    let bytes_in = |items: &[Item<'_>]| items.iter().map(Item::bytes_in).sum::<u64>();
    let (mut done, mut headers) = (0, 0);
    let mut unfinished = Vec::new();
    let (mut expected, mut mark) = (Vec::new(), None);
    for (number, items) in shards.iter().enumerate() {
        let name = sharding::file_name(number, shards.len());
        let layout = Layout::new(items, options);
        headers += layout.data_start;
        if let Some(bytes) = directory.finished_shard(&name, &layout)? {
            report.bytes_out += bytes;
            report.resumed += 1;
            report.resumed_tensors += items.len();
            done += bytes_in(items);
            mark = part::last_line(&directory.journal(&name)).and_then(|line| line.mark);
            continue;
        }
        let part = Part::open(&directory.part(&name), &directory.journal(&name), &layout)?;
        let (before, after) = items.split_at(part.done.len());
        report.resumed_tensors += before.len();
        done += bytes_in(before);
        if let Some(last) = part.done.last() {
            mark.clone_from(&last.mark);
        }
        expected.extend(after.iter().map(|item| item.tensor));
        unfinished.push((name, layout, part));
    }
    if done > 0 {
        progress("", done, report.bytes_in);
    }
    originals.expect(&expected, mark.as_deref())?;
    for (name, layout, part) in unfinished {
        let mut written = |item: &Item<'_>| {
            done += item.bytes_in();
            progress(item.name(), done, report.bytes_in);
        };
        report.bytes_out +=
            shard::write(originals, &directory, &name, &part, &layout, options, &mut written)?;
    }
    let data_bytes = report.bytes_out - headers;
    companions::write(checkpoint, &directory, options, &selection, &shards, data_bytes)?;
    directory.finish()?;
    Ok(report)
}

/// Which weights become 4-bit.
fn select(checkpoint: &Checkpoint, options: &WriteOptions) -> Result<Selection, CheckpointError> {
    let refuse = |what: String, instead: String| CheckpointError::Unsupported { what, instead };
    if checkpoint.config.quantization()?.is_some() {
        let what = format!("{}: quantizing what is quantized already", checkpoint.name);
        return Err(refuse(what, "use it as it is, or start from the original weights".into()));
    }
    options.spec.validate().map_err(|error| {
        refuse(format!("a blocksize of {}", options.spec.blocksize), shown(&error.to_string()))
    })?;
    if !matches!(
        options.storage,
        TensorDtype::U8 | TensorDtype::I8 | TensorDtype::F16 | TensorDtype::BF16 | TensorDtype::F32
    ) {
        let what = format!("storing packed codes as {}", options.storage);
        return Err(refuse(what, "take uint8, int8, float16, bfloat16 or float32".into()));
    }
    let selection =
        Selection::of(&checkpoint.config, &checkpoint.index, options.convert_heads, &options.skip_modules);
    if !selection.any() {
        return Err(refuse(
            format!("{}: quantizing a model without linear layers to quantize", checkpoint.name),
            "check --skip-modules and that the checkpoint is a transformers model".into(),
        ));
    }
    Ok(selection)
}

/// The tensors with what becomes of each, in the order of the source's shards and bytes.
fn items<'a>(
    checkpoint: &'a Checkpoint,
    options: &WriteOptions,
    selection: &Selection,
) -> Result<Vec<Item<'a>>, CheckpointError> {
    let tensors = checkpoint.index.iter();
    tensors.map(|tensor| Item::new(tensor, selection.fate(&tensor.name), options)).collect()
}

/// What an interrupted run must have had in common with this one for its shards to be kept.
fn identity(source: serde_json::Value, options: &WriteOptions) -> serde_json::Value {
    serde_json::json!({
        "format": 3,
        "source": source,
        "options": format!("{options:?}"),
    })
}

/// Bytes in a unit that people read.
fn size(bytes: u64) -> String {
    match bytes {
        0..=0xf_ffff => format!("{} KiB", bytes.div_ceil(1 << 10)),
        0x10_0000..=0x3fff_ffff => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
        _ => format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
    }
}

/// Refuses to begin what the disk cannot hold, where the system tells.
fn check_space(dir: &Path, wanted: u64, there: u64) -> Result<(), CheckpointError> {
    let needed = wanted.saturating_sub(there);
    match free_space(dir) {
        Some(free) if free < needed => Err(CheckpointError::Output {
            dir: dir.display().to_string(),
            problem: format!(
                "{} are to be written and the disk has {} free; free some or choose another directory",
                size(needed),
                size(free)
            ),
        }),
        _ => Ok(()),
    }
}
