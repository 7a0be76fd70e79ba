//! `cargo xtask cpu`: the model families on every set of CPU kernels, each forced by the environment variable.

use crate::cargo::{command, run};
use std::process::Command;

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

/// Runs the fixtures of all families on every path, and the kernels' own tests for Arm under an emulator where there
/// is one. What cannot be run is said aloud.
pub fn test() -> Result<(), String> {
    for path in paths() {
        println!("kernels: {path}");
        let families = ["test", "-p", "halfbyte-inference", "--test", "families", "--test", "encoders"];
        run(command().args(families).env("HALFBYTE_CPU", path))?;
    }
    let missing = missing();
    if !missing.is_empty() {
        println!("kernels: neon was not run: this machine lacks {}", missing.join(", "));
        return Ok(());
    }
    println!("kernels: neon, emulated");
    let (target, linker, emulator) = ARM;
    let variable = target.to_uppercase().replace('-', "_");
    let emulated = |package: &str, tests: &[&str]| {
        let mut cargo = command();
        cargo.args(["test", "--target", target, "-p", package]);
        tests.iter().for_each(|test| {
            cargo.args(["--test", test]);
        });
        cargo.env(format!("CARGO_TARGET_{variable}_LINKER"), linker);
        cargo.env(format!("CARGO_TARGET_{variable}_RUNNER"), format!("{emulator} -L /usr/aarch64-linux-gnu"));
        // Its loops are long for an emulator: the tests' own paths are walked, not every one of them.
        run(cargo.env("HALFBYTE_CPU", "neon"))
    };
    emulated("halfbyte-cpu", &["conformance", "shapes"])?;
    emulated("halfbyte-inference", &["families"])
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
