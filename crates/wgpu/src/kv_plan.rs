//! How a KV cache lies on the device.

use crate::layout::Bounds;
use halfbyte_backend::kv::KV_BLOCK;
use halfbyte_backend::{Fault, KvShape, KvType};

/// A cache as `[sequences, heads of the shard, capacity]` records of words, keys and values apart, cut by
/// heads into shards that can be bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KvPlan {
    pub(crate) shape: KvShape,
    pub(crate) record: Record,
    /// First head and heads of each shard.
    pub(crate) shards: Vec<(usize, usize)>,
}

/// One head's key or value in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    /// Words that hold codes.
    pub(crate) code_words: usize,
    /// All words, scales included.
    pub(crate) words: usize,
    /// The type as the shaders number it.
    pub(crate) dtype: u32,
}

impl Record {
    /// The record of a head of `head_dim` features.
    pub(crate) fn new(dtype: KvType, head_dim: usize) -> Self {
        let scale_words = head_dim.div_ceil(KV_BLOCK).div_ceil(2);
        let (code_words, scale_words, dtype) = match dtype {
            KvType::F32 => (head_dim, 0, 0),
            KvType::F16 => (head_dim.div_ceil(2), 0, 1),
            KvType::Q8 => (head_dim.div_ceil(4), scale_words, 2),
            KvType::Q4 => (head_dim.div_ceil(8), scale_words, 3),
        };
        Self { code_words, words: code_words + scale_words, dtype }
    }
}

impl KvPlan {
    /// The plan for `shape`.
    ///
    /// # Errors
    /// [`Fault::Unsupported`] if one head's context cannot be bound.
    pub(crate) fn new(shape: &KvShape, bounds: &Bounds) -> Result<Self, Fault> {
        let record = Record::new(shape.dtype, shape.head_dim);
        let head_bytes = (shape.sequences * shape.capacity * record.words) as u64 * 4;
        bounds.bindable("one head of the KV cache", head_bytes)?;
        let per_shard = ((bounds.shard / head_bytes.max(1)) as usize).clamp(1, shape.kv_heads.max(1));
        let shards =
            (0..shape.kv_heads).step_by(per_shard).map(|head| (head, per_shard.min(shape.kv_heads - head)));
        Ok(Self { shape: *shape, record, shards: shards.collect() })
    }

    /// Bytes of every buffer: keys and values of each shard in turn.
    pub(crate) fn buffers(&self) -> Vec<(String, u64)> {
        let bytes = |heads: usize| {
            (self.shape.sequences * heads * self.shape.capacity * self.record.words) as u64 * 4
        };
        let both = |&(first, heads): &(usize, usize)| {
            [(format!(" keys {first}.."), bytes(heads)), (format!(" values {first}.."), bytes(heads))]
        };
        self.shards.iter().flat_map(both).collect()
    }
}
