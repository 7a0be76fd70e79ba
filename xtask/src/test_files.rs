//! Every file of tests, two at a time. Each has stretches in which one thread works alone (a driver's compiler, a weight
//! being drawn), and cargo runs one file after the other: half of a small machine would wait.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// How many at once: each runs its own tests on all cores.
const AT_ONCE: usize = 2;

/// A file of tests, compiled.
pub struct TestFile {
    /// The package and the file, as in `halfbyte-cpu tests/shapes.rs`.
    name: String,
    executable: PathBuf,
    /// The package's, which is where its tests run.
    folder: PathBuf,
}

/// What `cargo test --no-run --message-format json` has compiled.
pub fn listed(messages: &str) -> Result<Vec<TestFile>, String> {
    let mut files = Vec::new();
    for line in messages.lines() {
        let message: Value =
            serde_json::from_str(line).map_err(|error| format!("a message of cargo's: {error}"))?;
        let path = |value: &Value| value.as_str().map(PathBuf::from);
        let (Some(executable), Some(manifest), Some(source), Some(true)) = (
            path(&message["executable"]),
            path(&message["manifest_path"]),
            path(&message["target"]["src_path"]),
            message["profile"]["test"].as_bool(),
        ) else {
            continue;
        };
        let folder = manifest.parent().unwrap_or(Path::new(".")).to_owned();
        let package = package(message["package_id"].as_str().unwrap_or_default());
        let source = source.strip_prefix(&folder).unwrap_or(&source).display().to_string();
        files.push(TestFile { name: format!("{package} {source}"), executable, folder });
    }
    // The longest first: what comes last has nothing beside it.
    files.sort_by_key(|file| !file.name.ends_with("conformance.rs"));
    if files.is_empty() { Err("cargo has compiled no tests".into()) } else { Ok(files) }
}

/// The name in a package's identifier: `path+file:///halfbyte/crates/cpu#halfbyte-cpu@0.1.0`, or, where the folder has the
/// package's name, `path+file:///halfbyte/xtask#0.1.0`.
fn package(id: &str) -> &str {
    let (path, version) = id.rsplit_once('#').unwrap_or((id, ""));
    match version.split_once('@') {
        Some((name, _)) => name,
        None => path.rsplit('/').next().unwrap_or(path),
    }
}

/// Runs all `files`, each as `prepare` has it, and prints what they say, file by file. What fails is an error that names
/// the files.
pub fn run(files: &[TestFile], prepare: impl Fn(&mut Command) + Sync) -> Result<(), String> {
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(Vec::new());
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let begin = Instant::now();
                    let (passed, said) = file.run(&prepare);
                    // Held while it prints.
                    let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                    println!("{}, {:.1} s\n{said}", file.name, begin.elapsed().as_secs_f64());
                    if let Err(why) = passed {
                        failed.push(format!("{}: {why}", file.name));
                    }
                }
            });
        }
    });
    println!("{} files of tests in {:.0} s", files.len(), start.elapsed().as_secs_f64());
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    if failed.is_empty() { Ok(()) } else { Err(format!("tests failed:\n{}", failed.join("\n"))) }
}

impl TestFile {
    /// Runs it. Returns whether it passed, with the reason if not, and what it says.
    fn run(&self, prepare: &impl Fn(&mut Command)) -> (Result<(), String>, String) {
        let mut command = Command::new(&self.executable);
        // As cargo has them.
        command.current_dir(&self.folder).env("CARGO_MANIFEST_DIR", &self.folder);
        prepare(&mut command);
        match command.stdin(Stdio::null()).output() {
            Ok(output) => {
                let said =
                    [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
                let passed = if output.status.success() { Ok(()) } else { Err(output.status.to_string()) };
                (passed, said.concat())
            }
            Err(error) => (Err(format!("could not be started: {error}")), String::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_files_are_read_from_cargos_messages() {
        let of = |test: bool, executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","package_id":"path+file:///half/crates/cpu#halfbyte-cpu@0.1.0",
                "manifest_path":"/half/crates/cpu/Cargo.toml","target":{{"src_path":"/half/crates/cpu/tests/shapes.rs"}},
                "profile":{{"test":{test}}},"executable":{executable}}}"#
            )
            .replace('\n', "")
        };
        let messages = [of(true, "\"/t/shapes\""), of(false, "\"/t/halfbyte\""), of(true, "null")].join("\n");
        let files = listed(&messages).unwrap();
        assert_eq!(files.len(), 1);
        assert_eq!(files[0].name, "halfbyte-cpu tests/shapes.rs");
        assert_eq!(files[0].folder, Path::new("/half/crates/cpu"));
        assert!(listed("no message").is_err() && listed("").is_err());
    }

    #[test]
    fn packages_are_named() {
        assert_eq!(package("path+file:///half/crates/cpu#halfbyte-cpu@0.1.0"), "halfbyte-cpu");
        assert_eq!(package("path+file:///half/xtask#0.1.0"), "xtask");
    }

    #[test]
    #[cfg(unix)]
    fn what_fails_is_named() {
        let file = |executable: &str| TestFile {
            name: format!("halfbyte {executable}"),
            executable: executable.into(),
            folder: std::env::current_dir().unwrap(),
        };
        let failed = run(&[file("true"), file("false"), file("no such file")], |_| {}).unwrap_err();
        assert!(failed.contains("halfbyte false: exit status: 1"), "{failed}");
        assert!(failed.contains("no such file: could not be started"), "{failed}");
        assert!(!failed.contains("halfbyte true"), "{failed}");
    }
}
