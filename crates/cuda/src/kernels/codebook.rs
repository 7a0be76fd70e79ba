//! 4-bit codes to values, and absmax from its 8-bit codes.
//!
//! # Which lookup
//! A GPU's shared memory serves 32 lanes a clock and multiprocessor: one read a weight caps an H200 (132 of
//! them at 1.98 GHz, 4.8 TB/s) at 90 % of its bandwidth, and each weight takes about four instructions
//! (extract, address, read, multiply and add) of the 3.6 that the schedulers issue a weight at full bandwidth.
//! [`Lookup::Table`] is that. [`Lookup::Pairs`] reads two values for one byte: two and a half instructions a
//! weight and the same bytes through shared memory; it needs 16 copies (32 KiB) to be free of conflicts. Which
//! one wins is a measurement: `HALFBYTE_CUDA_LOOKUP` chooses. A table of halves would save reads and cost
//! precision (2e-4, ten times what the conformance table allows), byte permutes cost five instructions a weight
//! for values in f32, and shuffles go through the same pipe as shared memory: none of these is here.

use super::Quad;
use super::variant::{Elements, Lookup};
use cubecl::prelude::*;

/// Two values that are looked up together.
pub(crate) type Pair = Vector<f32, Const<2>>;

/// Fills the tables in shared memory: the codebook `[16]` is at the beginning of `state`.
#[cube]
pub(crate) fn load_codebook(
    state: &Array<f32>,
    table: &mut SharedMemory<f32>,
    pairs: &mut SharedMemory<Pair>,
    #[comptime] lookup: Lookup,
    #[comptime] units: usize,
) {
    if comptime!(lookup == Lookup::Table) {
        load(table, state, 0usize, 16usize, units);
    } else {
        let copies = comptime!(lookup.copies());
        let mut i = UNIT_POS as usize;
        while i < comptime!(lookup.pairs_len()) {
            let byte = i / copies;
            let mut pair = Pair::empty();
            pair[0] = state[byte % 16];
            pair[1] = state[byte / 16];
            pairs[i] = pair;
            i += units;
        }
    }
}

/// The eight values of `word`: low nibbles of its bytes are elements 0..4, high nibbles 4..8.
#[cube]
pub(crate) fn decode_word(
    word: u32,
    table: &SharedMemory<f32>,
    pairs: &SharedMemory<Pair>,
    weights: &mut Array<f32>,
    #[comptime] lookup: Lookup,
) {
    if comptime!(lookup == Lookup::Table) {
        #[unroll]
        for i in 0..4usize {
            weights[i] = table[((word >> comptime!(i as u32 * 8)) & 15u32) as usize];
            weights[i + 4] = table[((word >> comptime!(i as u32 * 8 + 4)) & 15u32) as usize];
        }
    } else {
        let copies = comptime!(lookup.copies());
        let copy = UNIT_POS as usize % copies;
        #[unroll]
        for i in 0..4usize {
            let byte = (word >> comptime!(i as u32 * 8)) & 255u32;
            let pair = pairs[byte as usize * copies + copy];
            weights[i] = pair[0];
            weights[i + 4] = pair[1];
        }
    }
}

/// The scale of `block`: a plain f32, or `map[code] * absmax + offset` (Dettmers et al. 2023, section 3,
/// "double quantization"). Codes are four to a word after the `rows` starts of rows.
#[cube]
pub(crate) fn absmax(
    scales: &Array<u32>,
    state: &Array<f32>,
    map: &SharedMemory<f32>,
    rows: u32,
    block: u32,
    #[comptime] elements: Elements,
) -> f32 {
    if comptime!(elements.nested()) {
        let word = scales[(rows + block / 4) as usize];
        let code = (word >> (block % 4 * 8)) & 255u32;
        let pair = comptime!(elements.pairs_at()) + (block / 256 * 2) as usize;
        map[code as usize] * state[pair] + state[pair + 1]
    } else {
        f32::reinterpret(scales[(rows + block) as usize])
    }
}

/// `count` values of the state from `from` on, into shared memory.
#[cube]
pub(crate) fn load(
    to: &mut SharedMemory<f32>,
    state: &Array<f32>,
    #[comptime] from: usize,
    #[comptime] count: usize,
    #[comptime] units: usize,
) {
    let mut i = UNIT_POS as usize;
    while i < count {
        to[i] = state[from + i];
        i += units;
    }
}

/// Word `w` of a quad.
#[cube]
pub(crate) fn word_of(quad: Quad<u32>, w: usize) -> u32 {
    select(w < 2, select(w == 0, quad[0], quad[1]), select(w == 2, quad[2], quad[3]))
}
