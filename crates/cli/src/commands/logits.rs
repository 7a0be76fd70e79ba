//! `halfbyte logits`: float32 logits of token ids, to compare with other runtimes.

use super::{print, print_json, say};
use crate::args::LogitsArgs;
use crate::notes;
use crate::progress::Bars;
use halfbyte::{AutoModel, Error};
use serde_json::json;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::Path;

/// Computes the logits of every position, or a classifier's of the whole text, and writes them as a
/// safetensors file.
pub fn run(args: &LogitsArgs) -> Result<(), Error> {
    let options = args.model.options_for_numbers()?;
    let mut model = AutoModel::load(&args.model.source(), &options, &mut Bars::new())?;
    let (logits, shape) = match &mut model {
        AutoModel::CausalLm(model) => {
            let logits = model.logits(&args.ids)?;
            let vocabulary = logits.len() / args.ids.len();
            (logits, vec![1, args.ids.len(), vocabulary])
        }
        AutoModel::SequenceClassifier(model) => {
            let logits = model.logits(&[args.ids.clone().into()])?.concat();
            let labels = logits.len();
            (logits, vec![1, labels])
        }
        AutoModel::TokenClassifier(model) => {
            let logits = model.logits(&[args.ids.clone().into()])?.concat();
            (logits, vec![1, args.ids.len(), model.labels().len()])
        }
        AutoModel::Embedder(model) => {
            return Err(Error::Usage(format!(
                "{} has hidden states, but no logits: `halfbyte classify` puts a new head on it",
                model.loaded().name()
            )));
        }
    };
    if let Some(file) = &args.output {
        write(file, &logits, &shape)?;
        say(&format!("wrote logits {shape:?} to {}", file.display()));
    }
    let width = shape.last().copied().unwrap_or(1);
    let argmax: Vec<u32> = logits.chunks(width).map(halfbyte::argmax).collect();
    if args.model.json {
        return print_json(&json!({
            "argmax": argmax,
            "tokens": args.ids.len(),
            "vocabulary": width,
            "output": args.output,
            "memory": model.loaded().memory(),
            "events": notes::events(),
        }));
    }
    print(&format!("argmax {argmax:?}\n"))
}

/// Writes beside the file and renames: it is whole or not there. A pipe or a device is written to as it is.
fn write(file: &Path, logits: &[f32], shape: &[usize]) -> Result<(), Error> {
    // A link stays one.
    let file = std::fs::canonicalize(file).unwrap_or_else(|_| file.to_path_buf());
    let written = match std::fs::metadata(&file) {
        Ok(there) if !there.is_file() => {
            OpenOptions::new().write(true).open(&file).and_then(|out| put(out, logits, shape).map(drop))
        }
        _ => {
            let mut name = file.clone().into_os_string();
            name.push(format!(".{}.part", std::process::id()));
            let part = Path::new(&name);
            let written = File::create(part)
                .and_then(|out| put(out, logits, shape)?.sync_all())
                .and_then(|()| std::fs::rename(part, &file));
            written.inspect_err(|_| {
                let _ = std::fs::remove_file(part);
            })
        }
    };
    written.map_err(|error| Error::Usage(format!("cannot write {}: {error}", file.display())))
}

/// As large as logits are, they are in memory once.
fn put(out: File, logits: &[f32], shape: &[usize]) -> std::io::Result<File> {
    let mut out = BufWriter::new(out);
    out.write_all(&header(logits.len(), shape))?;
    logits.iter().try_for_each(|value| out.write_all(&value.to_le_bytes()))?;
    Ok(out.into_inner()?)
}

/// What a safetensors file with this one tensor begins with: the length of its JSON in eight bytes, then the JSON, with
/// spaces to a multiple of eight.
fn header(values: usize, shape: &[usize]) -> Vec<u8> {
    let tensor = json!({ "dtype": "F32", "shape": shape, "data_offsets": [0, values * size_of::<f32>()] });
    let mut text = json!({ "logits": tensor }).to_string();
    text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}
