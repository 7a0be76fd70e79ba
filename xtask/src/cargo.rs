//! Calls of cargo.

use crate::python;
use crate::test_files::{self, TestFile};
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

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

/// The whole workspace with CUDA, and with CUDA's kernels on a wgpu adapter. One choice of packages and features for
/// all tasks: with another cargo would compile the dependencies again.
const WHOLE: [&str; 3] = ["--workspace", "--features", "halfbyte/cube,halfbyte-cli/cuda"];

/// Compiles the `halfbyte` command. Returns its path.
pub fn build() -> Result<PathBuf, String> {
    run(command().args(["build", "--quiet", "--package", "halfbyte-cli"]))?;
    Ok(binary(&python::target(), "debug"))
}

/// Compiles every test of the workspace, and the `halfbyte` command with them. Returns the command's path, too.
pub fn build_tests() -> Result<(PathBuf, Vec<TestFile>), String> {
    let mut cargo = command();
    cargo.args(["test", "--no-run", "--message-format", "json-render-diagnostics"]).args(WHOLE);
    let output = cargo.stderr(Stdio::inherit()).output();
    let output = output.map_err(|error| format!("{cargo:?} could not be started: {error}"))?;
    if !output.status.success() {
        return Err(format!("{cargo:?} failed: {}", output.status));
    }
    let files = test_files::listed(&String::from_utf8_lossy(&output.stdout))?;
    Ok((binary(&python::target(), "debug"), files))
}

/// The `halfbyte` command as people get it. Returns its path.
pub fn build_release() -> Result<PathBuf, String> {
    run(command().current_dir(python::root()).args(["build", "--release", "--package", "halfbyte-cli"]))?;
    Ok(binary(&python::target(), "release"))
}

/// Where the command lies among what cargo builds.
pub fn binary(target: &Path, profile: &str) -> PathBuf {
    target.join(profile).join(format!("halfbyte{}", env::consts::EXE_SUFFIX))
}

/// Every test of the workspace: `files`, and those in the documentation.
pub fn test(files: &[TestFile]) -> Result<(), String> {
    let passed = test_files::run(files, test_environment);
    let mut cargo = command();
    test_environment(&mut cargo);
    let documented = run(cargo.args(["test", "--doc"]).args(WHOLE));
    passed.and(documented)
}

/// The tests that `selection` selects for cargo.
pub fn test_some(selection: &[String]) -> Result<(), String> {
    let mut cargo = command();
    test_environment(&mut cargo);
    run(cargo.arg("test").args(selection))
}

/// What tests are told by their environment.
fn test_environment(command: &mut Command) {
    // Where tests run beside each other a measured rate says nothing; those that need rates state them.
    command.env("HALFBYTE_RATES", "never");
    if env::var_os("XDG_RUNTIME_DIR").is_none() {
        // Without a desktop Mesa's device-select layer complains about each device that a test opens.
        command.env("NODEVICE_SELECT", "1");
    }
}

/// The tests of `crates/burn`, a workspace of its own, since burn is much to compile.
pub fn burn() -> Result<(), String> {
    let mut cargo = command();
    cargo.args(["test", "--manifest-path", "crates/burn/Cargo.toml", "--target-dir", "target/burn"]);
    test_environment(&mut cargo);
    run(&mut cargo)
}

/// Formatting and lints.
pub fn check() -> Result<(), String> {
    run(command().args(["fmt", "--all", "--check"]))?;
    run(command().args(["clippy", "--all-targets"]).args(WHOLE).args(["--", "-D", "warnings"]))
}
