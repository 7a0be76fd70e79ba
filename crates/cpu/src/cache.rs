//! The KV cache in its stored form.
//!
//! Keys and values are each `[sequences, kv_heads, slots]` records as [`KvRows`] has them: of Q4, sixteen
//! neighbours decode with one mask.

use crate::buffer::{Shortage, zeroed};
use crate::simd::portable::widen_f16;
use half::f16;
use halfbyte_backend::kv::KV_BLOCK;
use halfbyte_backend::{Fault, KvRows, KvShape, KvSpan, KvType};
use std::ops::Range;

/// Keys and values of one layer.
#[derive(Debug)]
pub(crate) struct Cache {
    /// Its shape.
    pub shape: KvShape,
    /// `[sequences, kv_heads, slots, head_bytes]`
    pub keys: Vec<u8>,
    /// `[sequences, kv_heads, slots, head_bytes]`
    pub values: Vec<u8>,
}

impl Cache {
    /// Allocates an empty cache.
    pub fn reserve(shape: KvShape) -> Result<Self, Shortage> {
        let half = (shape.bytes() / 2) as usize;
        Ok(Self { shape, keys: zeroed(half)?, values: zeroed(half)? })
    }

    /// Bytes of keys and values, as allocated.
    pub fn bytes(&self) -> u64 {
        (self.keys.len() + self.values.len()) as u64
    }

    /// Bytes of the records of one head of one sequence: `[slots, head_bytes]`.
    pub fn head_stride(&self) -> usize {
        self.shape.slots() * self.shape.head_bytes() as usize
    }

    /// Where the records of `head` of `sequence` begin.
    pub fn head_start(&self, sequence: usize, head: usize) -> usize {
        (sequence * self.shape.kv_heads + head) * self.head_stride()
    }

    /// Where the records of a span lie, head by head.
    fn ranges(&self, span: &KvSpan) -> impl Iterator<Item = Range<usize>> {
        let record = self.shape.head_bytes() as usize;
        let begin = self.head_start(span.sequence, 0);
        let stride = self.head_stride();
        let places = self.shape.places(&span.positions);
        (0..self.shape.kv_heads).flat_map(move |head| {
            let head = begin + head * stride;
            places.clone().map(move |slots| head + slots.start * record..head + slots.end * record)
        })
    }

    /// A copy of a span's keys and values.
    ///
    /// # Errors
    /// [`Fault::Invalid`] if the cache does not reach that far.
    pub fn rows(&self, span: &KvSpan) -> Result<KvRows, Fault> {
        let bytes = span.bytes(&self.shape)?;
        let copy = |from: &[u8]| {
            let mut to = Vec::with_capacity(bytes);
            self.ranges(span).for_each(|range| to.extend_from_slice(&from[range]));
            to
        };
        Ok(KvRows { keys: copy(&self.keys), values: copy(&self.values) })
    }

    /// Puts keys and values into a span.
    ///
    /// # Errors
    /// [`Fault::Invalid`] if they are not as many, or the cache does not reach that far.
    pub fn set_rows(&mut self, span: &KvSpan, rows: &KvRows) -> Result<(), Fault> {
        span.check(&self.shape, rows)?;
        let mut from = 0;
        let ranges: Vec<Range<usize>> = self.ranges(span).collect();
        for range in ranges {
            let len = range.len();
            self.keys[range.clone()].copy_from_slice(&rows.keys[from..from + len]);
            self.values[range].copy_from_slice(&rows.values[from..from + len]);
            from += len;
        }
        Ok(())
    }
}

/// Stores a head `[head_dim]` as a record `[head_bytes]`.
pub(crate) fn encode(dtype: KvType, head: &[f32], record: &mut [u8]) {
    match dtype {
        KvType::F32 => {
            for (bytes, value) in record.chunks_exact_mut(4).zip(head) {
                bytes.copy_from_slice(&value.to_le_bytes());
            }
        }
        KvType::F16 => {
            for (bytes, &value) in record.chunks_exact_mut(2).zip(head) {
                bytes.copy_from_slice(&f16::from_f32(value).to_le_bytes());
            }
        }
        KvType::Q8 => {
            let (codes, scales) = record.split_at_mut(head.len());
            let blocks =
                head.chunks(KV_BLOCK).zip(codes.chunks_mut(KV_BLOCK)).zip(scales.chunks_exact_mut(2));
            for ((head, codes), bytes) in blocks {
                let (scale, inverse) = block_scale(head, 127.0);
                bytes.copy_from_slice(&scale.to_le_bytes());
                for (code, value) in codes.iter_mut().zip(head) {
                    *code = quantize(*value, inverse, 127.0) as u8;
                }
            }
        }
        KvType::Q4 => {
            let (codes, scales) = record.split_at_mut(head.len().div_ceil(2));
            let blocks =
                head.chunks(KV_BLOCK).zip(codes.chunks_mut(KV_BLOCK / 2)).zip(scales.chunks_exact_mut(2));
            for ((head, codes), bytes) in blocks {
                let (scale, inverse) = block_scale(head, 7.0);
                bytes.copy_from_slice(&scale.to_le_bytes());
                let (low, high) = head.split_at(codes.len());
                for (i, code) in codes.iter_mut().enumerate() {
                    let low = (quantize(low[i], inverse, 7.0) + 8) as u8;
                    let high = high.get(i).map_or(8, |&value| (quantize(value, inverse, 7.0) + 8) as u8);
                    *code = low | high << 4;
                }
            }
        }
    }
}

