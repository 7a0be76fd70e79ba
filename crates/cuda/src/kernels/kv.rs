//! A head's key or value to and from its [`Record`]. [`halfbyte_backend::kv`] defines the values.

use super::dense::{narrow_f16, widen_f16};
use cubecl::prelude::*;
use halfbyte_backend::KvType;
use halfbyte_backend::kv::{KV_BLOCK, Record};

/// The largest code.
fn levels(record: Record) -> f32 {
    if record.dtype == KvType::Q8 { 127.0 } else { 7.0 }
}

/// The f16 scale of block `block` of the vector at `at`, as bits.
#[cube]
fn block_scale(vectors: &SharedMemory<f32>, at: usize, block: usize, #[comptime] record: Record) -> u32 {
    let mut absmax = 0.0f32;
    let end = min(block * KV_BLOCK + KV_BLOCK, comptime!(record.head_dim));
    for d in block * KV_BLOCK..end {
        absmax = max(absmax, f32::abs(vectors[at + d]));
    }
    narrow_f16(absmax / comptime!(levels(record)))
}

/// Word `word` of the record of the vector at `at` in shared memory.
#[cube]
pub(crate) fn encode_word(
    vectors: &SharedMemory<f32>,
    at: usize,
    word: usize,
    #[comptime] record: Record,
) -> u32 {
    let head_dim = comptime!(record.head_dim);
    let per_word = comptime!(record.per_word());
    let mut bits = 0u32;
    if comptime!(record.dtype == KvType::F32) {
        bits = u32::reinterpret(vectors[at + word]);
    } else if comptime!(record.dtype == KvType::F16) {
        bits = narrow_f16(vectors[at + word * 2]);
        if word * 2 + 1 < head_dim {
            bits |= narrow_f16(vectors[at + word * 2 + 1]) << 16u32;
        }
    } else if word >= comptime!(record.code_words()) {
        let block = (word - comptime!(record.code_words())) * 2;
        bits = block_scale(vectors, at, block, record);
        if (block + 1) * KV_BLOCK < head_dim {
            bits |= block_scale(vectors, at, block + 1, record) << 16u32;
        }
    } else {
        let levels = comptime!(levels(record));
        let scale = widen_f16(block_scale(vectors, at, word * per_word / KV_BLOCK, record));
        let inverse = select(scale > 0.0f32, 1.0f32 / scale, 0.0f32);
        #[unroll]
        for i in 0..per_word {
            let d = word * per_word + i;
            if d < head_dim {
                // Codes are stored from 1 up, as unsigned fields.
                let code = clamp(f32::round(vectors[at + d] * inverse), -levels, levels) + levels + 1.0f32;
                bits |= u32::cast_from(code) << comptime!((i * (32 / per_word)) as u32);
            }
        }
    }
    bits
}

/// The slot of a position among `slots`.
#[cube]
pub(crate) fn slot_of(position: usize, slots: u32, #[comptime] ring: bool) -> usize {
    let mut slot = position;
    if comptime!(ring) {
        slot = position % slots as usize;
    }
    slot
}

/// Element `j` of a word of codes, whose block has the scale of these f16 bits.
#[cube]
pub(crate) fn decode_element(bits: u32, scale: f32, #[comptime] j: usize, #[comptime] record: Record) -> f32 {
    let per_word = comptime!(record.per_word());
    let width = comptime!(32 / per_word);
    if comptime!(record.dtype == KvType::F32) {
        f32::reinterpret(bits)
    } else if comptime!(record.dtype == KvType::F16) {
        widen_f16((bits >> comptime!((j * width) as u32)) & 0xFFFFu32)
    } else {
        let mask = comptime!((1u32 << width) - 1);
        let code = (bits >> comptime!((j * width) as u32)) & mask;
        (f32::cast_from(code) - comptime!(levels(record) + 1.0)) * scale
    }
}
