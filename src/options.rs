//! How a model is loaded: the counterpart of `from_pretrained`'s arguments.

use crate::{Error, FourBitCache};
use halfbyte_backend::{Fault, FaultSpec, KvType};
pub use halfbyte_cpu::Math as CpuMath;
use halfbyte_inference::Task;
pub use halfbyte_placement::Streaming as StreamLayers;
use halfbyte_quant::QuantSpec;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where the layers go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum DeviceMap {
    /// As many layers as fit on the GPUs, the others on the CPU; the fastest placement that fits.
    #[default]
    Auto,
    /// Equal shares for all GPUs.
    Balanced,
    /// The first GPU filled, then the next, then the CPU.
    Sequential,
    /// Everything on one device: `cpu`, `wgpu:0`.
    Only(String),
    /// Names or prefixes of modules, each with its device, as accelerate writes them.
    Given(BTreeMap<String, String>),
}

/// The least precision that arithmetic is done in.
///
/// [`Float32`](Self::Float32) gives the same greedy text wherever layers live and move to. With the others the CPU
/// multiplies 4-bit weights in [`CpuMath::Fast`] unless it is told otherwise; all other kernels of today multiply and
/// add in float32 whatever is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ComputeDtype {
    /// IEEE binary16.
    #[default]
    Float16,
    /// The upper half of binary32.
    Bfloat16,
    /// IEEE binary32.
    Float32,
}

/// A secret: never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(pub String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// Everything that can be said about loading a model.
///
/// ```
/// let options = halfbyte::LoadOptions {
///     device_map: "cpu".parse()?,
///     context: Some(2048),
///     ..Default::default()
/// };
/// # Ok::<(), halfbyte::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Where the layers go.
    pub device_map: DeviceMap,
    /// The most bytes to hold on a device, by its name; never exceeded.
    pub max_memory: BTreeMap<String, u64>,
    /// The memory that a device is to be taken to have, by its name: it is planned for and allocated as if
    /// the device were that small. To see how a model would live on another machine.
    pub pretend_memory: BTreeMap<String, u64>,
    /// A file that says the same as `pretend_memory` and is read again while the model runs: when a size in
    /// it falls, blocks move out of that device, and when it grows, they come back.
    pub pretend_memory_file: Option<PathBuf>,
    /// Whether layers that live on the CPU or the disk stream to a GPU for prompts.
    pub stream_layers: StreamLayers,
    /// Whether a KV cache of a smaller type may be taken where nothing exact fits any more: the text goes on,
    /// but may differ.
    pub allow_lossy: bool,
    /// How 16- and 32-bit linear layers are quantized; `None` keeps them as they are. A checkpoint that is
    /// already quantized keeps its own format.
    pub quant: Option<QuantSpec>,
    /// The least precision of arithmetic.
    pub compute_dtype: ComputeDtype,
    /// Arithmetic of 4-bit products on the CPU. `None`: what `HALFBYTE_CPU_MATH` says, or exact with a
    /// [`compute_dtype`](Self::compute_dtype) of float32, and else fast.
    pub cpu_math: Option<CpuMath>,
    /// Threads of the CPU. `None`: one for each physical core that the process may use. More than the processors that it
    /// may use, by its affinity and its control group's quota, would wait for each other: so many work, and a
    /// [note](crate::Progress::note) says so. 0 is refused.
    pub threads: Option<usize>,
    /// Element type of the KV cache.
    pub kv_cache: KvType,
    /// Tokens of context to reserve. `None`: what the model allows, at most 4096, at most what fits.
    pub context: Option<usize>,
    /// Tokens of a prompt that are processed at once.
    pub chunk: usize,
    /// Positions whose logits are computed at once. 1 is all that generating needs; more speeds up
    /// [`CausalLm::logits`](crate::CausalLm::logits) and [`CausalLm::perplexity`](crate::CausalLm::perplexity).
    pub outputs: usize,
    /// Sequences whose KV caches are reserved: texts that
    /// [`CausalLm::generate_batch`](crate::CausalLm::generate_batch) continues together.
    pub sequences: usize,
    /// What the model is to be for. `None`: what its architecture says. An encoder without a classifier
    /// gets a new one, drawn at random, where this says [`Task::ClassifySequence`].
    pub task: Option<Task>,
    /// Whether the layers of classifiers and poolers are quantized too, as transformers 5 does; otherwise
    /// they stay in 16 or 32 bits.
    pub convert_heads: bool,
    /// Whether the 4-bit form of a 16-bit model is kept on the disk for the next start.
    pub four_bit_cache: FourBitCache,
    /// Whether a model is downloaded as it is and kept, where only its 4-bit form would be: a model whose 4-bit
    /// form is kept is otherwise quantized as it arrives, and takes no other space on the disk.
    pub keep_original: bool,
    /// An allocation that is to fail or a submission at which the device is to be lost: on the first GPU
    /// that holds a part of the model, else on the CPU. To see that a program survives it.
    pub fault: Option<FaultSpec>,
    /// Branch, tag or commit on the Hub.
    pub revision: Option<String>,
    /// Access token for the Hub. `None`: `HF_TOKEN`, or what `huggingface-cli login` stored.
    pub token: Option<Token>,
    /// Use only what is already in the cache.
    pub offline: bool,
    /// Where downloads live. `None`: `HF_HOME`, shared with Python.
    pub cache_dir: Option<PathBuf>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            device_map: DeviceMap::Auto,
            max_memory: BTreeMap::new(),
            pretend_memory: BTreeMap::new(),
            pretend_memory_file: None,
            stream_layers: StreamLayers::Auto,
            allow_lossy: false,
            quant: Some(QuantSpec::default()),
            compute_dtype: ComputeDtype::default(),
            cpu_math: None,
            threads: None,
            kv_cache: KvType::F16,
            context: None,
            chunk: 256,
            outputs: 1,
            sequences: 1,
            task: None,
            convert_heads: false,
            four_bit_cache: FourBitCache::Auto,
            keep_original: false,
            fault: None,
            revision: None,
            token: None,
            offline: false,
            cache_dir: None,
        }
    }
}

