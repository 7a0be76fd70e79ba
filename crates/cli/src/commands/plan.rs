//! `halfbyte plan`: what will live where, from headers alone.

use super::{print, print_json, print_table, say};
use crate::args::PlanArgs;
use crate::progress::Bars;
use crate::table::{Table, bytes};
use halfbyte::{Error, LoadOptions, UsedRate};

/// Nobody means more at once: what they take would be told as a number of elements, which helps nobody.
const MOST_SEQUENCES: usize = 65_536;

/// Plans and prints; exit code 0 whether it fits or not with `--json`, 1 if it does not fit without.
pub fn run(args: &PlanArgs) -> Result<(), Error> {
    if args.batch == 0 {
        return Err(Error::Usage("--batch 0: expected at least one sequence".into()));
    }
    if args.batch > MOST_SEQUENCES {
        return Err(Error::Usage(format!(
            "--batch {}: expected at most {MOST_SEQUENCES} sequences at once",
            args.batch
        )));
    }
    let options = LoadOptions { sequences: args.batch, ..args.model.options()? };
    let report = halfbyte::plan(&args.model.source(), &options, &mut Bars::new())?;
    if args.model.json {
        let value = serde_json::to_value(&report).map_err(|error| Error::Usage(error.to_string()))?;
        return print_json(&value);
    }
    let mut table = Table::new(&[
        "device",
        "blocks",
        "weights",
        "KV cache",
        "activations",
        "scratch",
        "planned",
        "read in files",
        "budget",
        "budget from",
    ]);
    for device in &report.devices {
        let blocks = report.layers.iter().filter(|layer| layer.device == device.device).count();
        table.row([
            device.device.clone(),
            blocks.to_string(),
            bytes(device.weights_bytes),
            bytes(device.kv_cache_bytes),
            bytes(device.activation_bytes),
            bytes(device.scratch_bytes),
            bytes(device.planned_bytes),
            bytes(device.mapped_bytes),
            device.budget_bytes.map_or_else(|| "-".to_owned(), bytes),
            device.budget_source.clone(),
        ]);
    }
    print_table(&table)?;
    if let Some(streamed) = &report.streamed {
        print(&format!(
            "{} layers stream to {} for prompts of {} tokens and more, through {} there\n",
            streamed.layers,
            streamed.device,
            streamed.from_tokens,
            bytes(streamed.bytes)
        ))?;
    }
    if let Some(why) = &report.not_streamed {
        print(&format!("layers do not stream to the GPU for prompts: {why}\n"))?;
    }
    if let Some(rate) = report.predicted_tokens_per_second {
        let rates = rests_on(&report.predicted_from);
        print(&format!("reading the weights allows {} tokens a second: {rates}\n", speed(rate)))?;
    }
    for device in &report.devices {
        if let Some(why) = &device.rates_disturbed {
            say(&format!(
                "note: the rates of {} were taken while {why}; they are measured again at the next start",
                device.device
            ));
        }
    }
    match &report.refusal {
        None => {
            let longest = report.max_context.map(|n| format!(", at most {n} fits")).unwrap_or_default();
            print(&format!("fits, with a context of {} tokens{longest}\n", report.context))
        }
        Some(refusal) => Err(Error::Usage(format!("it does not fit: {refusal}"))),
    }
}

/// A speed with two digits that say something.
fn speed(rate: f64) -> String {
    match rate {
        10.0.. => format!("{rate:.0}"),
        1.0.. => format!("{rate:.1}"),
        _ => format!("{rate:.2}"),
    }
}

/// What each device is taken to read, and who says so.
fn rests_on(used: &[UsedRate]) -> String {
    let one = |rate: &UsedRate| {
        let beside = if rate.device == "disk" { ", more where memory keeps its files" } else { "" };
        format!(
            "{} at {} GB a second ({}{beside})",
            rate.device,
            speed(rate.read_bytes_per_second / 1e9),
            rate.source.name()
        )
    };
    used.iter().map(one).collect::<Vec<_>>().join(", ")
}
