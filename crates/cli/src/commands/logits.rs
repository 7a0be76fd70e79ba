//! `halfbyte logits`: float32 logits of token ids, to compare with other runtimes.

use super::{print, print_json, say};
use crate::args::LogitsArgs;
use crate::notes;
use crate::progress::Bars;
use halfbyte::{AutoModel, Error};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;
use std::io::Write;
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

/// Writes beside the file and renames: it is whole or not there.
fn write(file: &Path, logits: &[f32], shape: &[usize]) -> Result<(), Error> {
    let failed = |error: &dyn std::fmt::Display| Error::Usage(format!("{}: {error}", file.display()));
    let bytes: Vec<u8> = logits.iter().flat_map(|value| value.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, shape.to_vec(), &bytes).map_err(|error| failed(&error))?;
    let data = safetensors::serialize([("logits", view)], None).map_err(|error| failed(&error))?;
    let mut name = file.as_os_str().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    let part = Path::new(&name);
    let written = std::fs::File::create(part)
        .and_then(|mut out| out.write_all(&data).and_then(|()| out.sync_all()))
        .and_then(|()| std::fs::rename(part, file));
    written.map_err(|error| {
        let _ = std::fs::remove_file(part);
        failed(&error)
    })
}
