//! Norms and rotates the keys of many rows and stores keys and values in the cache: before `attend` where rows
//! attend to each other. A cube for each row and key-value head.

use super::heads::{Rotary, norm_heads, rotate_heads};
use super::kv::{encode_word, slot_of};
use super::places::row_word;
use super::variant::Norming;
use cubecl::prelude::*;
use halfbyte_backend::kv::Record;

/// Units of a cube.
pub(crate) const UNITS: usize = 64;

/// What is fixed when the kernel is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct StoreVariant {
    pub record: Record,
    pub rotary: Option<Rotary>,
    pub norm: Norming,
    /// No cache: slots are rows.
    pub encoder: bool,
    /// Position `p` is in slot `p % slots`.
    pub ring: bool,
}

/// The kernel. `keys` and `values` `[sequences, kv_heads, slots, record]`; `key_at` and `value_at` are the
/// columns of the first head's in rows of q|k|v.
#[cube(launch_unchecked)]
pub(crate) fn kv_store(
    qkv: &Array<f32>,
    rope: &Array<f32>,
    norm: &Array<f32>,
    places: &Array<u32>,
    keys: &mut Array<u32>,
    values: &mut Array<u32>,
    qkv_stride: u32,
    key_at: u32,
    value_at: u32,
    kv_heads: u32,
    slots: u32,
    eps: f32,
    offset: f32,
    #[comptime] variant: StoreVariant,
) {
    let record = comptime!(variant.record);
    let head_dim = comptime!(variant.record.head_dim);
    let head = CUBE_POS_X as usize;
    let row = CUBE_POS_Y as usize;
    let mut vectors = SharedMemory::<f32>::new(comptime!(2 * variant.record.head_dim));
    let mut statistics = SharedMemory::<f32>::new(2usize);

    let from = row * qkv_stride as usize + head * head_dim;
    let mut d = UNIT_POS as usize;
    while d < head_dim {
        vectors[d] = qkv[from + key_at as usize + d];
        vectors[head_dim + d] = qkv[from + value_at as usize + d];
        d += UNITS;
    }
    sync_cube();
    norm_heads(
        &mut vectors,
        &mut statistics,
        norm,
        eps,
        offset,
        0usize,
        1usize,
        head_dim,
        variant.norm,
        UNITS,
    );
    let position = row_word(places, row, 2usize) as usize;
    rotate_heads(&mut vectors, rope, position, 1usize, 0usize, 1usize, head_dim, variant.rotary, UNITS);
    sync_cube();
    let mut sequence = 0usize;
    let mut slot = row;
    if comptime!(!variant.encoder) {
        sequence = row_word(places, row, 1usize) as usize;
        slot = slot_of(position, slots, variant.ring);
    }
    let words = comptime!(variant.record.words());
    let to = ((sequence * kv_heads as usize + head) * slots as usize + slot) * words;
    let mut word = UNIT_POS as usize;
    while word < words {
        keys[to + word] = encode_word(&vectors, 0usize, word, record);
        values[to + word] = encode_word(&vectors, head_dim, word, record);
        word += UNITS;
    }
}
