//! The arguments of every command.

use crate::hub_args::HubArgs;
use clap::{Args, Parser, Subcommand};
use halfbyte::{
    ComputeDtype, CpuMath, DeviceMap, Error, FaultSpec, FourBitCache, KvType, LoadOptions, ModelSource,
    QuantSpec, QuantType, SampleParams, Token, parse_max_memory, parse_pretend_memory, parse_stream_layers,
};
use std::path::PathBuf;

/// Over the options of loading, in help: what a command is for comes before them.
const LOADING: &str = "Model and memory";

/// What most people come for.
const EXAMPLES: &str = "\
Examples:
  halfbyte run --prompt \"Once there was\"      the bundled model, no download
  halfbyte plan meta-llama/Llama-2-7b-hf      whether it fits, before a download
  halfbyte chat Qwen/Qwen2.5-7B-Instruct      a conversation
  halfbyte chat --max-memory wgpu:0=6GiB DIR  with 6 GiB of the GPU at most
  halfbyte bench --shape llama-2-7b           speed, and the device's own limit";

/// Run Hugging Face models in 4 bits on any GPU, the CPU, or both at once.
#[derive(Debug, Parser)]
#[command(name = "halfbyte", version, propagate_version = true, max_term_width = 100, after_help = EXAMPLES)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Say more on stderr; twice: everything. `HALFBYTE_LOG` has the full syntax of tracing filters.
    #[arg(short, long, global = true, action = clap::ArgAction::Count, display_order = 900)]
    pub verbose: u8,
}

/// The commands. A number below 0 is the value of its option, which then says what it expects.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Complete a prompt.
    #[command(allow_negative_numbers = true)]
    Run(RunArgs),
    /// Hold a conversation.
    #[command(allow_negative_numbers = true)]
    Chat(ChatArgs),
    /// Say what will live where and whether it fits, from headers alone.
    #[command(allow_negative_numbers = true)]
    Plan(PlanArgs),
    /// Compute the logits of token ids, to compare with other runtimes.
    #[command(allow_negative_numbers = true)]
    Logits(LogitsArgs),
    /// Label texts, or find the names in them.
    #[command(allow_negative_numbers = true)]
    Classify(ClassifyArgs),
    /// Write a model as a bitsandbytes 4-bit checkpoint.
    #[command(allow_negative_numbers = true)]
    Quantize(crate::commands::quantize::QuantizeArgs),
    /// Measure a model's perplexity on a text.
    #[command(allow_negative_numbers = true)]
    Perplexity(PerplexityArgs),
    /// Measure decode and prefill, beside the device's own limit.
    #[command(allow_negative_numbers = true)]
    Bench(BenchArgs),
    /// List the devices of this machine.
    #[command(allow_negative_numbers = true)]
    Devices(DevicesArgs),
    /// Check every kernel on every device against the scalar reference.
    Doctor(DoctorArgs),
}