/// The scale of a block as it is stored, and its reciprocal (0 for an empty block).
fn block_scale(block: &[f32], levels: f32) -> (f16, f32) {
    let absmax = block.iter().fold(0.0f32, |max, value| max.max(value.abs()));
    let scale = f16::from_f32(absmax / levels);
    let inverse = if scale.to_f32() > 0.0 { 1.0 / scale.to_f32() } else { 0.0 };
    (scale, inverse)
}

/// The code of a value; NaN takes 0.
fn quantize(value: f32, inverse: f32, levels: f32) -> i8 {
    (value * inverse).round_ties_even().clamp(-levels, levels) as i8
}

/// Reads a record `[head_bytes]` back into `[head_dim]`.
pub(crate) fn decode(dtype: KvType, record: &[u8], head: &mut [f32]) {
    match dtype {
        KvType::F32 => {
            for (value, bytes) in head.iter_mut().zip(record.chunks_exact(4)) {
                *value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
        }
        KvType::F16 => {
            for (value, bytes) in head.iter_mut().zip(record.chunks_exact(2)) {
                *value = f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
            }
        }
        KvType::Q8 | KvType::Q4 => {
            let dim = head.len();
            for block in 0..dim.div_ceil(KV_BLOCK) {
                let start = block * KV_BLOCK;
                let end = head.len().min(start + KV_BLOCK);
                decode_block(dtype, record, dim, block, &mut head[start..end]);
            }
        }
    }
}

/// The scale of block `block` of a [`KvType::Q8`] or [`KvType::Q4`] record.
#[inline(always)]
pub(crate) fn record_scale(record: &[u8], blocks: usize, block: usize) -> f32 {
    let at = record.len() - 2 * blocks + 2 * block;
    // In the middle of kernels: a call would cost them their registers.
    widen_f16(u16::from_le_bytes([record[at], record[at + 1]]))
}

/// Reads block `block` of a [`KvType::Q8`] or [`KvType::Q4`] record of `dim` features: `head` is the
/// block's features, at most [`KV_BLOCK`].
pub(crate) fn decode_block(dtype: KvType, record: &[u8], dim: usize, block: usize, head: &mut [f32]) {
    let scale = record_scale(record, dim.div_ceil(KV_BLOCK), block);
    let (start, len) = (block * KV_BLOCK, head.len());
    if dtype == KvType::Q8 {
        for (value, code) in head.iter_mut().zip(&record[start..]) {
            *value = f32::from(*code as i8) * scale;
        }
    } else {
        let codes = &record[start / 2..];
        let (low, high) = head.split_at_mut(len.div_ceil(2));
        for (value, code) in low.iter_mut().zip(codes) {
            *value = (f32::from(code & 15) - 8.0) * scale;
        }
        for (value, code) in high.iter_mut().zip(codes) {
            *value = (f32::from(code >> 4) - 8.0) * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use halfbyte_backend::kv::round_trip;
    use halfbyte_backend::random::Stream;

    #[test]
    fn stored_heads_read_back_as_the_round_trip_defines() {
        let mut stream = Stream::new(11);
        for dtype in [KvType::F32, KvType::F16, KvType::Q8, KvType::Q4] {
            for head_dim in [1, 2, 31, 32, 33, 64, 80, 95, 128] {
                let shape = KvShape { sequences: 1, kv_heads: 1, head_dim, capacity: 1, ring: None, dtype };
                let mut head: Vec<f32> = (0..head_dim).map(|_| stream.normal() * 3.0).collect();
                let mut record = vec![0; shape.head_bytes() as usize];
                encode(dtype, &head, &mut record);
                let mut read = vec![f32::NAN; head_dim];
                decode(dtype, &record, &mut read);
                round_trip(dtype, &mut head);
                assert_eq!(read, head, "{dtype:?} of {head_dim}");
            }
        }
    }
}
