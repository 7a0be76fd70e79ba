//! In a control group that is too small for a model, the model is planned to the disk and runs, and nothing is
//! killed. `cargo xtask memory` does the same with Llama-2-7B in 2 GiB.

#![cfg(target_os = "linux")]

#[path = "../../../xtask/src/cgroup.rs"]
mod cgroup;
mod command;

use cgroup::{Group, drop_cached_files};
use command::{finish, halfbyte};
use serde_json::Value;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

const MIB: u64 = 1 << 20;

#[test]
fn a_model_that_does_not_fit_its_cgroup_runs_from_the_disk() {
    let group = match Group::new("halfbyte-test", 128 * MIB) {
        Ok(group) => group,
        Err(why) => {
            // Past the capture of the test harness: a skip is to be seen.
            let line = format!("\nSKIPPED a_model_that_does_not_fit_its_cgroup_runs_from_the_disk: {why}\n");
            std::io::stderr().write_all(line.as_bytes()).unwrap();
            return;
        }
    };
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().to_str().unwrap();
    let model = "synthetic:llama-160m";
    let common = ["--ids", "5,17,300,2,88", "--context", "64", "--cache-dir", cache, "--json"];
    let arguments = |device_map| [&["logits", model, "--device-map", device_map], &common[..]].concat();
    // Its 4-bit form is made outside: that needs room for a whole embedding in 16 bits.
    let wanted = halfbyte(&arguments("cpu")).ok().json();
    assert_eq!(halfbyte(&arguments("disk")).ok().json()["argmax"], wanted["argmax"]);
    drop_cached_files(folder.path());

    let within = |arguments: &[&str]| {
        let mut command = group.command(Path::new(env!("CARGO_BIN_EXE_halfbyte")));
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        finish(arguments, command.spawn().unwrap())
    };
    // No GPU driver: only the CPU and the disk.
    let limits = ["--max-memory", "wgpu:0=0"];
    let auto = [&arguments("auto")[..], &limits].concat();
    let plan = ["plan", model, "--context", "64", "--cache-dir", cache, "--json"];
    let plan = within(&[&plan[..], &limits].concat()).ok().json();
    let on_disk = plan["layers"].as_array().unwrap().iter().filter(|layer| layer["device"] == "disk").count();
    assert!(plan["fits"] == Value::Bool(true) && on_disk > 0, "{plan}");
    let found = within(&auto).ok().json();
    assert_eq!(found["argmax"], wanted["argmax"]);
    // What a cache reads is no limit of memory, and memory is none of a disk.
    let bench = [
        "bench",
        "--shape",
        "llama-160m",
        "--prefill",
        "8",
        "--decode-at",
        "0",
        "--tokens",
        "2",
        "--repeats",
        "1",
    ];
    let bench = within(&[&bench[..], &common[2..], &limits].concat()).ok().json();
    for device in bench["devices"].as_array().unwrap() {
        assert_ne!(device["read_bandwidth"].is_null(), device["not_measured"].is_null(), "{device}");
        assert!(device["device"] != "disk" || device["read_bandwidth"].is_null(), "{device}");
    }
    let decode = bench["rows"].as_array().unwrap().last().unwrap();
    assert!(decode["read_rate"].as_f64() > Some(0.0) && decode["share_of_limit"].is_null(), "{decode}");
    assert_eq!(group.oom_kills(), Ok(0));
    println!("{on_disk} blocks on the disk; the group held {:?} bytes at most", group.peak());
}
