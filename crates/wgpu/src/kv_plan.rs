//! How a KV cache lies on the device.

use crate::layout::Bounds;
use halfbyte_backend::kv::Record;
use halfbyte_backend::{Fault, KvShape, KvSpan};
use std::ops::Range;

/// Where the words of one head's records lie, of one sequence: the codes of all slots
/// `[slots, code_words]`, then their scales `[slots, scale_words]`, each from a multiple of 16 bytes on. So codes
/// of whole fours of words are read in loads of 16 bytes, one record after the other, whatever the scales take: a
/// record of q8 has 136 bytes at 128 features, 68 at 64.
///
/// What it is worth, for a token of Llama-2-7B (32 layers, 32 heads of 128 features) at position 4096: it reads 8.4 million
/// records, 1.14 GB of q8 or 604 MB of q4, by 67 or 34 million loads of 16 bytes and as many of 4 for scales. With scales
/// in the records it took 336 or 168 million loads of 4 bytes, neighbours' 16 bytes apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Planes {
    pub(crate) record: Record,
    pub(crate) slots: usize,
}

impl Planes {
    /// The word at which scales begin.
    pub(crate) fn scales_at(self) -> usize {
        (self.slots * self.record.code_words()).next_multiple_of(4)
    }

    /// Words of a head.
    pub(crate) fn words(self) -> usize {
        self.scales_at() + (self.slots * self.record.scale_words()).next_multiple_of(4)
    }

    /// Where the codes and the scales of `slots` lie in a head: the first byte and how many there are.
    fn places(self, slots: &Range<usize>) -> [(u64, u64); 2] {
        let place = |at: usize, words: usize| {
            (4 * (at + slots.start * words) as u64, 4 * (slots.len() * words) as u64)
        };
        [place(0, self.record.code_words()), place(self.scales_at(), self.record.scale_words())]
    }

    /// Codes and scales of some records as whole records.
    pub(crate) fn join(self, codes: &[u8], scales: &[u8]) -> Vec<u8> {
        let mut records = vec![0; codes.len() + scales.len()];
        let (code_bytes, scale_bytes) = self.bytes();
        for (i, record) in records.chunks_exact_mut(code_bytes + scale_bytes).enumerate() {
            let (own_codes, own_scales) = record.split_at_mut(code_bytes);
            own_codes.copy_from_slice(&codes[i * code_bytes..][..code_bytes]);
            own_scales.copy_from_slice(&scales[i * scale_bytes..][..scale_bytes]);
        }
        records
    }

    /// The way back of [`join`](Self::join).
    pub(crate) fn split(self, records: &[u8]) -> [Vec<u8>; 2] {
        let (code_bytes, scale_bytes) = self.bytes();
        let records = || records.chunks_exact(code_bytes + scale_bytes);
        let codes = records().flat_map(|record| &record[..code_bytes]).copied().collect();
        [codes, records().flat_map(|record| &record[code_bytes..]).copied().collect()]
    }

    fn bytes(self) -> (usize, usize) {
        (self.record.code_words() * 4, self.record.scale_words() * 4)
    }
}

/// A cache as `[sequences, heads of the shard]` of [`Planes`], keys and values apart, cut by heads into shards that can
/// be bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KvPlan {
    pub(crate) shape: KvShape,
    pub(crate) planes: Planes,
    /// First head and heads of each shard.
    pub(crate) shards: Vec<(usize, usize)>,
}

impl KvPlan {
    /// The plan for `shape`.
    ///
    /// # Errors
    /// [`Fault::Unsupported`] if one head's context cannot be bound.
    pub(crate) fn new(shape: &KvShape, bounds: &Bounds) -> Result<Self, Fault> {
        let planes = Planes { record: Record::of(shape), slots: shape.slots() };
        let head_bytes = (shape.sequences * planes.words()) as u64 * 4;
        bounds.bindable("one head of the KV cache", head_bytes)?;
        let per_shard = ((bounds.shard / head_bytes.max(1)) as usize).clamp(1, shape.kv_heads.max(1));
        let shards =
            (0..shape.kv_heads).step_by(per_shard).map(|head| (head, per_shard.min(shape.kv_heads - head)));
        Ok(Self { shape: *shape, planes, shards: shards.collect() })
    }

    /// Bytes of every buffer: keys and values of each shard in turn.
    pub(crate) fn buffers(&self) -> Vec<(String, u64)> {
        let bytes = |heads: usize| (self.shape.sequences * heads * self.planes.words()) as u64 * 4;
        let both = |&(first, heads): &(usize, usize)| {
            [(format!(" keys {first}.."), bytes(heads)), (format!(" values {first}.."), bytes(heads))]
        };
        self.shards.iter().flat_map(both).collect()
    }

    /// Where the codes and the scales of a span lie in the buffer of a shard of `heads` heads, for its head `head`: in one
    /// piece, or in two of a ring.
    pub(crate) fn places(
        &self,
        heads: usize,
        head: usize,
        span: &KvSpan,
    ) -> impl Iterator<Item = [(u64, u64); 2]> + use<> {
        let (planes, base) = (self.planes, ((span.sequence * heads + head) * self.planes.words()) as u64 * 4);
        let slots = self.shape.places(&span.positions);
        slots.map(move |slots| planes.places(&slots).map(|(at, bytes)| (base + at, bytes)))
    }
}