/// The model and how it is loaded: the options that all commands share.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = LOADING)]
pub struct ModelArgs {
    /// A Hub id (`org/name`), a local directory, or a bundled model [default: stories].
    #[arg(help_heading = None::<&str>)]
    pub model: Option<String>,
    /// Where layers live: auto, balanced, sequential, one device (cpu, disk, wgpu:0, cuda:0), or a JSON file of modules and
    /// devices.
    #[arg(long, default_value = "auto", value_name = "MAP")]
    pub device_map: String,
    /// The most memory to use on a device, as in wgpu:0=6GiB,cpu=8GiB,disk=20GiB; 0 forbids it. May be given again.
    #[arg(long, value_name = "LIMITS")]
    pub max_memory: Vec<String>,
    /// Take a device to have this much memory, as in wgpu:0=6GiB: plan for it and allocate within it, as on
    /// a machine that has no more. May be given again. @FILE reads the sizes from a file, and again while the
    /// model runs: layers move out when a size falls, and come back when it grows.
    #[arg(long, value_name = "SIZES", hide_short_help = true)]
    pub pretend_memory: Vec<String>,
    /// How 16- and 32-bit weights are held: nf4, fp4, or none: as they are.
    #[arg(long, default_value = "nf4", value_name = "TYPE")]
    pub quant: String,
    /// Keep the scales of blocks in 32 bits.
    #[arg(long)]
    pub no_double_quant: bool,
    /// Weights that share a scale.
    #[arg(long, default_value_t = 64, value_name = "N")]
    pub blocksize: usize,
    /// The least precision of arithmetic: float16, bfloat16, or float32, which gives the same text on every device
    /// [default: float16; for logits and perplexity float32].
    #[arg(long, value_name = "TYPE")]
    pub compute_dtype: Option<String>,
    /// Arithmetic of 4-bit products on the CPU: exact (float32) or fast (activations in bytes)
    /// [default: HALFBYTE_CPU_MATH, or fast, and exact with --compute-dtype float32].
    #[arg(long, value_name = "MATH")]
    pub cpu_math: Option<String>,
    /// Threads of the CPU, as many as it has processors for this process at most [default: its physical cores].
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Element type of the KV cache: f32, f16, q8 or q4.
    #[arg(long, default_value = "f16", value_name = "TYPE")]
    pub kv_cache: String,
    /// Tokens of context to reserve [default: what the model allows, at most 4096, at most what fits].
    #[arg(long, value_name = "N")]
    pub context: Option<usize>,
    /// Tokens of a prompt that are processed at once.
    #[arg(long, default_value_t = 256, value_name = "N", hide_short_help = true)]
    pub chunk: usize,
    /// Whether layers on the CPU or the disk stream to a GPU for prompts: always, never, or auto: where it pays by
    /// measured rates. Memory for two layers is kept on the GPU where they do.
    #[arg(long, default_value = "auto", value_name = "WHEN")]
    pub stream_layers: String,
    /// Quantize classification heads and poolers too, as transformers 5 does.
    #[arg(long, hide_short_help = true)]
    pub convert_heads: bool,
    /// Where nothing exact fits any more, go on with a smaller KV cache: the text may then differ.
    #[arg(long)]
    pub allow_lossy: bool,
    /// Neither read nor write the 4-bit form of a large 16-bit model, which is kept beside the Hub's cache.
    #[arg(long)]
    pub no_cache: bool,
    /// Download a model as it is and keep it, where it would be quantized as it arrives and only its 4-bit form
    /// be kept.
    #[arg(long)]
    pub keep_original: bool,
    /// Let the Nth allocation fail (alloc:N) or lose the device at the Nth submission (device-lost:N), on
    /// the first GPU that holds a part of the model, else on the CPU: to see that the text stays the same.
    #[arg(long, value_name = "FAULT", hide_short_help = true)]
    pub fault: Option<String>,
    /// Where a model of the Hub comes from.
    #[command(flatten)]
    pub hub: HubArgs,
    /// Print one JSON object on stdout and nothing else there.
    #[arg(long, help_heading = None::<&str>)]
    pub json: bool,
}

impl ModelArgs {
    /// Which model.
    pub fn source(&self) -> ModelSource {
        match &self.model {
            Some(name) => ModelSource::named(name),
            None => ModelSource::Bundled("stories".into()),
        }
    }

    /// How to load it.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the option that is wrong.
    pub fn options(&self) -> Result<LoadOptions, Error> {
        let mut max_memory = std::collections::BTreeMap::new();
        for limits in &self.max_memory {
            max_memory.extend(parse_max_memory(limits)?);
        }
        let mut pretend_memory = std::collections::BTreeMap::new();
        let mut pretend_memory_file = None;
        for sizes in &self.pretend_memory {
            match sizes.strip_prefix('@') {
                Some(file) => pretend_memory_file = Some(PathBuf::from(file)),
                None => pretend_memory.extend(parse_pretend_memory(sizes)?),
            }
        }
        if self.chunk == 0 {
            return Err(Error::Usage("--chunk 0: at least one token must be processed at once".into()));
        }
        Ok(LoadOptions {
            device_map: self.device_map.parse::<DeviceMap>()?,
            max_memory,
            pretend_memory,
            pretend_memory_file,
            stream_layers: parse_stream_layers(&self.stream_layers)?,
            allow_lossy: self.allow_lossy,
            quant: self.quant()?,
            compute_dtype: self.compute_dtype.as_deref().map_or(Ok(ComputeDtype::Float16), str::parse)?,
            cpu_math: self.cpu_math.as_deref().map(cpu_math).transpose()?,
            threads: match self.threads {
                Some(0) => return Err(Error::Usage("--threads 0: one thread at least must work".into())),
                threads => threads,
            },
            kv_cache: parse_kv(&self.kv_cache)?,
            context: self.context,
            chunk: self.chunk,
            outputs: 1,
            sequences: 1,
            task: None,
            convert_heads: self.convert_heads,
            four_bit_cache: if self.no_cache { FourBitCache::Never } else { FourBitCache::Auto },
            keep_original: self.keep_original,
            fault: self.fault()?,
            revision: self.hub.revision.clone(),
            token: self.hub.token.clone().map(Token),
            offline: self.hub.offline,
            cache_dir: self.hub.cache_dir.clone(),
        })
    }

