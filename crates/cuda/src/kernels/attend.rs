//! Softmax attention of a tile of neighbouring rows of one sequence, for some query heads of one key-value head,
//! over one slice ("split") of the keys: keys and values are read once for all of them. The softmax runs online
//! (Milakov & Gimelshein 2018, arXiv:1805.02867) over `keys` keys at a time.
//!
//! *Fresh* (decode: one row a sequence): the split that holds the row's own position norms, rotates and rounds
//! its key, and one cube stores key and value, so that decode needs no other launch. *Parts*: the result is left
//! in splits, to be merged by the product that reads it.

#![allow(clippy::collapsible_if, reason = "what is decided when the kernel is compiled stands apart")]

use super::dense::widen_f16;
use super::epilogue::soft_cap;
use super::heads::{Rotary, norm_heads, rotate_heads};
use super::kv::{decode_element, encode_word, slot_of};
use super::places::tile_word;
use super::variant::Norming;
use cubecl::prelude::*;
use halfbyte_backend::KvType;
use halfbyte_backend::kv::{KV_BLOCK, Record};

/// Units of a cube.
pub(crate) const UNITS: usize = 128;
/// The score of what is not seen.
const NOTHING: f32 = -1.0e30;

/// What is fixed when the kernel is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct AttendVariant {
    pub record: Record,
    pub rotary: Option<Rotary>,
    pub q_norm: Norming,
    /// None unless `fresh`: otherwise `kv_store` norms keys.
    pub k_norm: Norming,
    pub fresh: bool,
    pub parts: bool,
    /// No cache: slots are rows.
    pub encoder: bool,
    /// Position `p` is in slot `p % slots`.
    pub ring: bool,
    pub causal: bool,
    /// Cubes that share the query heads of a key-value head.
    pub pieces: usize,
    /// Query heads of a cube.
    pub heads_here: usize,
    /// Rows of a tile.
    pub tile_rows: usize,
    /// Keys at a time.
    pub keys: usize,
    /// Units that share a score.
    pub dot_lanes: usize,
    pub splits: usize,
    /// Fewer keys are not split further.
    pub split_keys: usize,
}

impl AttendVariant {
    /// Query vectors of a cube.
    fn queries(&self) -> usize {
        self.tile_rows * self.heads_here
    }

    /// Head vectors in shared memory.
    fn vectors(&self) -> usize {
        self.queries() + if self.fresh { 2 } else { 0 }
    }

    /// Elements of the result that a unit owns.
    fn owned(&self) -> usize {
        (self.queries() * self.record.head_dim).div_ceil(UNITS)
    }

    /// Words of the own key's and value's records in shared memory; an array cannot be empty.
    fn record_words(&self) -> usize {
        if self.fresh { 2 * self.record.words() } else { 1 }
    }
}

