//! What can be wrong with a checkpoint, each as one line that names the file, the numbers and the way out.

/// Why a checkpoint cannot be used.
///
/// Every message is a single line. Texts that come from the checkpoint itself (tensor names, JSON
/// values) are escaped and shortened by [`shown`], so that a hostile file cannot write to a terminal.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A file could not be read.
    #[error("cannot read {file}: {source}")]
    Io {
        /// The path.
        file: String,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file could not be written.
    #[error("cannot write {file}: {source}; {}", remedy(source))]
    Write {
        /// The path.
        file: String,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A directory cannot be written into.
    #[error("cannot write into {dir}: {problem}")]
    Output {
        /// The directory.
        dir: String,
        /// Why not, and what to do.
        problem: String,
    },
    /// A safetensors file is truncated, damaged or hostile.
    #[error("{file} is not a usable safetensors file: {problem}; download or write it again")]
    Header {
        /// The shard.
        file: String,
        /// What is wrong with it, with the numbers.
        problem: String,
    },
    /// `model.safetensors.index.json` and its shards do not fit together.
    #[error("{file}: {problem}")]
    ShardIndex {
        /// The index file.
        file: String,
        /// What does not fit.
        problem: String,
    },
    /// A tensor that the model needs is not in the checkpoint.
    #[error("tensor {tensor} is not in {files}{hint}")]
    MissingTensor {
        /// The name that was asked for.
        tensor: String,
        /// The shards that were searched.
        files: String,
        /// Names that are near, or empty.
        hint: String,
    },
    /// Git LFS has left a pointer where a file should be.
    #[error(
        "{file} is a Git LFS pointer, not the file itself: run `git lfs pull` there, or download it again"
    )]
    Pointer {
        /// The file.
        file: String,
    },
    /// A file is not the JSON it should be.
    #[error("{file} is not valid: {problem}; download it again")]
    Json {
        /// The file.
        file: String,
        /// What is wrong and where.
        problem: String,
    },
    /// A value in a configuration is missing, of the wrong kind, or absurd.
    #[error("{file}: {key} is {found}, expected {expected}")]
    Config {
        /// The file, mostly `config.json`.
        file: String,
        /// The key, with dots for nested ones.
        key: String,
        /// The value that is there, or `missing`.
        found: String,
        /// What would be right.
        expected: String,
    },
    /// The checkpoint is sound, but of a kind that is not supported.
    #[error("{what} is not supported: {instead}")]
    Unsupported {
        /// The thing, with its file.
        what: String,
        /// What to do instead.
        instead: String,
    },
    /// A directory lacks a file that a model must have.
    #[error("{place} has no {missing}: {instead}")]
    MissingFile {
        /// The directory or model.
        place: String,
        /// The file that is needed.
        missing: String,
        /// What was found, and what to do.
        instead: String,
    },
    /// A tokenizer could not be built or could not encode or decode.
    #[error("{file}: {problem}")]
    Tokenizer {
        /// The tokenizer's file.
        file: String,
        /// What went wrong.
        problem: String,
    },
    /// The tokenizer knows ids for which the model has no embedding.
    #[error(
        "the tokenizer has ids up to {largest_id} but the model embeds {embedded} (ids up to {}): the tokenizer belongs to another model",
        .embedded.saturating_sub(1)
    )]
    TokenizerTooLarge {
        /// The largest id that the tokenizer can produce.
        largest_id: u32,
        /// Rows of the model's embedding.
        embedded: usize,
    },
    /// A chat template is missing or failed.
    #[error("chat template of {file}: {problem}")]
    ChatTemplate {
        /// Where the template is from.
        file: String,
        /// What went wrong.
        problem: String,
    },
    /// A bitsandbytes 4-bit weight does not hold together.
    #[error("4-bit weight {tensor}: {problem}; quantize or download the checkpoint again")]
    QuantState {
        /// The weight's name, without its suffixes.
        tensor: String,
        /// What does not fit, with the numbers.
        problem: String,
    },
    /// The Hub, or the way to it, said no.
    #[error("{model}: {problem}")]
    Hub {
        /// The model's id on the Hub.
        model: String,
        /// What happened, and what to do.
        problem: String,
    },
    /// A model argument that is neither a directory nor a Hub id.
    #[error(
        "{model} is neither a local directory nor a Hub id: give the path of a directory that has config.json, or an id such as org/name"
    )]
    NoSuchModel {
        /// The argument.
        model: String,
    },
}

/// Text from a checkpoint made fit for an error message: control characters escaped, at most 120 characters.
pub fn shown(text: &str) -> String {
    const LIMIT: usize = 120;
    let mut out = String::new();
    for (at, c) in text.chars().enumerate() {
        if at == LIMIT {
            out.push('…');
            break;
        }
        if c.is_control() || is_direction_mark(c) {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

/// A shape in an error message, without what is too long to be one.
pub(crate) fn shown_list<T: std::fmt::Debug>(items: &[T]) -> String {
    match items {
        _ if items.len() <= 8 => format!("{items:?}"),
        _ => format!("of {} dimensions", items.len()),
    }
}

/// A JSON value in an error message, shortened as [`shown`] does.
pub(crate) fn shown_json(value: &serde_json::Value) -> String {
    match value {
        // Large values are named rather than written out in full.
        serde_json::Value::Array(items) if items.len() > 8 => {
            format!("a list of {} values", items.len())
        }
        serde_json::Value::Object(map) if map.len() > 4 => {
            format!("an object with {} keys", map.len())
        }
        other => shown(&other.to_string()),
    }
}

/// What helps where a file cannot be written. What is written in pieces goes on from its journal.
fn remedy(source: &std::io::Error) -> &'static str {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    match source.kind() {
        StorageFull | QuotaExceeded | FileTooLarge => {
            "free space there and start again, which goes on where this ended, or choose another directory"
        }
        _ => "choose another directory",
    }
}

/// Unicode's invisible marks that reverse the direction of what follows.
fn is_direction_mark(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_stays_on_one_short_line() {
        let text = shown(&format!("a\nb\u{1b}[31m\u{202e}{}", "x".repeat(1000)));
        assert!(text.starts_with("a\\u{a}b\\u{1b}[31m\\u{202e}xxx"), "{text}");
        assert!(text.chars().count() < 180);
        assert!(text.ends_with('…'));
    }
}
