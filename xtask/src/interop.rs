//! halfbyte against real transformers and bitsandbytes: `tests/interop`.

use crate::{cargo, python};
use std::path::PathBuf;
use std::process::Command;

/// Makes the virtual environment and, unless it is only to `install`, builds the command, if it is not there as
/// `halfbyte`, and runs the check. With `if_available` an environment that cannot be made (no network, no Python) is
/// said aloud and no failure; what the check finds always is.
pub fn run(halfbyte: Option<PathBuf>, install: bool, if_available: bool) -> Result<(), String> {
    let (root, target) = (python::root(), python::target());
    let python =
        match python::environment(&root.join("tests/interop/requirements.txt"), &target.join("interop"), 8) {
            Ok(python) => python,
            Err(error) if if_available => {
                println!("SKIPPED: the comparison with transformers and bitsandbytes: {error}");
                return Ok(());
            }
            Err(error) => return Err(error),
        };
    if install {
        return Ok(());
    }
    let halfbyte = match halfbyte {
        Some(halfbyte) => halfbyte,
        None => cargo::build_release()?,
    };
    cargo::run(
        Command::new(python)
            .arg(root.join("tests/interop/check.py"))
            .arg(halfbyte)
            .arg(root.join("tests/fixtures")),
    )
}
