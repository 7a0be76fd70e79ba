//! The header of a safetensors file: which tensor lies where.
//!
//! A safetensors file is 8 bytes of little-endian header length, that many bytes of JSON
//! (`{"name": {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {..}}`), and the data.
//! The reader trusts nothing: after [`Header::parse`] every tensor lies inside the file, overlaps no
//! other, and has exactly the bytes that its type and shape ask for.

use crate::dtype::TensorDtype;
use crate::error::{CheckpointError, shown, shown_list};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use std::collections::{BTreeMap, HashSet};
use std::fmt;

/// How the files begin that Git LFS leaves in a clone until it is asked for their contents.
pub(crate) const LFS_POINTER: &[u8] = b"version https://git-lfs";

/// The longest header that is read: the format's own limit.
pub const MAX_HEADER_LEN: u64 = 100_000_000;

/// Bytes before the JSON: its length as a little-endian u64.
const LENGTH_BYTES: u64 = 8;

/// One tensor of a checkpoint: what it is and where its bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The full name, such as `model.layers.0.mlp.up_proj.weight`.
    pub name: String,
    /// The type of its elements.
    pub dtype: TensorDtype,
    /// Its dimensions, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// Which of the checkpoint's shards holds it: an index into [`TensorIndex::files`](crate::index::TensorIndex::files).
    pub file: usize,
    /// Where its bytes begin, counted from the start of the shard.
    pub begin: u64,
    /// Where its bytes end, counted from the start of the shard.
    pub end: u64,
}

impl TensorInfo {
    /// The number of elements.
    pub fn elements(&self) -> usize {
        // `Header::parse` has checked that the product does not overflow.
        self.shape.iter().product()
    }

    /// The number of bytes.
    pub fn bytes(&self) -> u64 {
        self.end - self.begin
    }
}

/// A checked safetensors header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The file's name, for messages.
    pub file: String,
    /// The tensors in the order of their bytes.
    pub tensors: Vec<TensorInfo>,
    /// The texts under `__metadata__`.
    pub metadata: BTreeMap<String, String>,
    /// Where the data begins: `8 + length of the JSON`.
    pub data_start: u64,
}

impl Header {
    /// How many bytes of the file [`Header::parse`] needs, read from the first 8.
    ///
    /// # Errors
    /// If the file is too short to have a header, or its header is longer than the file or than
    /// [`MAX_HEADER_LEN`].
    pub fn prefix_len(file: &str, first: &[u8], file_len: u64) -> Result<u64, CheckpointError> {
        let broken = |problem: String| CheckpointError::Header { file: file.to_string(), problem };
        let Some(length) = first.first_chunk::<8>() else {
            return Err(broken(format!(
                "it has {} bytes, too few for the 8 bytes of its header's length",
                file_len.min(first.len() as u64)
            )));
        };
        let length = u64::from_le_bytes(*length);
        if length > MAX_HEADER_LEN {
            return Err(broken(format!(
                "its header claims {length} bytes, more than the format's limit of {MAX_HEADER_LEN}"
            )));
        }
        let prefix = LENGTH_BYTES + length;
        if prefix > file_len {
            return Err(broken(format!(
                "its header claims to end at byte {prefix}, but the file has {file_len} bytes"
            )));
        }
        Ok(prefix)
    }

    /// Reads and checks the header of a safetensors file.
    ///
    /// `prefix` is the beginning of the file, at least [`Header::prefix_len`] bytes of it, `file_len`
    /// the length of the whole file; `file` is its name for messages. [`TensorInfo::file`] is 0.
    ///
    /// # Errors
    /// A truncated or oversized header, bad JSON, names that occur twice, unknown types, shapes that
    /// overflow or do not match their bytes, offsets that are negative, reversed, out of range,
    /// overlapping, or leave holes.
    pub fn parse(file: &str, prefix: &[u8], file_len: u64) -> Result<Header, CheckpointError> {
        let broken = |problem: String| CheckpointError::Header { file: file.to_string(), problem };
        if prefix.starts_with(LFS_POINTER) {
            return Err(broken("it is a Git LFS pointer, not the weights (run `git lfs pull`)".to_string()));
        }
        let data_start = Self::prefix_len(file, prefix, file_len)?;
        let json = usize::try_from(data_start)
            .ok()
            .and_then(|end| prefix.get(LENGTH_BYTES as usize..end))
            .ok_or_else(|| {
                broken(format!(
                    "only {} of the {data_start} bytes up to the end of its header are there",
                    prefix.len()
                ))
            })?;
        if json.first() != Some(&b'{') {
            return Err(broken("its header does not begin with '{'".to_string()));
        }
        let raw: RawHeader = serde_json::from_slice(json)
            .map_err(|error| broken(format!("its header: {}", shown(&error.to_string()))))?;

        let data_len = file_len - data_start;
        let mut names = HashSet::with_capacity(raw.tensors.len());
        let mut tensors = Vec::with_capacity(raw.tensors.len());
        for (name, entry) in &raw.tensors {
            if !names.insert(name.as_str()) {
                return Err(broken(format!("tensor {} occurs twice", shown(name))));
            }
            let tensor = entry
                .check(name, data_start, data_len)
                .map_err(|problem| broken(format!("tensor {}: {problem}", shown(name))))?;
            tensors.push(tensor);
        }
        tensors.sort_by_key(|tensor| (tensor.begin, tensor.end));
        check_contiguous(&tensors, data_start, file_len).map_err(broken)?;
        Ok(Header { file: file.to_string(), tensors, metadata: raw.metadata, data_start })
    }
}

