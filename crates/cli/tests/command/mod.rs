//! The command as a stranger calls it: arguments and stdin in; exit code, stdout and stderr out.

#![allow(dead_code, reason = "each test uses a part of it")]

use serde_json::Value;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// No command of these tests takes so long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(100);

/// How a command ended.
#[derive(Debug)]
pub struct Outcome {
    pub line: String,
    /// `None` if a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// The binary, its environment free of what could change it. Backtraces are on: an error must not show one.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_halfbyte"));
    command.args(args).env("RUST_BACKTRACE", "1").env_remove("HALFBYTE_LOG").env_remove("HF_TOKEN");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs it with nothing on stdin.
pub fn halfbyte(args: &[&str]) -> Outcome {
    finish(args, command(args).spawn().unwrap())
}

/// Runs it with `input` on stdin.
pub fn halfbyte_with(args: &[&str], input: &[u8]) -> Outcome {
    let mut child = command(args).stdin(Stdio::piped()).spawn().unwrap();
    // A command that refuses early does not read: a closed pipe is no failure of the test.
    let _ = child.stdin.take().unwrap().write_all(input);
    finish(args, child)
}

/// Waits for the end; a command that hangs is killed and fails the test.
pub fn finish(args: &[&str], mut child: Child) -> Outcome {
    let stdout = child.stdout.take().map(read_in_background);
    let stderr = child.stderr.take().map(read_in_background);
    let line = format!("halfbyte {}", args.join(" "));
    let code = wait(&mut child).unwrap_or_else(|| panic!("{line} hangs"));
    let text = |reader: Option<std::thread::JoinHandle<Vec<u8>>>| {
        reader.map_or_else(String::new, |reader| {
            String::from_utf8(reader.join().unwrap()).expect("output is UTF-8")
        })
    };
    Outcome { line, code, stdout: text(stdout), stderr: text(stderr) }
}

/// The exit code, or `None` after a kill for taking too long. A signal's end is `Some(None)`.
pub fn wait(child: &mut Child) -> Option<Option<i32>> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status.code());
        }
        if start.elapsed() > PATIENCE {
            child.kill().unwrap();
            child.wait().unwrap();
            return None;
        }
        std::thread::sleep(Duration::from_millis(3));
    }
}

fn read_in_background(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

impl Outcome {
    /// It succeeded.
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{}\n{}", self.line, self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }

    /// Stdout is one JSON object on one line and nothing else.
    pub fn json(&self) -> Value {
        assert_eq!(self.stdout.lines().count(), 1, "{}: {}", self.line, self.stdout);
        let value: Value = serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{}: {error}: {}", self.line, self.stdout));
        assert!(value.is_object(), "{}", self.stdout);
        value
    }

    /// It was refused: exit code 1, one line on stderr that begins `error: `, which is returned.
    pub fn refused(&self) -> &str {
        assert_eq!(self.code, Some(1), "{}\nstdout: {}\nstderr: {}", self.line, self.stdout, self.stderr);
        let errors = self.stderr.lines().filter(|line| !line.starts_with("note: ")).collect::<Vec<_>>();
        assert_eq!(errors.len(), 1, "{}\n{}", self.line, self.stderr);
        assert!(errors[0].starts_with("error: "), "{}\n{}", self.line, self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}\n{}", self.line, self.stderr);
        let printable = |c: char| !c.is_control();
        assert!(errors[0].chars().all(printable), "{}\n{:?}", self.line, self.stderr);
        errors[0]
    }

    /// It was refused, nothing went to stdout, and the line has all these parts.
    pub fn refused_with(&self, parts: &[&str]) {
        let line = self.refused();
        assert_eq!(self.stdout, "", "{}", self.line);
        for part in parts {
            assert!(line.contains(part), "{}\n{line}\nlacks {part:?}", self.line);
        }
    }

    /// The arguments do not parse: exit code 2, and the message names `part`.
    pub fn misused(&self, part: &str) {
        assert_eq!(self.code, Some(2), "{}\n{}", self.line, self.stderr);
        assert_eq!(self.stdout, "");
        assert!(self.stderr.starts_with("error: ") && self.stderr.contains(part), "{}", self.stderr);
    }
}

/// A kind of JSON value.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    Text,
    /// A whole number of at least 0.
    Count,
    /// A number of at least 0.
    Number,
    Flag,
    /// A list of objects.
    Rows,
    /// A list of whole numbers.
    Counts,
    /// A list of texts.
    Texts,
    Object,
    /// Absent, `null`, or a number.
    MaybeNumber,
}

/// Each field is there and of its kind.
pub fn has_fields(value: &Value, fields: &[(&str, Kind)]) {
    let all = |value: &Value, fits: fn(&Value) -> bool| {
        value.as_array().is_some_and(|items| items.iter().all(fits))
    };
    for (name, kind) in fields {
        let field = &value[*name];
        let right = match kind {
            Kind::Text => field.is_string(),
            Kind::Count => field.is_u64(),
            Kind::Number => field.as_f64().is_some_and(|number| number >= 0.0),
            Kind::Flag => field.is_boolean(),
            Kind::Rows => all(field, Value::is_object),
            Kind::Counts => all(field, Value::is_u64),
            Kind::Texts => all(field, Value::is_string),
            Kind::Object => field.is_object(),
            Kind::MaybeNumber => field.is_null() || field.as_f64().is_some(),
        };
        assert!(right, "{name} is {field}, not {kind:?}, in {value}");
    }
}

/// A folder of the repository.
pub fn repository(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(folder)
}

/// A fixture model's folder.
pub fn fixture(model: &str) -> String {
    let folder = repository("tests/fixtures/models").join(model).canonicalize().unwrap();
    folder.to_str().unwrap().to_owned()
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A copy of a model, to be changed.
pub struct Copy {
    folder: tempfile::TempDir,
}

impl Copy {
    /// Copies `tests/fixtures/models/…`, `tests/fixtures/bnb_ckpt/…` or `models/…`.
    pub fn of(model: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(repository(model)).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
        Self { folder }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn name(&self) -> &str {
        text(self.folder.path())
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.file(name)).unwrap()
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.file(name), bytes).unwrap();
    }

    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.file(name)).unwrap();
    }

    /// Changes a JSON file.
    pub fn edit(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut json = serde_json::from_slice(&self.read(name)).unwrap();
        change(&mut json);
        self.write(name, json.to_string());
    }

    /// Changes config.json's `key`.
    pub fn configure(&self, key: &str, value: Value) {
        self.edit("config.json", |json| json[key] = value);
    }

    /// Changes the header of model.safetensors; the data stays.
    pub fn edit_header(&self, change: impl FnOnce(&mut Value)) {
        let (mut header, data) = self.safetensors();
        change(&mut header);
        self.write_safetensors(&header, &data);
    }

    /// Header and data of model.safetensors.
    pub fn safetensors(&self) -> (Value, Vec<u8>) {
        let bytes = self.read("model.safetensors");
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        (serde_json::from_slice(&bytes[8..8 + length]).unwrap(), bytes[8 + length..].to_vec())
    }

    /// Writes model.safetensors.
    pub fn write_safetensors(&self, header: &Value, data: &[u8]) {
        let header = header.to_string();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(data);
        self.write("model.safetensors", bytes);
    }

    /// Overwrites the beginning of a tensor's data.
    pub fn poke(&self, tensor: &str, with: &[u8]) {
        let (header, mut data) = self.safetensors();
        let begin = header[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
        data[begin..begin + with.len()].copy_from_slice(with);
        self.write_safetensors(&header, &data);
    }
}
