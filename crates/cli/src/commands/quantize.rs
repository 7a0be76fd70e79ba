//! `halfbyte quantize`: a bitsandbytes 4-bit checkpoint.

use super::{print, print_json};
use crate::hub_args::HubArgs;
use crate::progress::Bars;
use crate::table::bytes;
use clap::Args;
use halfbyte::{Error, ModelSource, QuantSpec, QuantType, QuantizeOptions, TensorDtype, Token, parse_bytes};
use std::path::PathBuf;

/// `halfbyte quantize`
#[derive(Debug, Args)]
pub struct QuantizeArgs {
    /// A Hub id (`org/name`), a local directory, or `stories`, the bundled model.
    pub model: String,
    /// The directory to write: new, empty, or left by a run of this command that was interrupted.
    #[arg(long, short, value_name = "DIR")]
    pub output: PathBuf,
    /// nf4 or fp4.
    #[arg(long, default_value = "nf4", value_name = "TYPE")]
    pub quant: String,
    /// Keep the scales of blocks in 32 bits.
    #[arg(long)]
    pub no_double_quant: bool,
    /// Weights that share a scale.
    #[arg(long, default_value_t = 64, value_name = "N")]
    pub blocksize: usize,
    /// What transformers is to compute in: float16, bfloat16 or float32 [default: the model's own type].
    #[arg(long, value_name = "TYPE")]
    pub compute_dtype: Option<String>,
    /// The type that packed bytes are stored under: uint8, or for FSDP float16, bfloat16 or float32.
    #[arg(long, default_value = "uint8", value_name = "TYPE")]
    pub quant_storage: String,
    /// Quantize classification heads and poolers too, as transformers 5 does.
    #[arg(long)]
    pub convert_heads: bool,
    /// A module to keep as it is, as in llm_int8_skip_modules: its name, the beginning or the end of it.
    /// May be given again.
    #[arg(long, value_name = "MODULE", value_delimiter = ',')]
    pub skip_modules: Vec<String>,
    /// The most bytes of one file.
    #[arg(long, default_value = "5GB", value_name = "SIZE")]
    pub max_shard_size: String,
    /// Download a model of the Hub first and keep it, where it would be quantized as it arrives.
    #[arg(long)]
    pub keep_original: bool,
    /// Where a model of the Hub comes from.
    #[command(flatten)]
    pub hub: HubArgs,
    /// Print one JSON object on stdout and nothing else there.
    #[arg(long)]
    pub json: bool,
}

impl QuantizeArgs {
    fn options(&self) -> Result<QuantizeOptions, Error> {
        let quant_type = match self.quant.as_str() {
            "nf4" => QuantType::Nf4,
            "fp4" => QuantType::Fp4,
            other => return Err(Error::Usage(format!("--quant {other}: expected nf4 or fp4"))),
        };
        let quant = QuantSpec { quant_type, blocksize: self.blocksize, double_quant: !self.no_double_quant };
        quant.validate().map_err(|error| Error::Usage(format!("--blocksize {}: {error}", self.blocksize)))?;
        let max_shard_bytes = parse_bytes(&self.max_shard_size)
            .map_err(|error| Error::Usage(format!("--max-shard-size: {error}")))?;
        if max_shard_bytes == 0 {
            return Err(Error::Usage("--max-shard-size 0: a shard holds at least one weight".into()));
        }
        let storage = dtype("--quant-storage", &self.quant_storage)?;
        let compute_dtype = self.compute_dtype.as_deref().map(|name| dtype("--compute-dtype", name));
        Ok(QuantizeOptions {
            quant,
            storage,
            compute_dtype: compute_dtype.transpose()?,
            convert_heads: self.convert_heads,
            skip_modules: self.skip_modules.clone(),
            max_shard_bytes,
            revision: self.hub.revision.clone(),
            token: self.hub.token.clone().map(Token),
            offline: self.hub.offline,
            cache_dir: self.hub.cache_dir.clone(),
            keep_original: self.keep_original,
        })
    }
}

/// A type as PyTorch names it; bytes are for storage only.
fn dtype(option: &str, name: &str) -> Result<TensorDtype, Error> {
    let bytes = option == "--quant-storage";
    match TensorDtype::from_torch_name(name) {
        Some(dtype @ (TensorDtype::F16 | TensorDtype::BF16 | TensorDtype::F32)) => Ok(dtype),
        Some(dtype @ (TensorDtype::U8 | TensorDtype::I8)) if bytes => Ok(dtype),
        _ => {
            let or_bytes = if bytes { ", uint8" } else { "" };
            Err(Error::Usage(format!("{option} {name}: expected float16, bfloat16, float32{or_bytes}")))
        }
    }
}

/// Writes the checkpoint and says what came of it.
pub fn run(args: &QuantizeArgs) -> Result<(), Error> {
    let source = ModelSource::named(&args.model);
    let report = halfbyte::quantize(&source, &args.output, &args.options()?, &mut Bars::new())?;
    if args.json {
        let value = serde_json::to_value(&report).map_err(|error| Error::Usage(error.to_string()))?;
        return print_json(&value);
    }
    let resumed = match report.resumed_tensors {
        0 => String::new(),
        tensors => format!(", {tensors} tensors from the run before"),
    };
    print(&format!(
        "{} weights in 4 bits, {} tensors as they were: {} became {} in {} ({}{resumed}, {:.1} s)\n",
        report.tensors,
        report.kept_tensors,
        bytes(report.bytes_in),
        bytes(report.bytes_out),
        args.output.display(),
        if report.shards == 1 { "1 file".to_owned() } else { format!("{} files", report.shards) },
        report.seconds,
    ))
}
