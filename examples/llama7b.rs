//! Llama-2-7B in 4 bits on a machine that could not hold it in 16.
//!
//! What Python spells
//! ```python
//! AutoModelForCausalLM.from_pretrained("meta-llama/Llama-2-7b-hf", device_map="auto",
//!     quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
//!         bnb_4bit_compute_dtype=torch.float16, bnb_4bit_use_double_quant=True))
//! ```
//! is the default here; each word of it is an option, too:
//! ```sh
//! # By Hub id (or a directory). It is gated: its licence has to be accepted, and HF_TOKEN set. It is planned
//! # before anything is downloaded, and quantized as it arrives: 3.6 GiB of disk, not 13.5 GB more.
//! cargo run --release --example llama7b -- meta-llama/Llama-2-7b-hf --device-map auto --quant nf4 \
//!     --compute-dtype float16 --prompt "The capital of France"
//! # The true shape with random weights, made and quantized on the fly: no download.
//! cargo run --release --example llama7b -- --synthetic --device-map cpu --max-new-tokens 8
//! # Layers that do not fit 2 GiB of GPU memory run on the CPU.
//! cargo run --release --example llama7b -- --synthetic --max-memory wgpu:0=2GiB
//! ```

use clap::Parser;
use halfbyte::{
    CausalLm, Error, Flow, GenerateOptions, Generation, ModelSource, PlanReport, SampleParams, human_bytes,
    peak_resident,
};
use halfbyte_cli::args::{ModelArgs, SampleArgs};
use halfbyte_cli::progress::Bars;
use halfbyte_cli::table::Table;
use serde_json::json;
use std::io::Write;
use std::process::ExitCode;

/// What is loaded where nothing is named.
const LLAMA: &str = "meta-llama/Llama-2-7b-hf";

/// Load Llama-2-7B in 4 bits and generate, with a bill of every byte and second.
#[derive(Parser)]
#[command(mut_arg("model", |arg| arg.help("A Hub id (`org/name`) or a local directory [default: meta-llama/Llama-2-7b-hf]")))]
struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Random weights of the true shape instead of a download; the prompt is then token ids.
    #[arg(long, conflicts_with = "model")]
    synthetic: bool,
    /// The text to continue.
    #[arg(long, default_value = "Once there was")]
    prompt: String,
    /// Token ids to continue with --synthetic, as in 1,450,7483.
    #[arg(long, value_delimiter = ',', value_name = "IDS", default_value = "1,9038,2501,263,931")]
    ids: Vec<u32>,
    /// The most tokens to generate.
    #[arg(long, short = 'n', default_value_t = 32)]
    max_new_tokens: usize,
    #[command(flatten)]
    sample: SampleArgs,
}

fn main() -> ExitCode {
    halfbyte_cli::exit_code(run(&Args::parse()))
}

fn run(args: &Args) -> Result<(), Error> {
    args.sample.check()?;
    let source = match (&args.model.model, args.synthetic) {
        (_, true) => ModelSource::Synthetic("llama-2-7b".into()),
        (Some(name), _) => ModelSource::named(name),
        (None, _) => ModelSource::Named(LLAMA.into()),
    };
    let mut options = args.model.options()?;
    // Without --context: what this prompt and its continuation need, not the 2 GiB of 4096 tokens.
    let prompt = args.prompt.chars().count().max(args.ids.len());
    options.context = options.context.or(Some((prompt + args.max_new_tokens).clamp(64, 4096)));
    let json = args.model.json;

    let plan = halfbyte::plan(&source, &options, &mut Bars::new())?;
    if !json {
        print_plan(&plan)?;
    }
    let mut model = CausalLm::load(&source, &options, &mut Bars::new())?;
    // Random weights mean nothing: greedy tokens are at least the same everywhere.
    let greedy = SampleParams::default();
    let defaults = if args.synthetic { greedy } else { model.default_sampling() };
    let generate =
        GenerateOptions { max_new_tokens: args.max_new_tokens, sample: args.sample.over(defaults)? };
    let ids = if model.tokenizer().is_some() { model.encode(&args.prompt)? } else { args.ids.clone() };
    let generation = model.generate_ids(&ids, &generate, &mut |heard| {
        let shown = json || heard.text().is_none_or(|text| print(text).is_ok());
        if shown { Flow::Continue } else { Flow::Stop }
    })?;
    if json { print_json(&plan, &model, &generation) } else { print_figures(&model, &generation) }
}

/// What will live where.
fn print_plan(plan: &PlanReport) -> Result<(), Error> {
    let mut table = Table::new(&["device", "blocks", "weights", "KV cache", "other", "planned", "budget"]);
    for device in &plan.devices {
        let blocks = plan.layers.iter().filter(|layer| layer.device == device.device).count();
        table.row([
            device.device.clone(),
            blocks.to_string(),
            human_bytes(device.weights_bytes),
            human_bytes(device.kv_cache_bytes),
            human_bytes(device.activation_bytes + device.scratch_bytes),
            human_bytes(device.planned_bytes),
            device.budget_bytes.map_or_else(|| "-".to_owned(), human_bytes),
        ]);
    }
    print(&format!("{} with a context of {} tokens\n{table}\n", plan.model, plan.context))
}

/// What it took.
fn print_figures(model: &CausalLm, generation: &Generation) -> Result<(), Error> {
    let rate = |rate: Option<f64>| rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.2} tokens/s"));
    let bytes = |bytes: Option<u64>| bytes.map_or_else(|| "?".to_owned(), human_bytes);
    let mut table = Table::new(&["device", "planned", "allocated", "witnessed"]);
    for row in model.memory() {
        table.row([
            row.device.clone(),
            human_bytes(row.planned_bytes),
            human_bytes(row.measured_bytes),
            bytes(row.witnessed_bytes),
        ]);
    }
    print(&format!(
        "\ntokens  {:?}\nload    {:.1} s\nprefill {} ({} tokens)\ndecode  {} ({} tokens)\npeak resident {}\n\n{table}",
        generation.token_ids,
        model.load_seconds(),
        rate(generation.prefill_tokens_per_second),
        generation.prompt_tokens,
        rate(generation.decode_tokens_per_second),
        generation.token_ids.len(),
        bytes(peak_resident()),
    ))
}

/// The same for programs.
fn print_json(plan: &PlanReport, model: &CausalLm, generation: &Generation) -> Result<(), Error> {
    let report = json!({
        "plan": plan,
        "text": generation.text,
        "token_ids": generation.token_ids,
        "prompt_tokens": generation.prompt_tokens,
        "new_tokens": generation.token_ids.len(),
        "load_seconds": model.load_seconds(),
        "prefill_tokens_per_second": generation.prefill_tokens_per_second,
        "decode_tokens_per_second": generation.decode_tokens_per_second,
        "device_map": model.device_map(),
        "memory": model.memory(),
        "peak_resident_bytes": peak_resident(),
        "events": model.events(),
    });
    print(&format!("{report}\n"))
}

fn print(text: &str) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| Error::Usage(format!("stdout: {error}")))
}