    /// As [`options`](Self::options), for numbers that are compared with those of other runtimes.
    pub fn options_for_numbers(&self) -> Result<LoadOptions, Error> {
        let mut options = LoadOptions { outputs: 32, ..self.options()? };
        if self.compute_dtype.is_none() {
            options.compute_dtype = ComputeDtype::Float32;
        }
        Ok(options)
    }

    fn fault(&self) -> Result<Option<FaultSpec>, Error> {
        let parsed = self.fault.as_deref().map(str::parse).transpose();
        parsed.map_err(|error| Error::Usage(format!("--fault {error}")))
    }

    fn quant(&self) -> Result<Option<QuantSpec>, Error> {
        if self.quant == "none" {
            return Ok(None);
        }
        let quant_type = match self.quant.as_str() {
            "nf4" => QuantType::Nf4,
            "fp4" => QuantType::Fp4,
            other => return Err(Error::Usage(format!("--quant {other}: expected nf4, fp4 or none"))),
        };
        let spec = QuantSpec { quant_type, blocksize: self.blocksize, double_quant: !self.no_double_quant };
        spec.validate().map_err(|error| Error::Usage(format!("--blocksize {}: {error}", self.blocksize)))?;
        Ok(Some(spec))
    }
}

fn cpu_math(text: &str) -> Result<CpuMath, Error> {
    text.parse().map_err(|_| Error::Usage(format!("--cpu-math {text}: expected exact or fast")))
}

fn parse_kv(text: &str) -> Result<KvType, Error> {
    match text {
        "f32" => Ok(KvType::F32),
        "f16" => Ok(KvType::F16),
        "q8" => Ok(KvType::Q8),
        "q4" => Ok(KvType::Q4),
        other => Err(Error::Usage(format!("--kv-cache {other}: expected f32, f16, q8 or q4"))),
    }
}

/// How tokens are chosen. What is not given comes from the model's generation_config.json.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Sampling")]
pub struct SampleArgs {
    /// How far to draw from the less likely tokens; 0 is greedy: always the likeliest.
    #[arg(long, value_name = "T")]
    pub temperature: Option<f32>,
    /// Keep the K likeliest tokens; 0 keeps all.
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Keep the fewest tokens whose probabilities reach P.
    #[arg(long, value_name = "P")]
    pub top_p: Option<f32>,
    /// Make tokens that have occurred less likely; 1 is off.
    #[arg(long, value_name = "R")]
    pub repetition_penalty: Option<f32>,
    /// Seed of the random numbers; the same seed draws the same text.
    #[arg(long, value_name = "S")]
    pub seed: Option<u64>,
}

impl SampleArgs {
    /// These over the model's own defaults.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the value that is out of range.
    pub fn over(&self, model: SampleParams) -> Result<SampleParams, Error> {
        self.check()?;
        Ok(SampleParams {
            temperature: self.temperature.unwrap_or(model.temperature),
            top_k: self.top_k.unwrap_or(model.top_k),
            top_p: self.top_p.unwrap_or(model.top_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(model.repetition_penalty),
            seed: self.seed.unwrap_or(model.seed),
        })
    }

    /// Checks what was given; done before a model is loaded, so that nobody waits for a refusal.
    ///
    /// # Errors
    /// As [`over`](Self::over).
    pub fn check(&self) -> Result<(), Error> {
        let wrong = |option: &str, value: f32, wanted: &str| {
            Err(Error::Usage(format!("{option} {value}: expected {wanted}")))
        };
        match *self {
            Self { temperature: Some(t), .. } if !(t >= 0.0 && t.is_finite()) => {
                wrong("--temperature", t, "a number from 0 (greedy) up")
            }
            Self { top_p: Some(p), .. } if !(p > 0.0 && p <= 1.0) => {
                wrong("--top-p", p, "a number above 0, at most 1")
            }
            Self { repetition_penalty: Some(r), .. } if !(r > 0.0 && r.is_finite()) => {
                wrong("--repetition-penalty", r, "a number above 0 (1 is off)")
            }
            _ => Ok(()),
        }
    }
}

/// `halfbyte run`
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The text to continue.
    #[arg(long, short, value_name = "TEXT", conflicts_with = "prompt_file")]
    pub prompt: Option<String>,
    /// A file with the text to continue, without its last line end; - for stdin.
    #[arg(long, value_name = "FILE")]
    pub prompt_file: Option<PathBuf>,
    /// The most tokens to generate [default: the model's own, else 256].
    #[arg(long, short = 'n', value_name = "N")]
    pub max_new_tokens: Option<usize>,
    /// Sampling.
    #[command(flatten)]
    pub sample: SampleArgs,
    /// Model and loading.
    #[command(flatten)]
    pub model: ModelArgs,
}

