//! `cargo xtask bench`: halfbyte's speed, alone or paired with another build or with llama.cpp.
//!
//! Two things that are to be compared run in turns within one call, each turn's order the reverse of the
//! one before, so that a machine that grows slower or faster meanwhile favours neither.

mod gguf;
mod idle;
mod interleave;
mod report;
mod revision;
mod side;

use crate::cargo;
use clap::Args;
use idle::{Awake, Ticks};
use report::{Figure, Samples};
use side::Side;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What is measured, and with what it is compared.
#[derive(Args)]
pub struct BenchArgs {
    /// llama-160m, tinyllama-1.1b or llama-2-7b, with random weights.
    #[arg(long, default_value = "llama-160m")]
    shape: String,
    /// Lengths of prompts; 0 for none.
    #[arg(short, long, value_delimiter = ',', default_values_t = [128])]
    prefill: Vec<usize>,
    /// Tokens to decode for each figure; 0 for none.
    #[arg(short = 'n', long, default_value_t = 32)]
    tokens: usize,
    /// Contexts after which decoding is measured.
    #[arg(short, long, value_delimiter = ',', default_values_t = [0])]
    decode_at: Vec<usize>,
    /// Cores that every side is bound to, by `taskset` [default: all].
    #[arg(short, long)]
    threads: Option<usize>,
    /// cpu, wgpu:0, cuda:0; llama-bench gets `-ngl 99` unless it is cpu.
    #[arg(long, default_value = "cpu")]
    device_map: String,
    /// Measurements within a turn; their median is the turn's figure.
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// Run all sides at once, one for so many seconds while the others are stopped, and so on (Unix): for machines whose
    /// speed changes within a turn. Wants many short --repeats.
    #[arg(long, value_name = "SECONDS")]
    interleave: Option<f64>,
    /// Turns of each side.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Keep all processors from sleeping meanwhile (Linux, root): those of a virtual machine are moved when they wake, and
    /// its memory's bandwidth with them. Free memory is put together, too, so that weights can lie in large pages.
    #[arg(long)]
    awake: bool,
    /// The `halfbyte` to measure [default: built from the working tree].
    #[arg(long)]
    binary: Option<PathBuf>,
    /// `llama-bench`, a path of another `halfbyte`, or a git revision, which is built. May be given again.
    #[arg(long, value_name = "WHAT")]
    compare: Vec<String>,
    /// llama.cpp's head: q4_0, which reads least, q6_k, which `llama-quantize` makes, or f16.
    #[arg(long, default_value = "q4_0")]
    head: String,
    /// A Python with `gguf` and `numpy` [default: a virtual environment under target/].
    #[arg(long)]
    python: Option<PathBuf>,
    /// One more argument for llama-bench, as in --peer-arg=-fa --peer-arg=1. May be given again.
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    peer_arg: Vec<String>,
    /// Where all figures are written as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Passed on to every `halfbyte bench`, as in `-- --kv-cache q8`.
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Measures, prints a table, and writes the JSON if one is asked for.
pub fn run(args: &BenchArgs) -> Result<(), String> {
    let sides = sides(args)?;
    let _awake = args.awake.then(Awake::hold).transpose()?;
    let mut samples: BTreeMap<Figure, Vec<Samples>> = BTreeMap::new();
    for round in 0..args.rounds.max(1) {
        let turn = format!("turn {} of {}", round + 1, args.rounds.max(1));
        let mut add = |index: usize, figures: Vec<(Figure, f64)>, stolen: f64| {
            let said: Vec<String> = figures.iter().map(|(_, speed)| format!("{speed:.2}")).collect();
            let (name, stolen_percent) = (sides[index].name(), stolen * 100.0);
            eprintln!(
                "{turn}: {name}: {} tokens/s; the host gave {stolen_percent:.1} % of the processors to others",
                said.join(", ")
            );
            for (figure, speed) in figures {
                let row = samples.entry(figure).or_insert_with(|| vec![Samples::default(); sides.len()]);
                row[index].add(speed, stolen);
            }
        };
        if let Some(seconds) = args.interleave {
            let window =
                Duration::try_from_secs_f64(seconds).map_err(|error| format!("--interleave: {error}"))?;
            prepare(args);
            let (all, stolen) = stolen_during(|| interleave::measure(&sides, args, window));
            all?.into_iter().enumerate().for_each(|(index, figures)| add(index, figures, stolen));
            continue;
        }
        let mut order: Vec<usize> = (0..sides.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for index in order {
            prepare(args);
            let (figures, stolen) = stolen_during(|| sides[index].measure(args));
            add(index, figures?, stolen);
        }
    }
    let names: Vec<&str> = sides.iter().map(Side::name).collect();
    print!("{}", report::table(&names, &samples));
    if let Some(path) = &args.json {
        let json = report::json(args, &names, &samples);
        let text = serde_json::to_string_pretty(&json).map_err(|error| error.to_string())?;
        std::fs::write(path, text + "\n").map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

/// What comes before every turn.
fn prepare(args: &BenchArgs) {
    if args.awake {
        idle::compact_memory();
    }
}

/// Does `work`; the share of the processors that a virtual machine's host gave to others meanwhile.
fn stolen_during<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let before = Ticks::now();
    let done = work();
    (done, Ticks::now().zip(before).map_or(0.0, |(now, before)| now.stolen_since(before)))
}

/// The working tree's build, then what it is compared with.
fn sides(args: &BenchArgs) -> Result<Vec<Side>, String> {
    let own = match &args.binary {
        Some(path) => absolute(path)?,
        None => cargo::build_release()?,
    };
    let mut sides = vec![Side::halfbyte("halfbyte", own)];
    for what in &args.compare {
        let side = if what == "llama-bench" {
            Side::llama(gguf::file(&args.shape, &args.head, args.python.as_deref())?)
        } else if Path::new(what).is_file() {
            Side::halfbyte(what, absolute(Path::new(what))?)
        } else {
            Side::halfbyte(what, revision::build(what)?)
        };
        sides.push(side);
    }
    Ok(sides)
}

fn absolute(path: &Path) -> Result<PathBuf, String> {
    path.canonicalize().map_err(|error| format!("{}: {error}", path.display()))
}
