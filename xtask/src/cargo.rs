//! Calls of cargo.

use std::env;
use std::process::Command;

/// The cargo that runs this task.
pub fn command() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Runs `command`; its failure is an error that repeats the command line.
pub fn run(command: &mut Command) -> Result<(), String> {
    let line = format!("{command:?}");
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{line} failed: {status}")),
        Err(error) => Err(format!("{line} could not be started: {error}")),
    }
}

/// Every test of the workspace, or what `rest` selects.
pub fn test(rest: &[String]) -> Result<(), String> {
    let mut cargo = command();
    // Where tests run beside each other a measured rate says nothing; those that need rates state them.
    cargo.arg("test").env("HALFBYTE_RATES", "never");
    if env::var_os("XDG_RUNTIME_DIR").is_none() {
        // Without a desktop Mesa's device-select layer complains about each device that a test opens.
        cargo.env("NODEVICE_SELECT", "1");
    }
    if rest.is_empty() {
        // With CUDA, and with its kernels on a wgpu adapter, end to end.
        cargo.args(["--workspace", "--features", "halfbyte/cube,halfbyte-cli/cuda"]);
    }
    run(cargo.args(rest))
}

/// The tests of `crates/burn`, a workspace of its own, since burn is much to compile.
pub fn burn() -> Result<(), String> {
    let mut cargo = command();
    cargo.args(["test", "--manifest-path", "crates/burn/Cargo.toml", "--target-dir", "target/burn"]);
    if env::var_os("XDG_RUNTIME_DIR").is_none() {
        cargo.env("NODEVICE_SELECT", "1");
    }
    run(&mut cargo)
}

/// Formatting and lints.
pub fn check() -> Result<(), String> {
    run(command().args(["fmt", "--all", "--check"]))?;
    let clippy = ["clippy", "--workspace", "--all-targets", "--features", "halfbyte/cube,halfbyte-cli/cuda"];
    run(command().args(clippy).args(["--", "-D", "warnings"]))
}
