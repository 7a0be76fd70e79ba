//! What is measured in turns: a build of halfbyte, or llama.cpp's `llama-bench`.

use super::BenchArgs;
use super::report::{Figure, median};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// One of the things that are compared.
pub struct Side {
    name: String,
    kind: Kind,
}

enum Kind {
    Halfbyte(PathBuf),
    /// With the file that it measures.
    LlamaBench(PathBuf),
}

impl Side {
    /// The build at `path`.
    pub fn halfbyte(name: &str, path: PathBuf) -> Self {
        Self { name: name.to_owned(), kind: Kind::Halfbyte(path) }
    }

    /// The `llama-bench` on the PATH, on the GGUF file `file`.
    pub fn llama(file: PathBuf) -> Self {
        Self { name: "llama-bench".into(), kind: Kind::LlamaBench(file) }
    }

    /// How the report calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// One turn: each figure in tokens a second.
    pub fn measure(&self, args: &BenchArgs) -> Result<Vec<(Figure, f64)>, String> {
        let mut figures = Vec::new();
        for call in self.calls(args) {
            figures.extend(self.figures(args, &run(&call, args.threads)?)?);
        }
        Ok(figures)
    }

    /// What one turn runs, one after the other.
    pub fn calls(&self, args: &BenchArgs) -> Vec<Call> {
        match &self.kind {
            Kind::Halfbyte(path) => vec![halfbyte(path, args)],
            Kind::LlamaBench(file) => llama(file, args),
        }
    }

    /// What a call has printed.
    pub fn figures(&self, args: &BenchArgs, report: &Value) -> Result<Vec<(Figure, f64)>, String> {
        match &self.kind {
            Kind::Halfbyte(_) => halfbyte_figures(args, report),
            Kind::LlamaBench(_) => llama_figures(report),
        }
    }
}

/// A program and its arguments.
pub struct Call {
    program: String,
    args: Vec<String>,
}

