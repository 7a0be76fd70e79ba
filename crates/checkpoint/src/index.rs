//! All tensors of a checkpoint by name, over one shard or many.

use crate::error::{CheckpointError, shown};
use crate::header::{Header, TensorInfo};
use std::collections::HashMap;

/// The tensors of a checkpoint.
#[derive(Debug, Clone, Default)]
pub struct TensorIndex {
    files: Vec<String>,
    /// In the order of shards, then bytes.
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
}

impl TensorIndex {
    /// The tensors of the given shards; [`TensorInfo::file`] becomes the position of its header.
    ///
    /// # Errors
    /// If two shards have a tensor of the same name.
    pub fn new(headers: Vec<Header>) -> Result<TensorIndex, CheckpointError> {
        let mut index = TensorIndex::default();
        for header in headers {
            let file = index.add_file(header.file);
            for tensor in header.tensors {
                if let Some(first) = index.find(&tensor.name) {
                    return Err(CheckpointError::ShardIndex {
                        file: index.files[file].clone(),
                        problem: format!(
                            "tensor {} is also in {}; keep only one of the files",
                            shown(&tensor.name),
                            index.files[first.file]
                        ),
                    });
                }
                index.add(tensor, file);
            }
        }
        Ok(index)
    }

    /// The tensors that `shards` names, each in the shard where it says. `headers` are those of
    /// [`ShardIndex::shards`], in that order. Tensors that the index does not name are left out, as
    /// transformers does.
    ///
    /// # Errors
    /// If a shard is missing, or lacks a tensor that the index says it has.
    pub fn sharded(shards: &ShardIndex, headers: Vec<Header>) -> Result<TensorIndex, CheckpointError> {
        let broken = |problem: String| CheckpointError::ShardIndex { file: shards.file.clone(), problem };
        if headers.len() != shards.shards.len() {
            return Err(broken(format!(
                "it names {} shards, but {} are here; download the others",
                shards.shards.len(),
                headers.len()
            )));
        }
        let mut index = TensorIndex::default();
        for (position, header) in headers.into_iter().enumerate() {
            let file = index.add_file(header.file);
            for tensor in header.tensors {
                if shards.weight_map.get(&tensor.name) == Some(&position) {
                    index.add(tensor, file);
                }
            }
        }
        // The order of a HashMap is arbitrary: name the same tensor every time.
        let absent = shards.weight_map.iter().filter(|(name, _)| index.find(name).is_none()).min();
        if let Some((name, &shard)) = absent {
            return Err(broken(format!(
                "it says that tensor {} is in {}, but it is not; download that shard again",
                shown(name),
                shown(&shards.shards[shard])
            )));
        }
        Ok(index)
    }

    fn add_file(&mut self, file: String) -> usize {
        self.files.push(file);
        self.files.len() - 1
    }

    fn add(&mut self, mut tensor: TensorInfo, file: usize) {
        tensor.file = file;
        self.by_name.insert(tensor.name.clone(), self.tensors.len());
        self.tensors.push(tensor);
    }

    /// The shards' names, for messages; [`TensorInfo::file`] indexes them.
    pub fn files(&self) -> &[String] {
        &self.files
    }

    /// The tensor of that name, which the model must have.
    ///
    /// # Errors
    /// [`CheckpointError::MissingTensor`], which names the files that were searched and the names nearest to it.
    pub fn get(&self, name: &str) -> Result<&TensorInfo, CheckpointError> {
        self.find(name).ok_or_else(|| CheckpointError::MissingTensor {
            tensor: shown(name),
            files: self.described_files(),
            hint: self.hint(name),
        })
    }

    /// The tensor of that name, if there is one: for what a model may or may not have, such as a bias.
    pub fn find(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&at| &self.tensors[at])
    }

    /// Whether there is a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// All tensors in the order of shards and bytes: the order to read them in.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &TensorInfo> + '_ {
        self.tensors.iter()
    }

    /// The number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The bytes of all tensors.
    pub fn total_bytes(&self) -> u64 {
        self.iter().map(TensorInfo::bytes).sum()
    }

    fn described_files(&self) -> String {
        match self.files.as_slice() {
            [] => "a checkpoint without files".to_string(),
            [one] => one.clone(),
            [first, .., last] => format!("{first} … {last} ({} shards)", self.files.len()),
        }
    }

    fn hint(&self, name: &str) -> String {
        let near = nearest(name, self.iter().map(|tensor| tensor.name.as_str()));
        if near.is_empty() {
            return format!(
                " ({} tensors, none of a similar name: is this another kind of model?)",
                self.len()
            );
        }
        let near: Vec<String> = near.into_iter().map(shown).collect();
        format!("; did you mean {}?", near.join(" or "))
    }
}