impl LoadOptions {
    /// The CPU's arithmetic: what is asked for, what the environment says, or what the precision allows.
    pub(crate) fn arithmetic(&self) -> Result<CpuMath, Fault> {
        let allowed = match self.compute_dtype {
            ComputeDtype::Float32 => CpuMath::Exact,
            ComputeDtype::Float16 | ComputeDtype::Bfloat16 => CpuMath::Fast,
        };
        self.cpu_math.map_or_else(|| CpuMath::from_env_or(allowed), Ok)
    }

    /// Threads of the CPU, one for each processor that this process may use at most.
    pub(crate) fn working_threads(&self) -> Result<Option<usize>, Fault> {
        match self.threads {
            Some(0) => Err(Fault::Invalid("threads is 0: one thread at least must work".into())),
            threads => Ok(threads.map(|threads| threads.min(processors()))),
        }
    }

    /// What to say where fewer threads work than were asked for.
    pub(crate) fn fewer_threads(&self) -> Option<String> {
        let (asked, may) = (self.threads?, processors());
        let plural = if may == 1 { "" } else { "s" };
        (asked > may).then(|| {
            format!(
                "--threads {asked}: {may} thread{plural}, since this process may use {may} processor{plural}"
            )
        })
    }

    /// The most bytes that `device` may hold, by whichever limit is smaller.
    #[cfg(any(feature = "wgpu", feature = "cuda", feature = "cube"))]
    pub(crate) fn budget_of(&self, device: &str) -> Option<u64> {
        [&self.max_memory, &self.pretend_memory].iter().filter_map(|limits| limits.get(device).copied()).min()
    }
}

/// Processors that this process may use: its affinity and the quota of its control group are respected. Where the system
/// does not say, all that anybody asks for.
fn processors() -> usize {
    std::thread::available_parallelism().map_or(usize::MAX, usize::from)
}

/// Whether `name` looks like a device: `cpu`, `disk`, `wgpu:0`, `cuda:1`.
pub(crate) fn is_device_name(name: &str) -> bool {
    match name.split_once(':') {
        Some(("wgpu" | "cuda", index)) => index.parse::<u32>().is_ok(),
        // CUDA's kernels on a wgpu adapter, for tests.
        Some(("cube", index)) => cfg!(feature = "cube") && matches!(index, "0" | "1"),
        Some(_) => false,
        None => name == "cpu" || name == "disk",
    }
}

impl FromStr for DeviceMap {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "auto" => Ok(Self::Auto),
            "balanced" => Ok(Self::Balanced),
            "sequential" => Ok(Self::Sequential),
            name if is_device_name(name) => Ok(Self::Only(name.to_owned())),
            // accelerate's short forms
            "wgpu" | "cuda" => Ok(Self::Only(format!("{text}:0"))),
            file if file.ends_with(".json") => Self::read(file),
            other => Err(Error::Usage(format!(
                "--device-map {other}: expected auto, balanced, sequential, cpu, disk, wgpu:0, cuda:0 or a .json file"
            ))),
        }
    }
}

impl DeviceMap {
    fn read(file: &str) -> Result<Self, Error> {
        let text = std::fs::read_to_string(file)
            .map_err(|error| Error::Usage(format!("--device-map {file}: {error}")))?;
        let map: BTreeMap<String, String> = serde_json::from_str(&text).map_err(|error| {
            Error::Usage(format!(
                "--device-map {file}: expected an object of module names and devices, as in \
                 {{\"model.embed_tokens\": \"cpu\", \"\": \"wgpu:0\"}}: {error}"
            ))
        })?;
        if map.is_empty() {
            return Err(Error::Usage(format!(
                "--device-map {file}: it names no module; {{\"\": \"cpu\"}} puts all on the CPU"
            )));
        }
        match map.iter().find(|(_, device)| !is_device_name(device)) {
            Some((module, device)) => Err(Error::Usage(format!(
                "--device-map {file}: {module:?} is to go to {device:?}, which is no device"
            ))),
            None => Ok(Self::Given(map)),
        }
    }
}

