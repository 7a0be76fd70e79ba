//! Which tensors a shard has, and where in its file each lies.

use super::WriteOptions;
use super::state_json::{longest_state, state_json};
use crate::dtype::TensorDtype;
use crate::error::{CheckpointError, shown};
use crate::header::TensorInfo;
use crate::selection::Fate;
use halfbyte_quant::{Absmax, NESTED_BLOCKSIZE, Quantized};
use serde_json::{Map, json};
use std::borrow::Cow;

/// A tensor of the source with what becomes of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Item<'a> {
    pub(super) tensor: &'a TensorInfo,
    pub(super) fate: Fate,
}

impl<'a> Item<'a> {
    pub(super) fn new(
        tensor: &'a TensorInfo,
        fate: Fate,
        options: &WriteOptions,
    ) -> Result<Item<'a>, CheckpointError> {
        let item = Item { tensor, fate };
        let width = options.storage.size().unwrap_or(1) as u64;
        if item.quantized() && !item.packed_bytes().is_multiple_of(width) {
            return Err(CheckpointError::Unsupported {
                what: format!(
                    "storing the {} packed bytes of {} as {}",
                    item.packed_bytes(),
                    shown(&tensor.name),
                    options.storage
                ),
                instead: "store them as uint8, which is the default".into(),
            });
        }
        Ok(item)
    }

    pub(super) fn name(&self) -> &'a str {
        &self.tensor.name
    }

    pub(super) fn quantized(&self) -> bool {
        self.fate != Fate::Keep
    }

    /// Bytes that are read for it.
    pub(super) fn bytes_in(&self) -> u64 {
        self.tensor.bytes()
    }

    /// Bytes of its tensors in a shard; of its quant state at most.
    pub(super) fn bytes(&self, options: &WriteOptions) -> u64 {
        self.entries(options).iter().map(|entry| entry.bytes).sum()
    }

    fn packed_bytes(&self) -> u64 {
        self.tensor.elements().div_ceil(2) as u64
    }

    /// The weight's dimensions as `[out, in]`.
    fn shape(&self) -> Vec<usize> {
        let mut shape = self.tensor.shape.clone();
        if self.fate == Fate::QuantizeTransposed {
            shape.reverse();
        }
        shape
    }

    /// The tensors that it becomes. The last one's length is the most that it can be.
    fn entries(&self, options: &WriteOptions) -> Vec<Entry> {
        let tensor = self.tensor;
        if !self.quantized() {
            let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
            return vec![Entry { name, dtype: tensor.dtype, shape, bytes: tensor.bytes(), offset: 0 }];
        }
        let name = &tensor.name;
        let spec = options.spec;
        let blocks = tensor.elements().div_ceil(spec.blocksize);
        let part = |suffix: &str, dtype: TensorDtype, len: usize| Entry {
            name: format!("{name}{suffix}"),
            dtype,
            shape: vec![len],
            bytes: (len * dtype.size().unwrap_or(1)) as u64,
            offset: 0,
        };
        let width = options.storage.size().unwrap_or(1);
        let packed = self.packed_bytes() as usize / width;
        let mut entries = vec![Entry {
            name: name.clone(),
            dtype: options.storage,
            shape: vec![packed, 1],
            bytes: self.packed_bytes(),
            offset: 0,
        }];
        if spec.double_quant {
            let nested = blocks.div_ceil(NESTED_BLOCKSIZE);
            entries.push(part(".absmax", TensorDtype::U8, blocks));
            entries.push(part(".nested_absmax", TensorDtype::F32, nested));
            entries.push(part(".nested_quant_map", TensorDtype::F32, 256));
        } else {
            entries.push(part(".absmax", TensorDtype::F32, blocks));
        }
        entries.push(part(".quant_map", TensorDtype::F32, 16));
        let state = longest_state(spec, original_dtype(tensor), &self.shape());
        entries.push(part(&self.state_suffix(options), TensorDtype::U8, state));
        entries
    }

    fn state_suffix(&self, options: &WriteOptions) -> String {
        format!(".quant_state.bitsandbytes__{}", options.spec.quant_type)
    }

    /// The bytes of its tensors after quantization, each with what follows the weight's name.
    pub(super) fn parts(&self, data: Quantized, options: &WriteOptions) -> Vec<(Cow<'static, str>, Vec<u8>)> {
        let floats =
            |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        let mut parts = vec![(Cow::Borrowed(".quant_map"), floats(&data.code))];
        let offset = match data.absmax {
            Absmax::Plain(values) => {
                parts.push((".absmax".into(), floats(&values)));
                None
            }
            Absmax::Nested { codes, absmax, offset, code, .. } => {
                parts.push((".absmax".into(), codes));
                parts.push((".nested_absmax".into(), floats(&absmax)));
                parts.push((".nested_quant_map".into(), floats(code.as_slice())));
                Some(offset)
            }
        };
        let state = state_json(options.spec, original_dtype(self.tensor), &self.shape(), offset);
        parts.push((self.state_suffix(options).into(), state.into_bytes()));
        parts.push(("".into(), data.packed));
        parts
    }
}

