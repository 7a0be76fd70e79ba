//! Llama-2-7B, which needs 3.6 GiB, in a control group of 2 GiB: planned to the disk, run, and not killed.

use crate::cgroup::{Group, drop_cached_files};
use crate::{cargo, python};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

const MODEL: &str = "synthetic:llama-2-7b";
const IDS: &str = "5,17,300,2,88,1000,31999,7";
const GIB: u64 = 1 << 30;

/// Builds the command, writes the 4-bit form if it is not there, and runs it in the group. The form is removed
/// afterwards unless it is to be kept.
pub fn run(keep: bool) -> Result<(), String> {
    // Said before anything is written.
    let group = Group::new("halfbyte-memory", 2 * GIB)?;
    let binary = cargo::build_release()?;
    let model = python::target().join("memory/llama-2-7b");
    let outcome = in_group(&group, &binary, &model);
    if !keep && let Err(error) = std::fs::remove_dir_all(&model) {
        println!("{}: {error}", model.display());
    }
    outcome
}

fn in_group(group: &Group, binary: &Path, model: &Path) -> Result<(), String> {
    if !model.join("config.json").exists() {
        println!("writing {MODEL} in 4 bits to {}", model.display());
        cargo::run(Command::new(binary).args(["quantize", MODEL, "--output"]).arg(model))?;
    }
    let folder = model.to_str().ok_or("the target directory has a name that is no text")?;
    let no_gpu = without_gpus(&json(Command::new(binary).args(["devices", "--json"]))?);
    let limits: Vec<&str> = no_gpu.iter().flat_map(|limit| ["--max-memory", limit]).collect();
    let context = [&["--context", "512", "--json"][..], &limits].concat();
    let logits = [&["logits", folder, "--ids", IDS][..], &context].concat();

    let wanted = json(Command::new(binary).args(&logits))?;
    drop_cached_files(model);
    let plan = json(group.command(binary).args([&["plan", folder][..], &context].concat()))?;
    print_plan(&plan)?;
    let start = Instant::now();
    let found = json(group.command(binary).args(&logits))?;
    println!("8 tokens, loading included: {:.1} s", start.elapsed().as_secs_f64());
    if found["argmax"] != wanted["argmax"] {
        return Err(format!("{} in the group, {} outside", found["argmax"], wanted["argmax"]));
    }
    let bench = [
        &["bench", folder, "--prefill", "64", "--decode-at", "0", "--tokens", "8", "--repeats", "1"],
        &context[2..],
    ]
    .concat();
    let rows = json(group.command(binary).args(&bench))?;
    for row in rows["rows"].as_array().into_iter().flatten() {
        println!("{row}");
    }
    let kills = group.oom_kills()?;
    println!("the same tokens as outside; the group held {:?} bytes at most, oom_kill {kills}", group.peak());
    if kills == 0 { Ok(()) } else { Err(format!("{kills} processes were killed for want of memory")) }
}

/// A limit for each GPU that keeps the model off it.
fn without_gpus(report: &Value) -> Vec<String> {
    let devices = report["devices"].as_array().into_iter().flatten();
    let names = devices.filter_map(|device| device["device"].as_str()).filter(|name| *name != "cpu");
    names.map(|name| format!("{name}=0")).collect()
}

/// Says what the plan puts where; an error if nothing is on the disk.
fn print_plan(plan: &Value) -> Result<(), String> {
    let layers = plan["layers"].as_array().ok_or("a plan without layers")?;
    for device in plan["devices"].as_array().into_iter().flatten() {
        let blocks = layers.iter().filter(|layer| layer["device"] == device["device"]).count();
        let (name, held, mapped) = (&device["device"], &device["planned_bytes"], &device["mapped_bytes"]);
        println!("{name}: {blocks} blocks, {held} bytes of memory, {mapped} bytes in files");
    }
    match layers.iter().any(|layer| layer["device"] == "disk") {
        true => Ok(()),
        false => Err(format!("nothing was planned to the disk: {plan}")),
    }
}

/// What a command printed.
fn json(command: &mut Command) -> Result<Value, String> {
    let line = format!("{command:?}");
    let output = command.stderr(Stdio::inherit()).output().map_err(|error| format!("{line}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{line} failed: {}", output.status));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| format!("{line}: {error}"))
}
