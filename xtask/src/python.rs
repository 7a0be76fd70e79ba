//! Virtual environments under target/.

use crate::cargo;
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What building the workspace's tests takes, in gigabytes.
const BUILDING: u64 = 6;

/// The workspace.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Where cargo builds.
pub fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The Python of a virtual environment with these requirements, of `gigabytes` with the wheels they come in; installed
/// once for each version of them, and only where that leaves room to build.
pub fn environment(requirements: &Path, dir: &Path, gigabytes: u64) -> Result<PathBuf, String> {
    let wanted =
        std::fs::read(requirements).map_err(|error| format!("{}: {error}", requirements.display()))?;
    let python = dir.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
    let installed = dir.join("installed.txt");
    if std::fs::read(&installed).is_ok_and(|found| found == wanted) {
        return Ok(python);
    }
    let needed = (gigabytes + BUILDING) * 1_000_000_000;
    if let Some(left) = free_space(dir).filter(|left| *left < needed) {
        return Err(format!(
            "{} needs {gigabytes} GB in {}, and building {BUILDING} GB more: its disk has {:.1} GB left",
            requirements.display(),
            dir.display(),
            left as f64 / 1e9
        ));
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

/// Bytes that may still be written where `path` will be. `None` where the system does not tell.
fn free_space(path: &Path) -> Option<u64> {
    let path = std::path::absolute(path).ok()?;
    let there = path.ancestors().find(|path| path.exists())?;
    #[cfg(unix)]
    {
        let stat = rustix::fs::statvfs(there).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
    #[cfg(not(unix))]
    {
        let _ = there;
        None
    }
}
