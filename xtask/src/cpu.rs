//! `cargo xtask cpu`: the conformance table and the model families on every set of CPU kernels, each forced by the
//! environment variable.

use crate::cargo::{command, run};
use std::process::Command;
use std::time::Instant;

/// The target whose kernels an emulator runs here, its linker and the emulator, from Debian's `gcc-aarch64-linux-gnu`,
/// `libc6-dev-arm64-cross` and `qemu-user`.
const ARM: (&str, &str, &str) = ("aarch64-unknown-linux-gnu", "aarch64-linux-gnu-gcc", "qemu-aarch64");

/// Paths that this processor can run.
fn paths() -> Vec<&'static str> {
    let mut paths = vec!["scalar", "portable"];
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
        {
            paths.push("avx2");
        }
        if is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512dq") {
            paths.push("avx512");
        }
    }
    #[cfg(target_arch = "aarch64")]
    paths.push("neon");
    paths
}

/// Tests that walk the paths, or the one that the environment variable names: by package, test and filter.
const WALKS: [(&str, &str, &str); 4] = [
    ("halfbyte-cpu", "conformance", "passes"),
    ("halfbyte-cpu", "shapes", ""),
    ("halfbyte-inference", "cpu_paths", ""),
    ("halfbyte-inference", "fast_arithmetic", "stories"),
];

/// Runs the conformance table and the fixtures of all families on every path, each alone, or on `only` one; then Arm's
/// under an emulator where there is one. What cannot be run is said aloud.
pub fn test(only: Option<&str>) -> Result<(), String> {
    let wanted = |path: &str| only.is_none_or(|only| only == path);
    let native = paths();
    if let Some(only) = only.filter(|only| !native.contains(only) && *only != "neon") {
        return Err(format!("{only} is none of {}, neon", native.join(", ")));
    }
    for path in native.into_iter().filter(|path| wanted(path)) {
        for walk in WALKS {
            // The scalar path is what the kernels' own tests compare with.
            if path != "scalar" || walk.1 == "cpu_paths" {
                walked(walk, path, "", command().env("HALFBYTE_CPU", path))?;
            }
        }
    }
    if !wanted("neon") || cfg!(target_arch = "aarch64") {
        return Ok(());
    }
    let missing = missing();
    if !missing.is_empty() {
        let why = format!("neon was not run: this machine lacks {}", missing.join(", "));
        if only.is_some() {
            // Asked for by name, it has to run.
            return Err(why);
        }
        println!("kernels: {why}");
        return Ok(());
    }
    let emulated = |walk, processor: &str| {
        let (target, linker, emulator) = ARM;
        let variable = target.to_uppercase().replace('-', "_");
        let mut cargo = command();
        cargo.env("HALFBYTE_CPU", "neon").env("CARGO_BUILD_TARGET", target);
        cargo.env(format!("CARGO_TARGET_{variable}_LINKER"), linker);
        let emulator = format!("{emulator} -cpu {processor} -L /usr/aarch64-linux-gnu");
        cargo.env(format!("CARGO_TARGET_{variable}_RUNNER"), emulator);
        walked(walk, "neon", processor, &mut cargo)
    };
    for walk in WALKS {
        emulated(walk, "max")?;
    }
    // A processor without the dot product of bytes has another kernel for fast arithmetic.
    emulated(WALKS[1], "cortex-a72")?;
    emulated(WALKS[2], "cortex-a72")
}

/// Runs one walk, and says how long it took.
fn walked(
    (package, test, filter): (&str, &str, &str),
    path: &str,
    processor: &str,
    cargo: &mut Command,
) -> Result<(), String> {
    println!("kernels: {path} {processor}: {package} {test} {filter}");
    let start = Instant::now();
    run(cargo.args(["test", "-p", package, "--test", test, filter]))?;
    println!("kernels: {path} {processor}: {package} {test} took {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// What the emulated tests need and is not here.
fn missing() -> Vec<String> {
    let (target, linker, emulator) = ARM;
    let answers = |program: &str, option: &str| {
        Command::new(program).arg(option).output().is_ok_and(|output| output.status.success())
    };
    let folder = Command::new("rustc").args(["--print", "target-libdir", "--target", target]).output();
    let folder = folder.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    let mut missing = Vec::new();
    if !folder.is_ok_and(|folder| std::path::Path::new(&folder).is_dir()) {
        missing.push(format!("Rust's library for {target}"));
    }
    for program in [linker, emulator] {
        if !answers(program, "--version") {
            missing.push(program.to_owned());
        }
    }
    missing
}
