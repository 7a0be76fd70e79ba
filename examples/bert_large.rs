//! BERT-large as a sequence classifier: 64 texts, and how many of them a second.
//!
//! What Python spells
//! ```python
//! AutoModelForSequenceClassification.from_pretrained("bert-large-uncased", device_map="auto", torch_dtype="auto")
//! ```
//! is `--quant none` here: the checkpoint's own 16 or 32 bits. Without it the encoder is in 4 bits.
//! ```sh
//! # By Hub id (or a directory). It has no classifier, so it gets a new one, and says so.
//! cargo run --release --example bert_large -- google-bert/bert-large-uncased --device-map auto --quant none
//! # The true shape with random weights, made and quantized on the fly: no download.
//! cargo run --release --example bert_large -- --synthetic --device-map cpu
//! # The same unquantized.
//! cargo run --release --example bert_large -- --synthetic --device-map cpu --quant none
//! ```

use clap::Parser;
use halfbyte::{Encoded, Error, ModelSource, SequenceClassifier, human_bytes, peak_resident};
use halfbyte_cli::args::ModelArgs;
use halfbyte_cli::progress::Bars;
use halfbyte_cli::table::Table;
use serde_json::json;
use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

/// What is loaded where nothing is named.
const BERT: &str = "google-bert/bert-large-uncased";

/// Sentences for a model with a tokenizer, over and over.
const SENTENCES: &[&str] = &[
    "The soup was wonderful, and the waiter knew every dish by heart.",
    "Two hours late, no apology, and the seats were broken.",
    "It does what the box says. Nothing more, nothing less.",
    "I would not go back if they paid me for it.",
    "A quiet film that trusts its actors, and rightly so.",
    "The update deleted my photos, and support has not answered since.",
    "My children have asked for it every evening this week.",
    "For the price it is fine, but the handle came off on the first day.",
];

/// Classify texts with BERT-large and say how fast that was.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Random weights of the true shape instead of a download; texts are then random token ids.
    #[arg(long, conflicts_with = "model")]
    synthetic: bool,
    /// How many texts.
    #[arg(long, default_value_t = 64, value_name = "N")]
    texts: usize,
    /// Tokens of each text with --synthetic.
    #[arg(long, default_value_t = 128, value_name = "N")]
    tokens: usize,
    /// How often the texts are classified; the fastest time counts.
    #[arg(long, default_value_t = 3, value_name = "N")]
    repeat: usize,
}

fn main() -> ExitCode {
    halfbyte_cli::exit_code(run(&Args::parse()))
}

fn run(args: &Args) -> Result<(), Error> {
    let source = match (&args.model.model, args.synthetic) {
        (_, true) => ModelSource::Synthetic("bert-large".into()),
        (Some(name), _) => ModelSource::named(name),
        (None, _) => ModelSource::Named(BERT.into()),
    };
    let mut model = SequenceClassifier::load(&source, &args.model.options()?, &mut Bars::new())?;
    let texts: Vec<&str> = SENTENCES.iter().copied().cycle().take(args.texts).collect();
    let ids: Vec<Encoded> = (0..args.texts).map(|text| random_text(text, args.tokens).into()).collect();

    let mut fastest = f64::INFINITY;
    let mut labels = Vec::new();
    for _ in 0..args.repeat.max(1) {
        let start = Instant::now();
        let logits = if args.synthetic {
            model.logits(&ids)?
        } else {
            model.classify(&texts)?.into_iter().map(|answer| answer.logits).collect()
        };
        fastest = fastest.min(start.elapsed().as_secs_f64());
        labels = logits.iter().map(|logits| halfbyte::argmax(logits)).collect();
    }
    let rate = args.texts as f64 / fastest;
    let loaded = model.loaded();
    if args.model.json {
        let report = json!({
            "texts": args.texts,
            "tokens": args.synthetic.then_some(args.tokens),
            "labels": labels,
            "seconds": fastest,
            "texts_per_second": rate,
            "load_seconds": loaded.load_seconds(),
            "device_map": loaded.device_map(),
            "memory": loaded.memory(),
            "peak_resident_bytes": peak_resident(),
            "events": loaded.events(),
        });
        return print(&format!("{report}\n"));
    }
    let bytes = |bytes: Option<u64>| bytes.map_or_else(|| "?".to_owned(), human_bytes);
    let mut table = Table::new(&["device", "planned", "allocated", "witnessed"]);
    for row in loaded.memory() {
        table.row([
            row.device.clone(),
            human_bytes(row.planned_bytes),
            human_bytes(row.measured_bytes),
            bytes(row.witnessed_bytes),
        ]);
    }
    print(&format!(
        "load    {:.1} s\n{} texts in {fastest:.2} s: {rate:.2} texts/s\npeak resident {}\n\n{table}",
        loaded.load_seconds(),
        args.texts,
        bytes(peak_resident()),
    ))
}

/// `[CLS]`, ids that depend on the text's number, `[SEP]`.
fn random_text(text: usize, tokens: usize) -> Vec<u32> {
    // Any spread of ids will do: the work is the same.
    let id = |at: usize| ((text * 7919 + at * 104_729) % 29_000 + 1000) as u32;
    let mut ids: Vec<u32> = (0..tokens).map(id).collect();
    if let [first, .., last] = ids.as_mut_slice() {
        (*first, *last) = (101, 102);
    }
    ids
}

fn print(text: &str) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| Error::Usage(format!("stdout: {error}")))
}