fn list(numbers: &[usize]) -> String {
    numbers.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

fn halfbyte(path: &Path, args: &BenchArgs) -> Call {
    let mut rest = vec!["bench".to_owned(), "--shape".into(), args.shape.clone(), "--json".into()];
    rest.extend(["--device-map".into(), args.device_map.clone()]);
    rest.extend(["--prefill".into(), list(&args.prefill)]);
    // A build may have no way of decoding nothing: then its figures are passed over.
    let at = if args.tokens > 0 { args.decode_at.as_slice() } else { &[0] };
    rest.extend(["--decode-at".into(), list(at), "--tokens".into(), args.tokens.max(1).to_string()]);
    rest.extend(["--repeats".into(), args.repeats.max(1).to_string()]);
    rest.extend(args.rest.iter().cloned());
    Call { program: path.to_string_lossy().into_owned(), args: rest }
}

fn halfbyte_figures(args: &BenchArgs, report: &Value) -> Result<Vec<(Figure, f64)>, String> {
    let rows = report["rows"].as_array().ok_or("`halfbyte bench --json` printed no rows")?;
    let mut figures = Vec::new();
    for row in rows {
        if let (Some(tokens), Some(speed)) =
            (row["prefill_tokens"].as_u64(), row["prefill_tokens_per_second"].as_f64())
        {
            figures.push((Figure::Prefill(tokens as usize), speed));
        } else if let (Some(at), Some(speed), true) =
            (row["context"].as_u64(), row["decode_tokens_per_second"].as_f64(), args.tokens > 0)
        {
            figures.push((Figure::DecodeAt(at as usize), speed));
        }
    }
    Ok(figures)
}

fn llama(file: &Path, args: &BenchArgs) -> Vec<Call> {
    let threads = args.threads.or_else(|| std::thread::available_parallelism().ok().map(usize::from));
    let gpu = args.device_map != "cpu";
    // `-d` would put prompts behind a context too: prompts and decoding are two calls.
    let prefill: Vec<usize> = args.prefill.iter().copied().filter(|&tokens| tokens > 0).collect();
    let mut calls = Vec::new();
    if !prefill.is_empty() {
        calls.push((list(&prefill), "0".to_owned(), "0".to_owned()));
    }
    if args.tokens > 0 {
        calls.push(("0".to_owned(), args.tokens.to_string(), list(&args.decode_at)));
    }
    let call = |(prompts, tokens, depths): (String, String, String)| {
        let mut rest = vec!["-m".to_owned(), file.to_string_lossy().into_owned()];
        rest.extend(["-o", "json", "-r", &args.repeats.max(1).to_string()].map(str::to_owned));
        rest.extend(["-p", &prompts, "-n", &tokens, "-d", &depths].map(str::to_owned));
        rest.extend(["-ngl", if gpu { "99" } else { "0" }].map(str::to_owned));
        if let Some(threads) = threads {
            rest.extend(["-t".to_owned(), threads.to_string()]);
        }
        rest.extend(args.peer_arg.iter().cloned());
        Call { program: "llama-bench".into(), args: rest }
    };
    calls.into_iter().map(call).collect()
}

fn llama_figures(report: &Value) -> Result<Vec<(Figure, f64)>, String> {
    let rows = report.as_array().ok_or("`llama-bench -o json` printed no list")?;
    let mut figures = Vec::new();
    for row in rows {
        let field = |name: &str| row[name].as_u64().unwrap_or(0) as usize;
        let samples = row["samples_ts"].as_array().map(Vec::as_slice).unwrap_or_default();
        let samples: Vec<f64> = samples.iter().filter_map(Value::as_f64).collect();
        let figure = match field("n_prompt") {
            0 => Figure::DecodeAt(field("n_depth")),
            tokens => Figure::Prefill(tokens),
        };
        if let Some(speed) = median(&samples) {
            figures.push((figure, speed));
        }
    }
    Ok(figures)
}

/// Runs a program, bound to the first `cores` cores that this process may use, and parses its stdout.
fn run(call: &Call, cores: Option<usize>) -> Result<Value, String> {
    call.result(call.start(cores, Stdio::piped())?)
}

impl Call {
    /// Starts it. What goes to `stderr` must not wait for [`result`](Self::result) if that comes late: a pipe holds little.
    pub fn start(&self, cores: Option<usize>, stderr: Stdio) -> Result<Child, String> {
        let mut command = match cores {
            Some(count) => {
                let mut taskset = Command::new("taskset");
                taskset.args(["--cpu-list", &list(&first_cores(count)?), &self.program]);
                taskset
            }
            None => Command::new(&self.program),
        };
        command.args(&self.args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
        command.spawn().map_err(|error| format!("{} could not be started: {error}", self.program))
    }

    /// Waits for it and parses its stdout.
    pub fn result(&self, child: Child) -> Result<Value, String> {
        let program = &self.program;
        let output = child.wait_with_output().map_err(|error| format!("{program}: {error}"))?;
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            let last = errors.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
            return Err(format!("{program} {} failed: {}: {last}", self.args.join(" "), output.status));
        }
        serde_json::from_slice(&output.stdout).map_err(|error| format!("{program} printed no JSON: {error}"))
    }
}

/// The first `count` cores of this process, from the kernel's list, as in `0-3,8`.
fn first_cores(count: usize) -> Result<Vec<usize>, String> {
    let status = std::fs::read_to_string("/proc/self/status")
        .map_err(|error| format!("--threads binds cores, which works on Linux only: {error}"))?;
    let allowed = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
        .ok_or("/proc/self/status names no cores")?;
    let cores = cores(allowed.trim());
    if count == 0 || count > cores.len() {
        return Err(format!("--threads {count}: this process has {} cores", cores.len()));
    }
    Ok(cores[..count].to_vec())
}

fn cores(list: &str) -> Vec<usize> {
    list.split(',')
        .filter_map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
        })
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::cores;

    #[test]
    fn lists_of_cores() {
        assert_eq!(cores("0-2,5,8-9"), [0, 1, 2, 5, 8, 9]);
        assert_eq!(cores("3"), [3]);
    }
}
