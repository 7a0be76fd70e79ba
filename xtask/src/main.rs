//! What CI and people both call: `cargo xtask test`, `cargo xtask check`, and what measures: `cargo xtask bench`.

#![forbid(unsafe_code)]

mod adapter;
mod bench;
mod cargo;
mod cgroup;
mod cpu;
mod hub;
mod interop;
mod memory;
mod python;
mod shaders;
mod test_files;

use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Development tasks of halfbyte")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Make sure that a WebGPU adapter exists, then run every test.
    Test {
        /// Passed on to `cargo test`, as in `-- -p halfbyte-quant`.
        #[arg(last = true)]
        rest: Vec<String>,
    },
    /// Compare with real transformers and bitsandbytes, in a virtual environment under target/.
    Interop {
        /// A `halfbyte` that is there already, in place of a release build.
        #[arg(long, value_name = "BINARY")]
        halfbyte: Option<PathBuf>,
        /// Only make the environment.
        #[arg(long)]
        install: bool,
        /// Where the Python packages cannot be had, say so and succeed.
        #[arg(long)]
        if_available: bool,
    },
    /// Every shader variant: static account, naga's backends, and Tint, which npm installs under target/.
    Shaders {
        /// Only Tint: the rest are tests, which `test` runs too.
        #[arg(long)]
        tint: bool,
        /// Where node or its package cannot be had, say so and succeed.
        #[arg(long)]
        if_available: bool,
    },
    /// The conformance table and the model families on every set of CPU kernels; Arm's under an emulator.
    Cpu {
        /// Only these: `avx512`, `avx2`, `neon`, `portable` or `scalar`.
        path: Option<String>,
    },
    /// Measure the speed of a release build, alone or in turns with another build or with llama.cpp.
    Bench(Box<bench::BenchArgs>),
    /// Serve a directory of models as the Hugging Face Hub would; `HF_ENDPOINT` points any command at it.
    Hub(hub::Args),
    /// Run Llama-2-7B in a control group of 2 GiB: from the disk, without being killed.
    Memory {
        /// Leave the model's 4-bit form, 3.6 GiB under target/, for the next time.
        #[arg(long)]
        keep: bool,
    },
    /// The burn module, whose dependencies only this compiles.
    Burn,
    /// Formatting and clippy, warnings denied.
    Check,
}

fn main() -> ExitCode {
    let result = match Args::parse().task {
        Task::Test { rest } => test(&rest),
        Task::Interop { halfbyte, install, if_available } => interop::run(halfbyte, install, if_available),
        Task::Shaders { tint, if_available } => shaders::run(tint, if_available),
        Task::Cpu { path } => cpu::test(path.as_deref()),
        Task::Bench(args) => bench::run(&args),
        Task::Hub(args) => hub::run(&args),
        Task::Memory { keep } => memory::run(keep),
        Task::Burn => cargo::burn(),
        Task::Check => cargo::check(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

/// All tests, or those that `selection` selects, once there is an adapter.
fn test(selection: &[String]) -> Result<(), String> {
    if !selection.is_empty() {
        adapter::ensure(&cargo::build()?)?;
        return cargo::test_some(selection);
    }
    let (halfbyte, files) = cargo::build_tests()?;
    adapter::ensure(&halfbyte)?;
    cargo::test(&files)
}