/// The kernel. A cube for each (key-value head, piece), split and tile.
///
/// - `qkv` `[rows, qkv_stride]`; `key_at`, `value_at` the columns of the first head's key and value.
/// - `keys`, `values` `[sequences, kv_heads, slots, record]`.
/// - `out` `[rows, out_stride]`, or in parts `[rows, heads, splits, head_dim]`.
/// - `statistics` in parts `[rows, heads, splits, (largest score, sum)]`.
///
/// `window` 0 is none, as is `cap`.
#[cube(launch_unchecked)]
pub(crate) fn attend(
    qkv: &Array<f32>,
    rope: &Array<f32>,
    q_norm: &Array<f32>,
    k_norm: &Array<f32>,
    places: &Array<u32>,
    keys: &mut Array<u32>,
    values: &mut Array<u32>,
    out: &mut Array<f32>,
    statistics: &mut Array<f32>,
    qkv_stride: u32,
    key_at: u32,
    value_at: u32,
    heads: u32,
    kv_heads: u32,
    slots: u32,
    window: u32,
    out_stride: u32,
    scale: f32,
    cap: f32,
    q_eps: f32,
    q_offset: f32,
    k_eps: f32,
    k_offset: f32,
    #[comptime] variant: AttendVariant,
) {
    let head_dim = comptime!(variant.record.head_dim);
    let words = comptime!(variant.record.words());
    let queries = comptime!(variant.queries());
    let here = comptime!(variant.heads_here);
    let tile_keys = comptime!(variant.keys);
    let pitch = comptime!(variant.record.head_dim + 1);
    let unit = UNIT_POS as usize;

    let kv_head = CUBE_POS_X as usize / comptime!(variant.pieces);
    let group = heads as usize / kv_heads as usize;
    let first_head = kv_head * group + CUBE_POS_X as usize % comptime!(variant.pieces) * here;
    let split = CUBE_POS_Y as usize;
    let tile = CUBE_POS_Z as usize;
    let first_row = tile_word(places, tile, 0usize);
    let tile_rows = tile_word(places, tile, 1usize);
    let position = tile_word(places, tile, 3usize);
    let run_first = tile_word(places, tile, 4usize);
    let run_rows = tile_word(places, tile, 5usize);

    let mut own_slot = position;
    let mut sequence = tile_word(places, tile, 2usize);
    let mut low = 0usize;
    if comptime!(variant.encoder) {
        own_slot = first_row;
        sequence = 0usize;
        low = run_first;
    }
    let base = (sequence * kv_heads as usize + kv_head) * slots as usize * words;
    if window > 0u32 && own_slot + 1 > window as usize {
        low = max(low, own_slot + 1 - window as usize);
    }
    let mut end = own_slot + run_first + run_rows - first_row;
    if comptime!(variant.causal) {
        end = own_slot + tile_rows;
    }
    let split_keys = comptime!(variant.split_keys);
    let wanted = (end - low).div_ceil(split_keys);
    let active = max(1usize, min(wanted, comptime!(variant.splits)));
    let span = (end - low).div_ceil(active).div_ceil(tile_keys) * tile_keys;
    let begin = low + split * span;
    let to = min(end, begin + span);
    if begin >= to {
        if comptime!(variant.parts) {
            if unit < here {
                let at = ((first_row * heads as usize + first_head + unit) * comptime!(variant.splits)
                    + split)
                    * 2;
                statistics[at] = NOTHING;
                statistics[at + 1] = 0.0f32;
            }
        }
        terminate!();
    }

    let mut vectors = SharedMemory::<f32>::new(comptime!(variant.vectors() * variant.record.head_dim));
    let mut moments = SharedMemory::<f32>::new(comptime!(2 * variant.queries()));
    let mut tile_values = SharedMemory::<f32>::new(comptime!(variant.keys * (variant.record.head_dim + 1)));
    let mut scores =
        SharedMemory::<f32>::new(comptime!(variant.queries() * variant.keys * variant.dot_lanes));
    let mut largest = SharedMemory::<f32>::new(queries);
    let mut totals = SharedMemory::<f32>::new(queries);
    let mut factors = SharedMemory::<f32>::new(queries);
    let mut records = SharedMemory::<u32>::new(comptime!(variant.record_words()));

    let mut i = unit;
    while i < comptime!(variant.queries() * variant.record.head_dim) {
        let query = i / head_dim;
        let row = query / here;
        let mut value = 0.0f32;
        if row < tile_rows {
            let head = first_head + query % here;
            value = qkv[(first_row + row) * qkv_stride as usize + head * head_dim + i % head_dim];
        }
        vectors[i] = value;
        i += UNITS;
    }
    if comptime!(variant.fresh) {
        let from = first_row * qkv_stride as usize + kv_head * head_dim;
        let mut d = unit;
        while d < head_dim {
            vectors[queries * head_dim + d] = qkv[from + key_at as usize + d];
            vectors[(queries + 1) * head_dim + d] = qkv[from + value_at as usize + d];
            d += UNITS;
        }
    }
    if unit < queries {
        largest[unit] = NOTHING;
        totals[unit] = 0.0f32;
    }
    sync_cube();
    let q_norming = comptime!(variant.q_norm);
    norm_heads(
        &mut vectors,
        &mut moments,
        q_norm,
        q_eps,
        q_offset,
        0usize,
        queries,
        head_dim,
        q_norming,
        UNITS,
    );
    rotate_heads(
        &mut vectors,
        rope,
        position,
        tile_rows * here,
        0usize,
        here,
        head_dim,
        variant.rotary,
        UNITS,
    );
    if comptime!(variant.fresh) {
        let norming = comptime!(variant.k_norm);
        norm_heads(
            &mut vectors,
            &mut moments,
            k_norm,
            k_eps,
            k_offset,
            queries,
            1usize,
            head_dim,
            norming,
            UNITS,
        );
        rotate_heads(&mut vectors, rope, position, 1usize, queries, 1usize, head_dim, variant.rotary, UNITS);
        sync_cube();
        if own_slot >= begin && own_slot < to {
            let mut word = unit;
            while word < words {
                let key = encode_word(&vectors, queries * head_dim, word, variant.record);
                let value = encode_word(&vectors, (queries + 1) * head_dim, word, variant.record);
                records[word] = key;
                records[words + word] = value;
                let piece = CUBE_POS_X as usize % comptime!(variant.pieces);
                if piece == 0 {
                    let at = base + slot_of(own_slot, slots, variant.ring) * words + word;
                    keys[at] = key;
                    values[at] = value;
                }
                word += UNITS;
            }
        }
    }
    sync_cube();

    // Unit u owns the elements u + i * UNITS of `[queries, head_dim]`.
    let mut sums = Array::<f32>::new(comptime!(variant.owned()));
    #[unroll]
    for i in 0..comptime!(variant.owned()) {
        sums[i] = 0.0f32;
    }
    let mut first = begin;
    while first < to {
        let count = min(tile_keys, to - first);
        load_tile(keys, &records, &mut tile_values, base, slots, first, count, own_slot, 0usize, variant);
        sync_cube();
        let pairs = comptime!(variant.queries() * variant.keys);
        let width = comptime!(variant.record.head_dim.div_ceil(variant.dot_lanes));
        let mut i = unit;
        while i < comptime!(variant.queries() * variant.keys * variant.dot_lanes) {
            let pair = i % pairs;
            let start = i / pairs * width;
            let mut sum = 0.0f32;
            if pair % tile_keys < count {
                let query_at = pair / tile_keys * head_dim;
                let key_at = pair % tile_keys * pitch;
                for d in start..min(start + width, head_dim) {
                    sum += vectors[query_at + d] * tile_values[key_at + d];
                }
            }
            scores[i] = sum;
            i += UNITS;
        }
        sync_cube();
        load_tile(values, &records, &mut tile_values, base, slots, first, count, own_slot, words, variant);
        if unit < queries {
            let own = own_slot + unit / here;
            let before = largest[unit];
            let mut now = before;
            for key in 0..count {
                let at = unit * tile_keys + key;
                let mut score = 0.0f32;
                for lane in 0..comptime!(variant.dot_lanes) {
                    score += scores[at + lane * pairs];
                }
                score = soft_cap(score * scale, cap);
                scores[at] = score;
                if visible(first + key, own, window, variant.causal) {
                    now = max(now, score);
                }
            }
            let factor = f32::exp(before - now);
            let mut total = totals[unit] * factor;
            for key in 0..count {
                let at = unit * tile_keys + key;
                let mut weight = 0.0f32;
                if visible(first + key, own, window, variant.causal) {
                    weight = f32::exp(scores[at] - now);
                }
                scores[at] = weight;
                total += weight;
            }
            largest[unit] = now;
            totals[unit] = total;
            factors[unit] = factor;
        }
        sync_cube();
        #[unroll]
        for i in 0..comptime!(variant.owned()) {
            let element = unit + i * UNITS;
            if element < comptime!(variant.queries() * variant.record.head_dim) {
                let query = element / head_dim;
                let d = element % head_dim;
                let mut sum = sums[i] * factors[query];
                for key in 0..count {
                    sum += scores[query * tile_keys + key] * tile_values[key * pitch + d];
                }
                sums[i] = sum;
            }
        }
        sync_cube();
        first += tile_keys;
    }

    #[unroll]
    for i in 0..comptime!(variant.owned()) {
        let element = unit + i * UNITS;
        let query = element / head_dim;
        let row = query / here;
        if element < comptime!(variant.queries() * variant.record.head_dim) && row < tile_rows {
            let head = first_head + query % here;
            let d = element % head_dim;
            if comptime!(variant.parts) {
                let part = ((first_row + row) * heads as usize + head) * comptime!(variant.splits) + split;
                out[part * head_dim + d] = sums[i];
                if d == 0 {
                    statistics[part * 2] = largest[query];
                    statistics[part * 2 + 1] = totals[query];
                }
            } else {
                out[(first_row + row) * out_stride as usize + head * head_dim + d] = sums[i] / totals[query];
            }
        }
    }
}