/// The type that a weight dequantizes to. PyTorch quantizes 16- and 32-bit floats only.
pub(super) fn original_dtype(tensor: &TensorInfo) -> TensorDtype {
    match tensor.dtype {
        TensorDtype::F64 => TensorDtype::F32,
        dtype => dtype,
    }
}

/// A tensor of a shard.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) name: String,
    dtype: TensorDtype,
    shape: Vec<usize>,
    pub(super) bytes: u64,
    /// From the beginning of the data.
    pub(super) offset: u64,
}

/// One shard: its tensors and their places.
///
/// Wide types come first, as in safetensors' own writer, so that every tensor is aligned to its type. Quant
/// states come last: how long they are is known only when their weight has been quantized, and their place
/// moves with it. The header before them is reserved at its greatest length and padded with spaces.
#[derive(Debug, Clone)]
pub(super) struct Layout<'i, 'a> {
    pub(super) items: &'i [Item<'a>],
    /// Tensors whose place is known beforehand.
    pub(super) fixed: Vec<Entry>,
    /// Quant states, in the order of `items`.
    pub(super) states: Vec<Entry>,
    /// Bytes before the data: 8 and the header's.
    pub(super) data_start: u64,
}

impl<'i, 'a> Layout<'i, 'a> {
    pub(super) fn new(items: &'i [Item<'a>], options: &WriteOptions) -> Layout<'i, 'a> {
        let (mut fixed, mut states) = (Vec::new(), Vec::new());
        for item in items {
            let mut entries = item.entries(options);
            if item.quantized() {
                states.extend(entries.pop());
            }
            fixed.append(&mut entries);
        }
        fixed.sort_by(|a, b| b.dtype.bits().cmp(&a.dtype.bits()).then_with(|| a.name.cmp(&b.name)));
        let mut at = 0;
        for entry in fixed.iter_mut().chain(&mut states) {
            entry.offset = at;
            at += entry.bytes;
        }
        let longest = header_json(fixed.iter().chain(&states)).len() as u64;
        Layout { items, fixed, states, data_start: 8 + longest.next_multiple_of(8) }
    }

    /// Where the quant states begin.
    pub(super) fn states_start(&self) -> u64 {
        self.states
            .first()
            .map_or_else(|| self.fixed.iter().map(|entry| entry.bytes).sum(), |first| first.offset)
    }

    /// The names of all tensors.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.fixed.iter().chain(&self.states).map(|entry| entry.name.as_str())
    }

    /// Everything before the data, now that the quant states' lengths are known.
    pub(super) fn prefix(&self, states: &[usize]) -> Vec<u8> {
        let mut at = self.states_start();
        let placed: Vec<Entry> = self
            .states
            .iter()
            .zip(states)
            .map(|(entry, &len)| {
                let entry = Entry { shape: vec![len], bytes: len as u64, offset: at, ..entry.clone() };
                at += entry.bytes;
                entry
            })
            .collect();
        let json = header_json(self.fixed.iter().chain(&placed));
        let mut prefix = (self.data_start - 8).to_le_bytes().to_vec();
        prefix.extend_from_slice(json.as_bytes());
        prefix.resize(self.data_start as usize, b' ');
        prefix
    }
}

/// A safetensors header. `format: pt` is what transformers insists on.
fn header_json<'a>(entries: impl Iterator<Item = &'a Entry>) -> String {
    let mut map = Map::new();
    map.insert("__metadata__".into(), json!({"format": "pt"}));
    for entry in entries {
        let value = json!({
            "dtype": entry.dtype.name(),
            "shape": entry.shape,
            "data_offsets": [entry.offset, entry.offset + entry.bytes],
        });
        map.insert(entry.name.clone(), value);
    }
    serde_json::Value::Object(map).to_string()
}