/// Tensors sorted by offset must follow each other without overlap or hole up to the end of the file.
fn check_contiguous(tensors: &[TensorInfo], data_start: u64, file_len: u64) -> Result<(), String> {
    let mut at = data_start;
    let mut previous = "the header";
    for tensor in tensors {
        if tensor.begin != at {
            let what = if tensor.begin < at { "overlaps" } else { "leaves a hole after" };
            return Err(format!(
                "tensor {} begins at data byte {} and {what} {}, which ends at {}",
                shown(&tensor.name),
                tensor.begin - data_start,
                shown(previous),
                at - data_start
            ));
        }
        at = tensor.end;
        previous = &tensor.name;
    }
    if at != file_len {
        return Err(format!("its tensors end at byte {at}, but the file has {file_len} bytes"));
    }
    Ok(())
}

/// The JSON of a header, in the order of the file and with names that occur twice still visible.
struct RawHeader {
    tensors: Vec<(String, RawTensor)>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut raw = RawHeader { tensors: Vec::new(), metadata: BTreeMap::new() };
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        raw.metadata = map.next_value::<Option<_>>()?.unwrap_or_default();
                    } else {
                        raw.tensors.push((name, map.next_value()?));
                    }
                }
                Ok(raw)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// One entry as written. Offsets are signed so that a negative one is named as such.
struct RawTensor {
    dtype: String,
    shape: Vec<i128>,
    offsets: (i128, i128),
}

impl<'de> Deserialize<'de> for RawTensor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entry;
        impl<'de> Visitor<'de> for Entry {
            type Value = RawTensor;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with dtype, shape and data_offsets")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawTensor, A::Error> {
                use serde::de::Error;
                let (mut dtype, mut shape, mut offsets) = (None, None, None);
                while let Some(key) = map.next_key::<String>()? {
                    let twice = match key.as_str() {
                        "dtype" => dtype.replace(map.next_value()?).is_some(),
                        "shape" => shape.replace(map.next_value()?).is_some(),
                        "data_offsets" => offsets.replace(map.next_value()?).is_some(),
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                            false
                        }
                    };
                    if twice {
                        return Err(A::Error::custom(format!("{key} occurs twice")));
                    }
                }
                Ok(RawTensor {
                    dtype: dtype.ok_or_else(|| A::Error::missing_field("dtype"))?,
                    shape: shape.ok_or_else(|| A::Error::missing_field("shape"))?,
                    offsets: offsets.ok_or_else(|| A::Error::missing_field("data_offsets"))?,
                })
            }
        }
        deserializer.deserialize_map(Entry)
    }
}

impl RawTensor {
    /// Checks one entry on its own: type, shape, and that its bytes lie in the data and are as many as they should.
    fn check(&self, name: &str, data_start: u64, data_len: u64) -> Result<TensorInfo, String> {
        let dtype = TensorDtype::from_name(&self.dtype)
            .ok_or_else(|| format!("its dtype {} is unknown", shown(&self.dtype)))?;
        let shape =
            self.shape
                .iter()
                .map(|&size| usize::try_from(size))
                .collect::<Result<Vec<usize>, _>>()
                .map_err(|_| format!("its shape {} has an impossible dimension", shown_list(&self.shape)))?;
        // In element counts first, so that `elements()` cannot overflow later even for shapes with a 0.
        let elements = shape
            .iter()
            .try_fold(1usize, |product, &size| product.checked_mul(size))
            .ok_or_else(|| format!("the product of its shape {} overflows", shown_list(&shape)))?;
        let bits = (elements as u64)
            .checked_mul(dtype.bits())
            .ok_or_else(|| format!("{elements} elements of {dtype} overflow"))?;
        if bits % 8 != 0 {
            return Err(format!("{elements} elements of {dtype} do not fill whole bytes"));
        }
        let (begin, end) = self.offsets;
        if begin < 0 || end < begin || end > i128::from(data_len) {
            return Err(format!("its offsets [{begin}, {end}] are not inside the {data_len} bytes of data"));
        }
        // Both are at most `data_len`, a u64.
        let (begin, end) = (begin as u64, end as u64);
        if end - begin != bits / 8 {
            let (found, shape) = (end - begin, shown_list(&shape));
            return Err(format!("it has {found} bytes, but {dtype} {shape} needs {}", bits / 8));
        }
        Ok(TensorInfo {
            name: name.to_string(),
            dtype,
            shape,
            file: 0,
            begin: data_start + begin,
            end: data_start + end,
        })
    }
}
