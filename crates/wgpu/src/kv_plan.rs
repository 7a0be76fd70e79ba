//! How a KV cache lies on the device.

use crate::layout::Bounds;
use halfbyte_backend::kv::Record;
use halfbyte_backend::{Fault, KvShape};

/// A cache as `[sequences, heads of the shard, capacity]` records of words, keys and values apart, cut by
/// heads into shards that can be bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KvPlan {
    pub(crate) shape: KvShape,
    pub(crate) record: Record,
    /// First head and heads of each shard.
    pub(crate) shards: Vec<(usize, usize)>,
}

impl KvPlan {
    /// The plan for `shape`.
    ///
    /// # Errors
    /// [`Fault::Unsupported`] if one head's context cannot be bound.
    pub(crate) fn new(shape: &KvShape, bounds: &Bounds) -> Result<Self, Fault> {
        let record = Record::of(shape);
        let head_bytes = (shape.sequences * shape.capacity * record.words()) as u64 * 4;
        bounds.bindable("one head of the KV cache", head_bytes)?;
        let per_shard = ((bounds.shard / head_bytes.max(1)) as usize).clamp(1, shape.kv_heads.max(1));
        let shards =
            (0..shape.kv_heads).step_by(per_shard).map(|head| (head, per_shard.min(shape.kv_heads - head)));
        Ok(Self { shape: *shape, record, shards: shards.collect() })
    }

    /// Bytes of every buffer: keys and values of each shard in turn.
    pub(crate) fn buffers(&self) -> Vec<(String, u64)> {
        let bytes = |heads: usize| {
            (self.shape.sequences * heads * self.shape.capacity * self.record.words()) as u64 * 4
        };
        let both = |&(first, heads): &(usize, usize)| {
            [(format!(" keys {first}.."), bytes(heads)), (format!(" values {first}.."), bytes(heads))]
        };
        self.shards.iter().flat_map(both).collect()
    }
}
