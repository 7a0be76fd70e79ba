//! The files of a model as bytes, wherever they come from: memory, a memory map, the Hub's cache.

use crate::error::CheckpointError;
use crate::region::{Contents, InMemory, Region};
use serde_json::Value;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// A file's bytes with its name for messages. The bytes may be owned, static or a memory map.
pub struct FileBytes {
    name: String,
    contents: Arc<dyn Contents>,
    /// Bytes of the whole file, where only its beginning is here.
    whole: Option<u64>,
}

impl FileBytes {
    /// Bytes under a name. Takes a `Vec<u8>`, a `&'static [u8]`, a memory map, or the like.
    pub fn new(name: impl Into<String>, bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> FileBytes {
        FileBytes::of(name, InMemory(bytes))
    }

    /// Contents under a name.
    pub(crate) fn of(name: impl Into<String>, contents: impl Contents + 'static) -> FileBytes {
        FileBytes { name: name.into(), contents: Arc::new(contents), whole: None }
    }

    /// The beginning of a file of `whole` bytes: enough for a plan, not for loading.
    pub fn beginning(name: impl Into<String>, bytes: Vec<u8>, whole: u64) -> FileBytes {
        FileBytes { whole: Some(whole), ..FileBytes::new(name, bytes) }
    }

    /// The name for messages: a path, for what comes from a directory.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The contents.
    pub fn bytes(&self) -> &[u8] {
        self.contents.bytes()
    }

    /// A part of the contents that may be kept; `None` if they do not reach that far.
    pub fn region(&self, range: Range<usize>) -> Option<Region> {
        Region::new(&self.contents, range)
    }

    /// Bytes of the whole file.
    pub fn len(&self) -> u64 {
        self.whole.unwrap_or(self.bytes().len() as u64)
    }

    /// Whether the whole file is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Name and contents, as the readers take them.
    pub(crate) fn named(&self) -> (&str, &[u8]) {
        (self.name(), self.bytes())
    }
}

impl fmt::Debug for FileBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileBytes({}, {} bytes)", self.name, self.bytes().len())
    }
}

/// The files of one model. Make one with [`ModelFiles::from_bytes`], [`ModelFiles::open`](crate::native) or by
/// hand, and give it to [`Checkpoint::new`](crate::checkpoint::Checkpoint::new).
#[derive(Debug)]
pub struct ModelFiles {
    /// The model's name for messages: its directory or Hub id.
    pub name: String,
    /// `config.json`.
    pub config: FileBytes,
    /// `model.safetensors.index.json`, where the weights are in several shards.
    pub shard_index: Option<FileBytes>,
    /// The safetensors files; with an index, in the order of [`ShardIndex::shards`](crate::index::ShardIndex::shards).
    pub shards: Vec<FileBytes>,
    /// `generation_config.json`.
    pub generation: Option<FileBytes>,
    /// The tokenizer, which a model may lack.
    pub tokenizer: TokenizerFiles,
}

/// What a sentencepiece tokenizer's file is called, the commonest name first.
pub(crate) const SENTENCEPIECE: [&str; 3] = ["tokenizer.model", "spiece.model", FAIRSEQ];
/// What it is called where ids are not the pieces' places in it, but fairseq's. Of those XLM-R's are known.
const FAIRSEQ: &str = "sentencepiece.bpe.model";

/// The files of a tokenizer.
#[derive(Debug, Default)]
pub struct TokenizerFiles {
    /// `tokenizer.json`: the whole tokenizer.
    pub tokenizer: Option<FileBytes>,
    /// `tokenizer_config.json`: special tokens and, mostly, the chat template.
    pub config: Option<FileBytes>,
    /// `special_tokens_map.json`: special tokens of older models.
    pub special_tokens: Option<FileBytes>,
    /// `chat_template.jinja`: the chat template of newer models.
    pub chat_template: Option<FileBytes>,
    /// `tokenizer.model`, `spiece.model` or `sentencepiece.bpe.model`, sentencepiece's: read where there is no
    /// `tokenizer.json`; the last, which has ids of its own, of XLM-R alone.
    pub sentencepiece: Option<FileBytes>,
    /// `model_type` of the model's configuration: whose ids a sentencepiece file has where `tokenizer_config.json` names no
    /// `tokenizer_class`.
    pub model_type: Option<String>,
    /// `added_tokens.json`: what older models add to a sentencepiece file.
    pub added_tokens: Option<FileBytes>,
    /// A tokenizer file of another format that is there instead, for the message.
    pub other: Option<String>,
}

impl ModelFiles {
    /// The files of an embedded or fetched model with its weights in one piece. Further tokenizer files can be
    /// set on the result.
    pub fn from_bytes<B: AsRef<[u8]> + Send + Sync + 'static>(
        name: &str,
        config: B,
        safetensors: B,
        tokenizer: Option<B>,
        generation: Option<B>,
    ) -> ModelFiles {
        let file = |file: &str, bytes: B| FileBytes::new(format!("{name}/{file}"), bytes);
        ModelFiles {
            name: name.to_string(),
            config: file("config.json", config),
            shard_index: None,
            shards: vec![file("model.safetensors", safetensors)],
            generation: generation.map(|bytes| file("generation_config.json", bytes)),
            tokenizer: TokenizerFiles {
                tokenizer: tokenizer.map(|bytes| file("tokenizer.json", bytes)),
                ..TokenizerFiles::default()
            },
        }
    }
}

impl TokenizerFiles {
    /// `tokenizer.json`, or the sentencepiece file that stands in for it.
    pub(crate) fn main(&self) -> Option<&FileBytes> {
        let known = |file: &&FileBytes| !file.name().ends_with(FAIRSEQ) || self.is_xlm_roberta();
        self.tokenizer.as_ref().or_else(|| self.sentencepiece.as_ref().filter(known))
    }

    /// Whether a sentencepiece file's pieces have XLM-R's ids.
    pub(crate) fn is_xlm_roberta(&self) -> bool {
        let config: Option<Value> =
            self.config.as_ref().and_then(|file| serde_json::from_slice(file.bytes()).ok());
        match config.as_ref().and_then(|config| config.get("tokenizer_class")?.as_str()) {
            Some(class) => class.starts_with("XLMRobertaTokenizer"),
            None => self.model_type.as_deref() == Some("xlm-roberta"),
        }
    }

    /// The file that a tokenizer needs.
    pub(crate) fn required(&self, model: &str) -> Result<&FileBytes, CheckpointError> {
        self.main().ok_or_else(|| CheckpointError::MissingFile {
            place: model.to_string(),
            missing: "tokenizer.json or tokenizer.model".to_string(),
            instead: match &self.other {
                Some(other) => format!(
                    "its tokenizer is {other}; convert it in Python with AutoTokenizer.from_pretrained(\"{model}\", use_fast=True).save_pretrained(DIR)"
                ),
                None => "give token ids, or copy the tokenizer.json of the model it was made from".to_string(),
            },
        })
    }
}
