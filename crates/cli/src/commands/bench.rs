//! `halfbyte bench`: decode and prefill speed, beside what the device can do at most.

use super::{print, print_json, print_table, report, say};
use crate::args::BenchArgs;
use crate::notes;
use crate::progress::Bars;
use crate::table::{Table, bytes};
use halfbyte::{BenchDevice, BenchOptions, BenchRow, DecodeProfile, Error, ModelSource};
use serde_json::json;
use std::io::IsTerminal;

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
        prefill: args.prefill.as_ref().map(|all| all.iter().copied().filter(|&tokens| tokens > 0).collect()),
        decode_at: args.decode_at.clone(),
        tokens: args.tokens,
        repeats: args.repeats,
        profile: args.profile,
    };
    // A figure may take minutes: people see each as it is known, programs get the whole.
    let watched = !args.model.json && std::io::stderr().is_terminal();
    let mut seen = |row: &BenchRow| {
        if watched {
            say(&format!("{}: {:.2} tokens/s", what_row(row), speed(row)));
        }
    };
    let measured = halfbyte::bench(&source, &args.model.options()?, &what, &mut Bars::new(), &mut seen)?;
    if args.model.json {
        let mut object = json!(measured);
        object["events"] = json!(notes::events());
        return print_json(&object);
    }
    for device in &measured.devices {
        let (name, adapter, driver) = (&device.device, &device.adapter, &device.driver);
        print(&format!("{name}: {adapter} ({driver}), {}\n", reads(device)))?;
    }
    print_table(&table(&measured.rows))?;
    print(&format!("\n{}", report::memory_table(&measured.memory)))?;
    for profile in &measured.profiles {
        print(&format!("\n{}", profiled(profile)))?;
    }
    if args.profile && measured.profiles.is_empty() {
        say("note: --profile takes one device apart, and this run was on several, or on one without a clock");
    }
    if let Some(device) = measured.devices.iter().find(|device| device.software) {
        say(&format!(
            "note: {} is emulated by the processor: its speed says nothing of GPUs",
            device.adapter
        ));
    }
    Ok(())
}

/// What a device reads at most, or why that is not known.
fn reads(device: &BenchDevice) -> String {
    let why = device.not_measured.as_deref().unwrap_or("unknown");
    match (device.read_bandwidth, device.disk_rate) {
        (Some(rate), _) => format!("read bandwidth {:.1} GB/s", rate / 1e9),
        (None, Some(rate)) => format!("{:.2} GB/s past what memory keeps of its files", rate / 1e9),
        (None, None) => format!("read bandwidth not measured: {why}"),
    }
}

/// What a row measured.
fn what_row(row: &BenchRow) -> String {
    match row.prefill_tokens {
        Some(tokens) => format!("prefill {tokens}"),
        None => format!("decode at {}", row.context),
    }
}

/// Tokens a second, of whatever it measured.
fn speed(row: &BenchRow) -> f64 {
    row.prefill_tokens_per_second.or(row.decode_tokens_per_second).unwrap_or(0.0)
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
        let gigabytes =
            |rate: Option<f64>| rate.map_or_else(|| "-".to_owned(), |rate| format!("{:.1}", rate / 1e9));
        table.row([
            row.device.clone(),
            what_row(row),
            format!("{:.2}", speed(row)),
            row.bytes_per_token.map_or_else(|| "-".to_owned(), bytes),
            gigabytes(row.read_rate),
            gigabytes(row.read_bandwidth),
            row.share_of_limit.map_or_else(|| "-".to_owned(), |share| format!("{:.0} %", share * 100.0)),
            row.dispatches_per_token.map_or_else(|| "-".to_owned(), |count| format!("{count:.0}")),
        ]);
    }
    table
}

/// A profile as people read it.
fn profiled(profile: &DecodeProfile) -> String {
    let mut table =
        Table::new(&["step", "dispatches", "us", "of the time", "bytes", "GB/s", "share of limit"]);
    let known = |bytes: u64, text: String| if bytes > 0 { text } else { "-".to_owned() };
    for step in &profile.steps {
        let share =
            step.share_of_limit.map_or_else(|| "-".to_owned(), |share| format!("{:.0} %", share * 100.0));
        table.row([
            step.class.clone(),
            step.dispatches.to_string(),
            format!("{:.1}", step.seconds * 1e6),
            format!("{:.0} %", step.share_of_time * 100.0),
            known(step.bytes, bytes(step.bytes)),
            known(step.bytes, format!("{:.1}", step.read_rate / 1e9)),
            known(step.bytes, share),
        ]);
    }
    let micros =
        |seconds: Option<f64>| seconds.map_or_else(|| "-".to_owned(), |s| format!("{:.1} us", s * 1e6));
    let work = if profile.passes_per_token > 0.0 {
        format!(
            "host {} outside the driver's calls, {} in them, waiting included; {} dispatches, {} passes, {} submissions",
            micros(profile.host_seconds_per_token),
            micros(profile.driver_seconds_per_token),
            profile.dispatches_per_token,
            profile.passes_per_token,
            profile.submissions_per_token,
        )
    } else {
        format!("{} steps", profile.dispatches_per_token)
    };
    let clock = if profile.steps.is_empty() { "  (no timestamps on this adapter)\n" } else { "" };
    format!(
        "{}, a token after a context of {}:\n{}{clock}whole token {}; {work}\n",
        profile.device,
        profile.context,
        if profile.steps.is_empty() { String::new() } else { table.to_string() },
        micros(Some(profile.seconds_per_token)),
    )
}
