//! Virtual environments under target/.

use crate::cargo;
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The workspace.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Where cargo builds.
pub fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The Python of a virtual environment with these requirements; installed once for each version of them.
pub fn environment(requirements: &Path, dir: &Path) -> Result<PathBuf, String> {
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
    // Bytecode is made of what is imported: of all it takes a minute.
    let install = ["-m", "pip", "install", "--quiet", "--no-compile", "-r"];
    cargo::run(Command::new(&python).args(install).arg(requirements))?;
    std::fs::write(&installed, wanted).map_err(|error| format!("{}: {error}", installed.display()))?;
    Ok(python)
}