/// Keys (or values) of `count` slots from `first` on, as f32, into `tile`. The own slot's record is in shared
/// memory, from `record_at` on, since the cache may not show it yet.
#[cube]
fn load_tile(
    cache: &Array<u32>,
    records: &SharedMemory<u32>,
    tile: &mut SharedMemory<f32>,
    base: usize,
    slots: u32,
    first: usize,
    count: usize,
    own_slot: usize,
    #[comptime] record_at: usize,
    #[comptime] variant: AttendVariant,
) {
    let record = comptime!(variant.record);
    let words = comptime!(variant.record.words());
    let code_words = comptime!(variant.record.code_words());
    let per_word = comptime!(variant.record.per_word());
    let head_dim = comptime!(variant.record.head_dim);
    let scaled = comptime!(matches!(variant.record.dtype, KvType::Q8 | KvType::Q4));
    let mut i = UNIT_POS as usize;
    while i < count * code_words {
        let key = i / code_words;
        let word = i % code_words;
        let scale_word = code_words + word * per_word / comptime!(2 * KV_BLOCK);
        let at = base + slot_of(first + key, slots, variant.ring) * words;
        let mut bits = cache[at + word];
        let mut scales = 0u32;
        if comptime!(scaled) {
            scales = cache[at + scale_word];
        }
        if comptime!(variant.fresh) {
            if first + key == own_slot {
                bits = records[record_at + word];
                if comptime!(scaled) {
                    scales = records[record_at + scale_word];
                }
            }
        }
        let mut scale = 1.0f32;
        if comptime!(scaled) {
            let odd = word * per_word / KV_BLOCK % 2 == 1;
            scale = widen_f16(select(odd, scales >> 16u32, scales & 0xFFFFu32));
        }
        #[unroll]
        for j in 0..per_word {
            let d = word * per_word + j;
            if d < head_dim {
                tile[key * comptime!(variant.record.head_dim + 1) + d] =
                    decode_element(bits, scale, j, record);
            }
        }
        i += UNITS;
    }
}

/// Whether the row at slot `own` sees `slot`.
#[cube]
fn visible(slot: usize, own: usize, window: u32, #[comptime] causal: bool) -> bool {
    let mut seen = window == 0u32 || slot + window as usize > own;
    if comptime!(causal) {
        seen = seen && slot <= own;
    }
    seen
}
