//! sentencepiece's `tokenizer.model`: what it says, what is beside it, and what may be wrong with it.

mod beside;
mod hostile;
mod library;
mod written;
mod xlm_roberta;

use halfbyte_checkpoint::{FileBytes, Tokenizer, TokenizerFiles};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn folder(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/sentencepiece").join(kind)
}

fn model(kind: &str) -> Vec<u8> {
    std::fs::read(folder(kind).join("tokenizer.model")).unwrap()
}

fn files(model: Vec<u8>, config: &Value) -> TokenizerFiles {
    TokenizerFiles {
        sentencepiece: Some(FileBytes::new("tokenizer.model", model)),
        config: Some(FileBytes::new("tokenizer_config.json", config.to_string().into_bytes())),
        ..TokenizerFiles::default()
    }
}

fn configured(kind: &str, config: &Value) -> Tokenizer {
    Tokenizer::from_files("m", &files(model(kind), config)).unwrap()
}

/// The model alone.
fn bare(kind: &str) -> Tokenizer {
    Tokenizer::from_sentencepiece("tokenizer.model", &model(kind)).unwrap()
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> String {
    let mut stream = tokenizer.decode_stream(skip_special);
    let mut text: String = ids.iter().filter_map(|&id| stream.push(id).unwrap()).collect();
    text.extend(stream.finish().unwrap());
    text
}