impl FromStr for ComputeDtype {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "float16" | "f16" => Ok(Self::Float16),
            "bfloat16" | "bf16" => Ok(Self::Bfloat16),
            "float32" | "f32" => Ok(Self::Float32),
            other => {
                Err(Error::Usage(format!("--compute-dtype {other}: expected float16, bfloat16 or float32")))
            }
        }
    }
}

impl fmt::Display for ComputeDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Float16 => "float16",
            Self::Bfloat16 => "bfloat16",
            Self::Float32 => "float32",
        })
    }
}

/// `auto`, `always` or `never`, as `--stream-layers` has it.
///
/// # Errors
/// [`Error::Usage`] for anything else.
pub fn parse_stream_layers(text: &str) -> Result<StreamLayers, Error> {
    match text {
        "auto" => Ok(StreamLayers::Auto),
        "always" => Ok(StreamLayers::Always),
        "never" => Ok(StreamLayers::Never),
        other => Err(Error::Usage(format!("--stream-layers {other}: expected auto, always or never"))),
    }
}

/// Bytes as people write them: `6GiB`, `500MB`, `1.5GiB`, `4096`.
///
/// # Errors
/// [`Error::Usage`] for anything else.
pub fn parse_bytes(text: &str) -> Result<u64, Error> {
    let wrong =
        || Error::Usage(format!("{text:?} is no size: expected bytes as in 6GiB, 500MB or 1073741824"));
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor: f64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        "k" | "kib" => 1024.0,
        "m" | "mib" => 1024.0 * 1024.0,
        "g" | "gib" => 1024.0 * 1024.0 * 1024.0,
        "t" | "tib" => 1024.0f64.powi(4),
        _ => return Err(wrong()),
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let bytes = number * factor;
    if bytes < 9e18 { Ok(bytes.round() as u64) } else { Err(wrong()) }
}

/// `wgpu:0=6GiB,cpu=8GiB`: the most bytes for each device. Several arguments of this form add up.
///
/// # Errors
/// [`Error::Usage`] naming the part that is wrong.
pub fn parse_max_memory(text: &str) -> Result<BTreeMap<String, u64>, Error> {
    parse_memory("--max-memory", text)
}

/// `wgpu:0=6GiB,cpu=8GiB`: the memory that each device is taken to have.
///
/// # Errors
/// [`Error::Usage`] naming the part that is wrong.
pub fn parse_pretend_memory(text: &str) -> Result<BTreeMap<String, u64>, Error> {
    parse_memory("--pretend-memory", text)
}

fn parse_memory(option: &str, text: &str) -> Result<BTreeMap<String, u64>, Error> {
    let mut limits = BTreeMap::new();
    for part in text.split(',').filter(|part| !part.trim().is_empty()) {
        let Some((device, bytes)) = part.split_once('=') else {
            return Err(Error::Usage(format!("{option} {part}: expected DEVICE=SIZE, as in wgpu:0=6GiB")));
        };
        let device = device.trim();
        if !is_device_name(device) {
            return Err(Error::Usage(format!(
                "{option} {part}: {device:?} is no device; `halfbyte devices` lists them"
            )));
        }
        let bytes =
            parse_bytes(bytes.trim()).map_err(|error| Error::Usage(format!("{option} {part}: {error}")))?;
        limits.insert(device.to_owned(), bytes);
    }
    Ok(limits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_people_write_them() {
        for (text, bytes) in [
            ("6GiB", 6 << 30),
            ("1.5GiB", 3 << 29),
            ("500MB", 500_000_000),
            ("0", 0),
            ("4096", 4096),
            ("2g", 2 << 30),
        ] {
            assert_eq!(parse_bytes(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "GiB", "six", "-1GiB", "1e30TiB", "1.2.3", "5 parsecs"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn max_memory_names_what_is_wrong() {
        let limits = parse_max_memory("wgpu:0=6GiB, cpu=8GiB,disk=0").unwrap();
        assert_eq!(limits["wgpu:0"], 6 << 30);
        assert_eq!(limits["disk"], 0);
        assert_eq!(parse_pretend_memory("cpu=2GiB").unwrap()["cpu"], 2 << 30);
        assert!(parse_pretend_memory("cpu").unwrap_err().to_string().contains("--pretend-memory cpu"));
        assert!(parse_max_memory("gpu=1GiB").unwrap_err().to_string().contains("\"gpu\""));
        assert!(parse_max_memory("cpu").unwrap_err().to_string().contains("DEVICE=SIZE"));
    }

    #[test]
    fn device_maps() {
        assert_eq!("auto".parse::<DeviceMap>().unwrap(), DeviceMap::Auto);
        assert_eq!("wgpu:1".parse::<DeviceMap>().unwrap(), DeviceMap::Only("wgpu:1".into()));
        assert!("gpu".parse::<DeviceMap>().is_err());
        assert!("missing.json".parse::<DeviceMap>().unwrap_err().to_string().contains("missing.json"));
    }
}