/// `halfbyte chat`
#[derive(Debug, Args)]
pub struct ChatArgs {
    /// The system message.
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// The most tokens of each answer.
    #[arg(long, short = 'n', default_value_t = 1024, value_name = "N")]
    pub max_new_tokens: usize,
    /// Sampling.
    #[command(flatten)]
    pub sample: SampleArgs,
    /// Model and loading.
    #[command(flatten)]
    pub model: ModelArgs,
}

/// `halfbyte classify`
#[derive(Debug, Args)]
#[command(mut_arg("model", |arg| arg.help("A Hub id (`org/name`), a local directory, or a bundled model [default: sentiment]")))]
pub struct ClassifyArgs {
    /// A text to label. May be given again: the texts go through the model together.
    #[arg(long, short, value_name = "TEXT")]
    pub text: Vec<String>,
    /// A file of texts, one on each line; - for stdin.
    #[arg(long, value_name = "FILE")]
    pub text_file: Option<PathBuf>,
    /// The second text of each pair, where the model judges pairs; as many as there are texts.
    #[arg(long, value_name = "TEXT")]
    pub pair: Vec<String>,
    /// Model and loading.
    #[command(flatten)]
    pub model: ModelArgs,
}

/// `halfbyte plan`
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// Sequences at once, each with a KV cache of its own.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub batch: usize,
    /// Model and loading.
    #[command(flatten)]
    pub model: ModelArgs,
}

/// `halfbyte logits`
#[derive(Debug, Args)]
pub struct LogitsArgs {
    /// Token ids, as in 1,584,342.
    #[arg(long, value_name = "IDS", value_delimiter = ',', required = true)]
    pub ids: Vec<u32>,
    /// The safetensors file to write: one float32 tensor `logits`, [1, tokens, vocabulary]; of a classifier [1, labels], of
    /// one of tokens [1, tokens, labels].
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Model and loading.
    #[command(flatten)]
    pub model: ModelArgs,
}

/// `halfbyte perplexity`
#[derive(Debug, Args)]
pub struct PerplexityArgs {
    /// A file with the text; - for stdin.
    #[arg(long, value_name = "FILE")]
    pub text_file: PathBuf,
    /// Model and loading.
    #[command(flatten)]
    pub model: ModelArgs,
}

/// `halfbyte devices`
#[derive(Debug, Args)]
pub struct DevicesArgs {
    /// Print one JSON object on stdout and nothing else there; with --watch one on each line.
    #[arg(long)]
    pub json: bool,
    /// Show each device's memory as a bar, again and again, and warn before it is gone. Ctrl-C ends it.
    #[arg(long)]
    pub watch: bool,
    /// Seconds between two looks.
    #[arg(long, default_value_t = 1.0, value_name = "SECONDS", requires = "watch")]
    pub interval: f64,
    /// End after so many looks.
    #[arg(long, value_name = "N", requires = "watch")]
    pub samples: Option<usize>,
}

/// `halfbyte doctor`
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Only this device, as in wgpu:0.
    #[arg(long, value_name = "NAME")]
    pub device: Option<String>,
    /// A line for every case, not for every step.
    #[arg(long)]
    pub cases: bool,
    /// Print one JSON object on stdout and nothing else there.
    #[arg(long)]
    pub json: bool,
}

/// `halfbyte bench`
#[derive(Debug, Args)]
#[command(mut_arg("model", |arg| arg.help("A Hub id (`org/name`), a local directory, or a bundled model, in place of --shape")))]
pub struct BenchArgs {
    /// Random weights of a true shape, no download: llama-160m, tinyllama-1.1b, llama-2-7b [default:
    /// llama-160m].
    #[arg(long, value_name = "SHAPE")]
    pub shape: Option<String>,
    /// Lengths of prompts to measure; 0 for none [default: 512,2048 with a GPU, else 128].
    #[arg(long, value_name = "N", value_delimiter = ',')]
    pub prefill: Option<Vec<usize>>,
    /// Contexts after which decoding is measured [default: 0,4096 with a GPU, else 0,512].
    #[arg(long, value_name = "N", value_delimiter = ',')]
    pub decode_at: Option<Vec<usize>>,
    /// Tokens that are decoded for each figure.
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub tokens: usize,
    /// Each figure is the median of this many runs.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub repeats: usize,
    /// Take a decoded token apart: time of each step class on the device's clock; of a GPU the host's own time and
    /// passes, too.
    #[arg(long)]
    pub profile: bool,
    /// Model and loading.
    #[command(flatten)]
    pub model: ModelArgs,
}
