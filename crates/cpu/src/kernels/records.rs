//! Keys and values as attention reads them: sixteen features of a stored record at a time.

use crate::bound::AttendView;
use crate::cache::{decode, decode_block, record_scale};
use crate::simd::Lanes;
use halfbyte_backend::kv::KV_BLOCK;
use halfbyte_backend::{KvShape, KvType};

/// Keys or values of one head of one sequence.
#[derive(Clone, Copy)]
pub(super) struct Records<'a> {
    /// Element type.
    pub dtype: KvType,
    /// The first record begins here.
    bytes: &'a [u8],
    /// Bytes from one record to the next.
    stride: usize,
    /// Bytes of a record.
    len: usize,
    /// The slot of record 0.
    first: usize,
    /// Slots, of which the first follows on the last.
    slots: usize,
}

impl<'a> Records<'a> {
    /// The records from `index` on.
    #[inline(always)]
    pub fn from(&self, index: usize) -> Self {
        Self { first: (self.first + index) % self.slots, ..*self }
    }

    /// Record `index`.
    #[inline(always)]
    pub fn get(&self, index: usize) -> &'a [u8] {
        let slot = self.first + index;
        // A division only where a ring goes around.
        let slot = if slot < self.slots { slot } else { slot % self.slots };
        &self.bytes[slot * self.stride..][..self.len]
    }
}

/// Keys or values in a cache: `bytes` are those of one head of one sequence, and may be more.
pub(super) fn stored(shape: KvShape, bytes: &[u8]) -> Records<'_> {
    let len = shape.head_bytes() as usize;
    Records { dtype: shape.dtype, bytes, stride: len, len, first: 0, slots: shape.slots() }
}

/// Keys and values of `head` in the rows of a submission, which are counted from its start, as `submitted_rows` does.
pub(super) fn submitted<'a>(
    view: &AttendView<'_>,
    qkv: &'a [f32],
    head: usize,
) -> (Records<'a>, Records<'a>) {
    let (heads, kv_heads, dim) = (view.step.heads, view.step.kv_heads, view.step.head_dim);
    let of = |column: usize| Records {
        dtype: KvType::F32,
        bytes: bytemuck::cast_slice(&qkv[column..]),
        stride: view.width() * 4,
        len: dim * 4,
        first: 0,
        slots: usize::MAX,
    };
    (of((heads + head) * dim), of((heads + kv_heads + head) * dim))
}

/// [`KvType`]s as constants, so that loops are compiled for each.
pub(super) const F32: u8 = 0;
pub(super) const F16: u8 = 1;
pub(super) const Q8: u8 = 2;
pub(super) const Q4: u8 = 3;

pub(super) const fn kv_type(kind: u8) -> KvType {
    match kind {
        F32 => KvType::F32,
        F16 => KvType::F16,
        Q8 => KvType::Q8,
        _ => KvType::Q4,
    }
}

/// Features that are read in sixteens; the others one by one.
#[inline(always)]
pub(super) const fn whole(dtype: KvType, dim: usize) -> usize {
    match dtype {
        KvType::F32 | KvType::F16 => dim / 16 * 16,
        KvType::Q8 | KvType::Q4 => dim / KV_BLOCK * KV_BLOCK,
    }
}

/// Features `16 chunk ..` of a record, times their scale.
#[inline(always)]
pub(super) fn sixteen<L: Lanes, const T: u8>(lanes: L, record: &[u8], dim: usize, chunk: usize) -> L::V {
    // `whole` makes sure that the chunk is.
    match kv_type(T) {
        KvType::F32 => lanes.load_f32(&record.as_chunks().0[chunk]),
        KvType::F16 => lanes.load_f16(&record.as_chunks().0[chunk]),
        KvType::Q8 => {
            let scale = record_scale(record, dim.div_ceil(KV_BLOCK), chunk / 2);
            lanes.mul(lanes.load_i8(&record.as_chunks().0[chunk]), lanes.splat(scale))
        }
        KvType::Q4 => {
            let scale = record_scale(record, dim.div_ceil(KV_BLOCK), chunk / 2);
            let (low, high) = lanes.load_nibbles(&record.as_chunks().0[chunk / 2]);
            lanes.mul(if chunk.is_multiple_of(2) { low } else { high }, lanes.splat(scale))
        }
    }
}

/// The features of a record from `from` on.
#[inline(always)]
pub(super) fn tail(dtype: KvType, record: &[u8], dim: usize, from: usize, head: &mut [f32; KV_BLOCK]) {
    match dtype {
        KvType::F32 => decode(dtype, &record[from * 4..], &mut head[..dim - from]),
        KvType::F16 => decode(dtype, &record[from * 2..], &mut head[..dim - from]),
        KvType::Q8 | KvType::Q4 => decode_block(dtype, record, dim, from / KV_BLOCK, &mut head[..dim - from]),
    }
}
