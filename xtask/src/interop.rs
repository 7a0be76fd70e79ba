//! halfbyte against real transformers and bitsandbytes: `tests/interop`.

use crate::{cargo, python};
use std::process::Command;

/// Makes the virtual environment, builds the command and runs the check. With `if_available` an environment
/// that cannot be made (no network, no Python) is said aloud and no failure; what the check finds always is.
pub fn run(if_available: bool) -> Result<(), String> {
    let (root, target) = (python::root(), python::target());
    let python =
        match python::environment(&root.join("tests/interop/requirements.txt"), &target.join("interop")) {
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
