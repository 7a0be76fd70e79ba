//! A model written as a bitsandbytes 4-bit checkpoint.

use crate::file_form::MadeUp;
use crate::model_source::{Model, ModelSource, Place, download};
use crate::options::{LoadOptions, Token};
use crate::{Error, Progress};
use halfbyte_checkpoint::hub::{self, Away};
use halfbyte_checkpoint::{TensorDtype, WriteOptions, WriteReport, write_quantized_from};
use halfbyte_quant::QuantSpec;
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// How a model is written in 4 bits.
///
/// ```
/// let options = halfbyte::QuantizeOptions {
///     skip_modules: vec!["model.layers.0".into()],
///     ..Default::default()
/// };
/// ```
#[derive(Debug, Clone)]
pub struct QuantizeOptions {
    /// Codebook, block size and double quantization.
    pub quant: QuantSpec,
    /// The type that the packed bytes are stored under, as `bnb_4bit_quant_storage`: `U8`, or for FSDP a
    /// float type.
    pub storage: TensorDtype,
    /// What transformers is to compute in, as `bnb_4bit_compute_dtype`. `None`: the model's own type.
    pub compute_dtype: Option<TensorDtype>,
    /// Whether classification heads and poolers become 4-bit too, as transformers 5 does.
    pub convert_heads: bool,
    /// Modules that are kept as they are, as `llm_int8_skip_modules`: full names, their beginnings up to a
    /// dot, or their ends.
    pub skip_modules: Vec<String>,
    /// The most bytes of one shard.
    pub max_shard_bytes: u64,
    /// Branch, tag or commit on the Hub.
    pub revision: Option<String>,
    /// Access token for the Hub. `None`: `HF_TOKEN`, or what `huggingface-cli login` stored.
    pub token: Option<Token>,
    /// Use only what is already downloaded.
    pub offline: bool,
    /// Where downloads live. `None`: `HF_HOME`, shared with Python.
    pub cache_dir: Option<PathBuf>,
    /// Whether a model that is on the Hub is downloaded first and kept; otherwise it is quantized as it arrives
    /// and takes no other space on the disk.
    pub keep_original: bool,
}

impl Default for QuantizeOptions {
    fn default() -> Self {
        let WriteOptions { spec, storage, compute_dtype, convert_heads, skip_modules, max_shard_bytes } =
            WriteOptions::default();
        Self {
            quant: spec,
            storage,
            compute_dtype,
            convert_heads,
            skip_modules,
            max_shard_bytes,
            revision: None,
            token: None,
            offline: false,
            cache_dir: None,
            keep_original: false,
        }
    }
}

/// What was written.
#[derive(Debug, Clone, serde::Serialize)]
pub struct QuantizeReport {
    /// Weights that became 4-bit.
    pub tensors: usize,
    /// Tensors that were copied as they are.
    pub kept_tensors: usize,
    /// Bytes of all tensors before.
    pub bytes_in: u64,
    /// Bytes of all shards after.
    pub bytes_out: u64,
    /// Number of shards.
    pub shards: usize,
    /// Shards among them that an interrupted run had finished.
    pub resumed_shards: usize,
    /// Tensors that an interrupted run had done, in finished shards or not.
    pub resumed_tensors: usize,
    /// Seconds from the call to its return.
    pub seconds: f64,
}

/// Writes a model into `output` as a checkpoint that transformers with bitsandbytes loads, and this library.
///
/// A model that is on the Hub is quantized as it arrives, unless [`QuantizeOptions::keep_original`] says
/// otherwise. Memory holds a few tensors, not the model. Files appear when they are complete, `config.json` last; an
/// interrupted run goes on where it was when it is started again with the same model and options.
///
/// # Errors
/// What is wrong with the model or the options, a directory that holds something else, a disk that is full.
pub fn quantize(
    source: &ModelSource,
    output: &Path,
    options: &QuantizeOptions,
    progress: &mut dyn Progress,
) -> Result<QuantizeReport, Error> {
    let start = Instant::now();
    let load = LoadOptions {
        revision: options.revision.clone(),
        token: options.token.clone(),
        offline: options.offline,
        cache_dir: options.cache_dir.clone(),
        ..LoadOptions::default()
    };
    let write = WriteOptions {
        spec: options.quant,
        storage: options.storage,
        compute_dtype: options.compute_dtype,
        convert_heads: options.convert_heads,
        skip_modules: options.skip_modules.clone(),
        max_shard_bytes: options.max_shard_bytes,
    };
    let report = match source.find(&load, progress)? {
        Place::Away(away) if !options.keep_original => write_arriving(&away, output, &write, progress)?,
        Place::Away(away) => write_open(&download(&away, progress)?, output, &write, progress)?,
        Place::Here(model) => write_open(&model, output, &write, progress)?,
    };
    Ok(QuantizeReport {
        tensors: report.quantized,
        kept_tensors: report.kept,
        bytes_in: report.bytes_in,
        bytes_out: report.bytes_out,
        shards: report.shards,
        resumed_shards: report.resumed,
        resumed_tensors: report.resumed_tensors,
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// Writes a model from its files, or as it is made up.
fn write_open(
    model: &Model,
    output: &Path,
    write: &WriteOptions,
    progress: &mut dyn Progress,
) -> Result<WriteReport, Error> {
    let mut report = |name: &str, done: u64, total: u64| progress.quantize(name, done, total);
    Ok(match model {
        Model::Checkpoint(checkpoint) => {
            write_quantized_from(checkpoint, &**checkpoint, output, write, &mut report)?
        }
        Model::Synthetic(_, model) => {
            write_quantized_from(&model.outline()?, &MadeUp(model), output, write, &mut report)?
        }
    })
}

/// Writes a model that is on the Hub while it arrives.
pub(crate) fn write_arriving(
    away: &Away,
    output: &Path,
    write: &WriteOptions,
    progress: &mut dyn Progress,
) -> Result<WriteReport, Error> {
    // What arrives and what is written is told to the same listener, never at once.
    let progress = RefCell::new(progress);
    let mut written = |name: &str, done: u64, total: u64| progress.borrow_mut().quantize(name, done, total);
    Ok(away.quantize(output, write, &mut Arriving(&progress), &mut written)?.report)
}

/// Passes on what arrives.
struct Arriving<'a, 'p>(&'a RefCell<&'p mut dyn Progress>);

impl hub::Progress for Arriving<'_, '_> {
    fn file(&mut self, file: &str, done: u64, total: u64) {
        self.0.borrow_mut().download(file, done, total);
    }

    fn all(&mut self, done: u64, total: u64) {
        self.0.borrow_mut().download_all(done, total);
    }

    fn note(&mut self, text: &str) {
        self.0.borrow_mut().note(text);
    }
}
