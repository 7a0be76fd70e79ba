//! The Q4_0 file for llama.cpp.

use crate::{cargo, python};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The file of a shape, made by `benches/make_gguf.py` when it is first needed.
pub fn file(shape: &str, head: &str, own_python: Option<&Path>) -> Result<PathBuf, String> {
    let dir = python::target().join("bench");
    let path = dir.join(format!("{shape}-{head}.gguf"));
    if path.is_file() {
        return Ok(path);
    }
    std::fs::create_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let benches = python::root().join("benches");
    let python = match own_python {
        Some(python) => python.to_owned(),
        None => python::environment(&benches.join("requirements.txt"), &dir.join("python"), 1)?,
    };
    let part = path.with_extension("part");
    let script = benches.join("make_gguf.py");
    cargo::run(Command::new(python).arg(script).arg(shape).arg(&part).args(["--head", head]))?;
    std::fs::rename(&part, &path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(path)
}
