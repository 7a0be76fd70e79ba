//! `halfbyte bench`: decode and prefill speed, beside what the device can do at most.

use super::{print, print_json, say};
use crate::args::BenchArgs;
use crate::progress::Bars;
use crate::table::{Table, bytes};
use halfbyte::{BenchOptions, BenchRow, Error, ModelSource};
use serde_json::json;

/// Measures and prints.
pub fn run(args: &BenchArgs) -> Result<(), Error> {
    let source = match (&args.shape, &args.model.model) {
        (Some(shape), None) => ModelSource::Synthetic(shape.clone()),
        (Some(_), Some(_)) => {
            return Err(Error::Usage("either a model or --shape, not both".into()));
        }
        (None, Some(_)) => args.model.source(),
        (None, None) => ModelSource::Synthetic("llama-160m".into()),
    };
    if args.repeats == 0 || args.tokens == 0 {
        return Err(Error::Usage("--repeats and --tokens must be at least 1".into()));
    }
    let what = BenchOptions {
        prefill: args.prefill.iter().copied().filter(|&tokens| tokens > 0).collect(),
        decode_at: args.decode_at.clone(),
        tokens: args.tokens,
        repeats: args.repeats,
    };
    let rows = halfbyte::bench(&source, &args.model.options()?, &what, &mut Bars::new(), &mut |_| {})?;
    if args.model.json {
        return print_json(&json!({ "rows": rows }));
    }
    print(&table(&rows).to_string())?;
    if let Some(row) = rows.iter().find(|row| row.software) {
        say(&format!("note: {} is emulated by the processor: its speed says nothing of GPUs", row.adapter));
    }
    Ok(())
}

fn table(rows: &[BenchRow]) -> Table {
    let mut table = Table::new(&[
        "device",
        "what",
        "tokens/s",
        "bytes/token",
        "GB/s",
        "limit GB/s",
        "share",
        "dispatches",
    ]);
    for row in rows {
        let what = match row.prefill_tokens {
            Some(tokens) => format!("prefill {tokens}"),
            None => format!("decode at {}", row.context),
        };
        let gigabytes =
            |rate: Option<f64>| rate.map_or_else(|| "-".to_owned(), |rate| format!("{:.1}", rate / 1e9));
        let speed = row.prefill_tokens_per_second.or(row.decode_tokens_per_second).unwrap_or(0.0);
        table.row([
            row.device.clone(),
            what,
            format!("{speed:.2}"),
            row.bytes_per_token.map_or_else(|| "-".to_owned(), bytes),
            gigabytes(row.read_rate),
            gigabytes(row.read_bandwidth),
            row.share_of_limit.map_or_else(|| "-".to_owned(), |share| format!("{:.0} %", share * 100.0)),
            row.dispatches_per_token.map_or_else(|| "-".to_owned(), |count| format!("{count:.0}")),
        ]);
    }
    table
}
