//! Memory that is really not there: an address space of any size ends in a text or in one clear line.

#![cfg(target_os = "linux")]

mod command;

use command::{Outcome, finish};
use std::process::{Command, Stdio};

/// The command under `ulimit -v`, in MiB.
fn limited(mebibytes: u64, args: &[&str]) -> Outcome {
    let mut shell = Command::new("sh");
    // Backtraces are on: an error must not show one.
    shell.args(["-c", "ulimit -c 0 && ulimit -v \"$0\" && exec \"$@\"", &(mebibytes << 10).to_string()]);
    shell
        .arg(env!("CARGO_BIN_EXE_halfbyte"))
        .args(args)
        .env("RUST_BACKTRACE", "1")
        .env_remove("HALFBYTE_LOG");
    shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let outcome = finish(args, shell.spawn().unwrap());
    Outcome { line: format!("ulimit -v {mebibytes} MiB; {}", outcome.line), ..outcome }
}

/// Runs under each limit: each ends in the text, or refused in one line. The limits, in MiB, that sufficed.
fn sweep(limits: impl Iterator<Item = u64>, args: &[&str]) -> Vec<u64> {
    let wanted = command::halfbyte(args).ok().stdout;
    let (mut enough, mut refused, mut not_started) = (Vec::new(), 0, 0);
    for limit in limits {
        // Below some size the system cannot even load the program: nothing of ours has run.
        if limited(limit, &["--version"]).code != Some(0) {
            not_started += 1;
            continue;
        }
        let outcome = limited(limit, args);
        if outcome.code == Some(0) {
            assert_eq!(outcome.stdout, wanted, "{}", outcome.line);
            enough.push(limit);
        } else {
            outcome.refused();
            refused += 1;
        }
    }
    println!(
        "{args:?}: {} texts under {enough:?} MiB, {refused} refusals, {not_started} not started",
        enough.len()
    );
    assert!(refused > 0);
    enough
}

/// In float32: the text is to be the same wherever its layers end up.
const RUN: [&str; 11] = [
    "run",
    "--prompt",
    "Once there was",
    "-n",
    "8",
    "--context",
    "128",
    "--compute-dtype",
    "float32",
    "--kv-cache",
    "f32",
];

#[test]
fn any_address_space_ends_in_a_text_or_in_one_line() {
    let limits = (8..120).step_by(4).chain((120..600).step_by(40)).chain([700, 900, 1200, 2000, 4000]);
    let enough = sweep(limits, &[&RUN[..], &["--device-map", "cpu"]].concat());
    // From a certain size on it is always enough.
    assert!(enough.contains(&600) || enough.contains(&700), "{enough:?}");
    assert!(enough.ends_with(&[700, 900, 1200, 2000, 4000]), "{enough:?}");
}

#[test]
#[cfg(feature = "wgpu")]
fn any_address_space_for_a_gpu_too() {
    let limits = [64, 128, 256, 400, 600, 700, 800, 900, 1000, 1200, 1500, 1700, 2000, 3000, 5000];
    let options = ["--device-map", "sequential", "--max-memory", "wgpu:0=1GiB"];
    let enough = sweep(limits.into_iter(), &[&RUN[..], &options].concat());
    assert!(enough.ends_with(&[3000, 5000]), "{enough:?}");
}
