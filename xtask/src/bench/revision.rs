//! Builds of the command: of the working tree, and of any git revision.

use crate::{cargo, python};
use std::path::PathBuf;
use std::process::Command;

/// The release build of `revision`, in a work tree of its own under target/, kept for the next time.
pub fn build(revision: &str) -> Result<PathBuf, String> {
    let commit = commit(revision)?;
    let dir = python::target().join("bench").join(&commit[..12]);
    let (tree, target) = (dir.join("tree"), dir.join("target"));
    let built = cargo::binary(&target, "release");
    if built.is_file() {
        return Ok(built);
    }
    if !tree.is_dir() {
        let mut git = Command::new("git");
        git.current_dir(python::root()).args(["worktree", "add", "--detach"]).arg(&tree).arg(&commit);
        cargo::run(&mut git)?;
    }
    let mut build = cargo::command();
    build.current_dir(&tree).env("CARGO_TARGET_DIR", &target);
    cargo::run(build.args(["build", "--release", "-p", "halfbyte-cli"]))?;
    Ok(built)
}

fn commit(revision: &str) -> Result<String, String> {
    let wanted = format!("{revision}^{{commit}}");
    let output = Command::new("git")
        .current_dir(python::root())
        .args(["rev-parse", "--verify", "--quiet", "--end-of-options", &wanted])
        .output()
        .map_err(|error| format!("git could not be started: {error}"))?;
    let commit = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !output.status.success() || commit.len() < 12 {
        return Err(format!("--compare {revision}: neither llama-bench, nor a file, nor a git revision"));
    }
    Ok(commit)
}
