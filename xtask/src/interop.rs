//! halfbyte against real transformers and bitsandbytes: `tests/interop`.

use crate::cargo;
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Makes the virtual environment, builds the command and runs the check. With `if_available` an environment
/// that cannot be made (no network, no Python) is said aloud and no failure; what the check finds always is.
pub fn run(if_available: bool) -> Result<(), String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let python = match environment(&root.join("tests/interop/requirements.txt"), &target.join("interop")) {
        Ok(python) => python,
        Err(error) if if_available => {
            println!("SKIPPED: the comparison with transformers and bitsandbytes: {error}");
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    cargo::run(cargo::command().current_dir(&root).args(["build", "--release", "-p", "halfbyte-cli"]))?;
    let halfbyte = target.join("release").join(if cfg!(windows) { "halfbyte.exe" } else { "halfbyte" });
    cargo::run(
        Command::new(python)
            .arg(root.join("tests/interop/check.py"))
            .arg(halfbyte)
            .arg(root.join("tests/fixtures")),
    )
}

/// The Python of a virtual environment with these requirements; installed once for each version of them.
fn environment(requirements: &Path, dir: &Path) -> Result<PathBuf, String> {
    let wanted =
        std::fs::read(requirements).map_err(|error| format!("{}: {error}", requirements.display()))?;
    let python = dir.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
    let installed = dir.join("installed.txt");
    if std::fs::read(&installed).is_ok_and(|found| found == wanted) {
        return Ok(python);
    }
    println!("installing {} into {}", requirements.display(), dir.display());
    let system = if cfg!(windows) { "python" } else { "python3" };
    cargo::run(Command::new(system).args(["-m", "venv"]).arg(dir))?;
    cargo::run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "-r"]).arg(requirements))?;
    std::fs::write(&installed, wanted).map_err(|error| format!("{}: {error}", installed.display()))?;
    Ok(python)
}
