//! The files beside the weights: index, tokenizer, `config.json`.

use super::WriteOptions;
use super::directory::Directory;
use super::layout::{Item, Layout};
use super::sharding::file_name;
use super::state_json::torch_name;
use crate::checkpoint::Checkpoint;
use crate::error::CheckpointError;
use crate::native::{SHARD_INDEX, SMALL};
use crate::selection::Selection;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Files of a model's directory that are copied where they exist, besides [`SMALL`]: tokenizers of other kinds, image and
/// audio processors, licences.
const COPIED: &[&str] = &[
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
];

/// Writes everything but the shards, whose tensors have `data_bytes`; `config.json` last: it makes the
/// directory a model.
pub(super) fn write(
    checkpoint: &Checkpoint,
    directory: &Directory,
    options: &WriteOptions,
    selection: &Selection,
    shards: &[Vec<Item<'_>>],
    data_bytes: u64,
) -> Result<(), CheckpointError> {
    copy(checkpoint, directory)?;
    if shards.len() > 1 {
        directory.put(SHARD_INDEX, &pretty(&index(shards, options, data_bytes)))?;
    }
    directory.put("config.json", &pretty(&config(checkpoint, options, selection)))
}

/// Copies the small files: from the model's directory, or those that an embedded model has.
fn copy(checkpoint: &Checkpoint, directory: &Directory) -> Result<(), CheckpointError> {
    let source = Path::new(&checkpoint.config.file).parent().filter(|dir| dir.is_dir());
    for (name, file) in checkpoint.companions() {
        directory.put(name, file.bytes())?;
    }
    let Some(source) = source else { return Ok(()) };
    let held: Vec<&str> = checkpoint.companions().map(|(name, _)| name).collect();
    for name in SMALL.iter().chain(COPIED).filter(|name| !held.contains(name)) {
        let path = source.join(name);
        match std::fs::read(&path) {
            Ok(bytes) => directory.put(name, &bytes)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(CheckpointError::Io { file: path.display().to_string(), source }),
        }
    }
    Ok(())
}

/// `model.safetensors.index.json`; `data_bytes` are the shards' without their headers.
fn index(shards: &[Vec<Item<'_>>], options: &WriteOptions, data_bytes: u64) -> Value {
    let mut weight_map = BTreeMap::new();
    for (number, items) in shards.iter().enumerate() {
        let layout = Layout::new(items, options);
        let file = file_name(number, shards.len());
        weight_map.extend(layout.names().map(|name| (name.to_owned(), file.clone())));
    }
    json!({"metadata": {"total_size": data_bytes}, "weight_map": weight_map})
}

/// `config.json` with `quantization_config` among its sorted keys, as transformers writes it.
fn config(checkpoint: &Checkpoint, options: &WriteOptions, selection: &Selection) -> Value {
    let dtype = options.compute_dtype.or(checkpoint.dtype()).map_or("float32", torch_name);
    let section = json!({
        "_load_in_4bit": true,
        "_load_in_8bit": false,
        "bnb_4bit_compute_dtype": dtype,
        "bnb_4bit_quant_storage": torch_name(options.storage),
        "bnb_4bit_quant_type": options.spec.quant_type.to_string(),
        "bnb_4bit_use_double_quant": options.spec.double_quant,
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
        "llm_int8_skip_modules": selection.skip_list(),
        "llm_int8_threshold": 6.0,
        "load_in_4bit": true,
        "load_in_8bit": false,
        "quant_method": "bitsandbytes",
    });
    let mut config = Map::new();
    let mut section = Some(section);
    for (key, value) in &checkpoint.config.json {
        if key.as_str() > "quantization_config"
            && let Some(section) = section.take()
        {
            config.insert("quantization_config".into(), section);
        }
        if key != "quantization_config" {
            config.insert(key.clone(), value.clone());
        }
    }
    if let Some(section) = section {
        config.insert("quantization_config".into(), section);
    }
    Value::Object(config)
}

/// JSON with an indent of two and a final newline, as transformers writes it.
fn pretty(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"  ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    // Writing a JSON value to memory does not fail.
    let _ = value.serialize(&mut serializer);
    out.push(b'\n');
    out
}
