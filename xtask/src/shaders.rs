//! Every shader variant through naga and, as a second implementation of WGSL, through Tint.

use crate::{cargo, python};
use halfbyte_shaders::Variant;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Shaders that Tint must refuse: the check can fail.
const REFUSED: [(&str, &str); 2] = [
    (
        "a barrier that not all threads reach",
        "@compute @workgroup_size(64)
fn main(@builtin(local_invocation_index) thread: u32) {
    if (thread < 32u) {
        workgroupBarrier();
    }
}
",
    ),
    (
        "more workgroup memory than the default limit",
        "var<workgroup> much: array<vec4<f32>, 1025>;

@compute @workgroup_size(64)
fn main(@builtin(local_invocation_index) thread: u32) {
    much[thread] = vec4<f32>();
}
",
    ),
];

/// The static account and naga's backends, unless only `tint` is wanted, then Tint. With `if_available` a Tint that cannot be had (no node,
/// no npm, no network) is said aloud and no failure; what it finds always is.
pub fn run(tint: bool, if_available: bool) -> Result<(), String> {
    if !tint {
        cargo::run(cargo::command().args(["test", "--quiet", "--package", "halfbyte-shaders"]))?;
    }
    let dir = python::target().join("tint");
    if let Err(error) = install(&dir) {
        return absent(error, if_available);
    }
    let variants = Variant::all();
    let list = dir.join("shaders.json");
    write(&variants, &list)?;
    let status = match Command::new("node").current_dir(&dir).arg("validate.mjs").arg(&list).status() {
        Ok(status) => status,
        Err(error) => return absent(format!("node could not be started: {error}"), if_available),
    };
    match status.code() {
        Some(0) => {
            println!("Tint accepts all {} variants, and refuses {} mutants", variants.len(), REFUSED.len());
            Ok(())
        }
        Some(2) => absent("the package webgpu does not run here".into(), if_available),
        _ => Err("Tint and halfbyte disagree about a shader".into()),
    }
}

fn absent(error: String, if_available: bool) -> Result<(), String> {
    if !if_available {
        return Err(error);
    }
    println!("SKIPPED: shaders through Tint: {error}");
    Ok(())
}

/// Installs Dawn for node under target/, once for each version.
fn install(dir: &Path) -> Result<(), String> {
    let source = python::root().join("shaders/tint");
    let read = |path: PathBuf| fs::read(&path).map_err(|error| format!("{}: {error}", path.display()));
    let write = |path: PathBuf, bytes: &[u8]| {
        fs::write(&path, bytes).map_err(|error| format!("{}: {error}", path.display()))
    };
    let package = read(source.join("package.json"))?;
    fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    write(dir.join("validate.mjs"), &read(source.join("validate.mjs"))?)?;
    let installed = dir.join("installed.json");
    if fs::read(&installed).is_ok_and(|found| found == package) {
        return Ok(());
    }
    println!("installing {} into {}", source.join("package.json").display(), dir.display());
    write(dir.join("package.json"), &package)?;
    let npm = if cfg!(windows) { "npm.cmd" } else { "npm" };
    let arguments = ["install", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"];
    cargo::run(Command::new(npm).current_dir(dir).args(arguments))?;
    write(installed, &package)
}

/// What `validate.mjs` reads.
fn write(variants: &[Variant], path: &Path) -> Result<(), String> {
    let mut list = Vec::new();
    for variant in variants {
        let code = variant.portable_wgsl().map_err(|error| error.to_string())?;
        list.push(json!({ "name": variant.name(), "code": code, "valid": true }));
    }
    for (name, code) in REFUSED {
        list.push(json!({ "name": name, "code": code, "valid": false }));
    }
    let text = serde_json::to_string(&list).map_err(|error| error.to_string())?;
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}