/// Up to three of `names` that are nearest to `wanted`: same but for a prefix, or few letters away.
fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    // Names are ASCII paths of some 50 bytes; a longer one is no typing mistake, and a hostile one costs time.
    const LONGEST: usize = 160;
    if wanted.len() > LONGEST {
        return Vec::new();
    }
    let limit = wanted.len() / 4;
    let mut near: Vec<(usize, &str)> = names
        .filter(|name| name.len() <= LONGEST)
        .filter_map(|name| {
            let prefixed = |long: &str, short: &str| {
                long.strip_suffix(short).is_some_and(|prefix| prefix.ends_with('.'))
            };
            let distance = if prefixed(name, wanted) || prefixed(wanted, name) {
                1
            } else {
                edit_distance(wanted.as_bytes(), name.as_bytes())
            };
            (distance <= limit).then_some((distance, name))
        })
        .collect();
    near.sort();
    near.into_iter().take(3).map(|(_, name)| name).collect()
}

/// Levenshtein's distance, one row at a time.
fn edit_distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// `model.safetensors.index.json`: which shard holds which tensor.
#[derive(Debug, Clone)]
pub struct ShardIndex {
    file: String,
    shards: Vec<String>,
    /// Tensor name to position in `shards`.
    weight_map: HashMap<String, usize>,
    total_size: Option<u64>,
}

impl ShardIndex {
    /// Reads the index; `file` is its name for messages.
    ///
    /// # Errors
    /// Bad JSON, an empty or misshapen `weight_map`, or a shard whose name is not that of a file beside the index.
    pub fn parse(file: &str, json: &[u8]) -> Result<ShardIndex, CheckpointError> {
        let broken = |problem: String| CheckpointError::ShardIndex { file: file.to_string(), problem };
        let value: serde_json::Value = serde_json::from_slice(json).map_err(|error| {
            CheckpointError::Json { file: file.to_string(), problem: shown(&error.to_string()) }
        })?;
        let map = value
            .get("weight_map")
            .and_then(|map| map.as_object())
            .filter(|map| !map.is_empty())
            .ok_or_else(|| broken("it has no weight_map; download it again".to_string()))?;
        let mut entries = Vec::with_capacity(map.len());
        for (name, shard) in map {
            let shard = shard
                .as_str()
                .ok_or_else(|| broken(format!("the shard of tensor {} is not a text", shown(name))))?;
            if !is_plain_shard_name(shard) {
                return Err(broken(format!(
                    "the shard {} of tensor {} is not a .safetensors file beside it; do not trust this checkpoint",
                    shown(shard),
                    shown(name)
                )));
            }
            entries.push((name, shard));
        }
        let mut shards: Vec<String> = entries.iter().map(|(_, shard)| shard.to_string()).collect();
        shards.sort();
        shards.dedup();
        let weight_map = entries
            .into_iter()
            .filter_map(|(name, shard)| {
                let position = shards.binary_search_by(|known| known.as_str().cmp(shard)).ok()?;
                Some((name.clone(), position))
            })
            .collect();
        let total_size = value.pointer("/metadata/total_size").and_then(|size| {
            // Some writers store it as a float.
            size.as_u64().or_else(|| size.as_f64().map(|size| size as u64))
        });
        Ok(ShardIndex { file: file.to_string(), shards, weight_map, total_size })
    }

    /// The shards' file names, sorted.
    pub fn shards(&self) -> &[String] {
        &self.shards
    }

    /// The bytes of all tensors as the index states them: a statement, not a measurement.
    pub fn total_size(&self) -> Option<u64> {
        self.total_size
    }
}

/// Whether a shard's name stays in the directory of its index on every operating system.
fn is_plain_shard_name(name: &str) -> bool {
    name.ends_with(".safetensors")
        && !name.starts_with('.')
        && !name.contains(['/', '\\', ':', '\0'])
        && name.len() <= 255
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edit_distance_counts_changes() {
        assert_eq!(edit_distance(b"kitten", b"sitting"), 3);
        assert_eq!(edit_distance(b"", b"abc"), 3);
        assert_eq!(edit_distance(b"same", b"same"), 0);
    }

    #[test]
    fn nearest_finds_prefixes_and_typing_mistakes() {
        let names =
            ["model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight", "model.norm.weight"];
        assert_eq!(nearest("norm.weight", names.into_iter())[0], names[2]);
        assert_eq!(nearest("model.layers.0.mlp.upproj.weight", names.into_iter())[0], names[0]);
        assert!(nearest("embeddings", names.into_iter()).is_empty());
    }

    #[test]
    fn shards_may_not_leave_their_directory() {
        for bad in [
            "../x.safetensors",
            "/etc/x.safetensors",
            "a\\b.safetensors",
            "C:x.safetensors",
            "model.bin",
            ".safetensors",
            "",
        ] {
            let json = serde_json::json!({"weight_map": {"t": bad}}).to_string();
            let error = ShardIndex::parse("index.json", json.as_bytes()).unwrap_err();
            assert!(error.to_string().contains("do not trust"), "{bad}: {error}");
        }
    }
}
