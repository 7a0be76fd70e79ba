//! How the tensors fall into files.

use super::WriteOptions;
use super::layout::Item;
use crate::native::SINGLE;

/// Splits the tensors into shards of at most [`WriteOptions::max_shard_bytes`], as transformers does: in
/// order, each shard as full as can be, what is larger by itself. The tensors of one weight stay together.
pub(super) fn split<'a>(items: &[Item<'a>], options: &WriteOptions) -> Vec<Vec<Item<'a>>> {
    let mut shards: Vec<Vec<Item<'a>>> = Vec::new();
    let mut filled = u64::MAX;
    for item in items {
        let bytes = item.bytes(options);
        match shards.last_mut() {
            Some(shard) if filled.saturating_add(bytes) <= options.max_shard_bytes => {
                shard.push(item.clone());
                filled += bytes;
            }
            _ => {
                shards.push(vec![item.clone()]);
                filled = bytes;
            }
        }
    }
    shards
}

/// The name of shard `number` (from 0) of `count`.
pub(super) fn file_name(number: usize, count: usize) -> String {
    match count {
        0 | 1 => SINGLE.to_owned(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
    }
}
