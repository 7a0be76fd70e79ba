//! The product of `norm_linear` for many rows (prompts), whose `x` is normed already: a tile of 64 rows of the
//! matrix and [`Tile::batch`] rows of `x` for each cube.
//!
//! Both are brought to shared memory 32 columns at a time, the weights decoded and scaled once for all rows of
//! `x`; each of 256 units then owns four rows of the matrix and every sixteenth row of `x`.

use super::codebook::{Pair, absmax, decode_word, load, load_codebook, word_of};
use super::dense::dense_quad;
use super::epilogue::{Residual, activate, soft_cap, with_bias};
use super::places::output_row;
use super::variant::{Elements, Lookup, Sharing};
use super::{GROUP, Quad};
use cubecl::prelude::*;

/// Rows of the matrix for each cube.
pub(crate) const ROWS: usize = 64;
/// Units of a cube.
pub(crate) const UNITS: usize = 256;
/// Units that share the rows of `x`.
const ACROSS: usize = 16;
/// Rows of the matrix for each unit.
const OWN: usize = ROWS / (UNITS / ACROSS);
/// Elements of a row in shared memory: one more than a group, so that rows start in different banks.
const PITCH: usize = GROUP + 1;

/// What is fixed when the kernel is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Tile {
    pub elements: Elements,
    /// Rows of `x` for each cube: a multiple of 16.
    pub batch: usize,
    pub select: bool,
    pub sharing: Sharing,
}

/// The kernel; arguments as those of [`norm_linear`](super::norm_linear), `shares` as its `extra`.
#[cube(launch_unchecked)]
pub(crate) fn linear_tiled(
    codes: &Array<Quad<u32>>,
    scales: &Array<u32>,
    state: &Array<f32>,
    input: &Array<Quad<f32>>,
    residual: &Array<f32>,
    shares: &Array<f32>,
    places: &Array<u32>,
    out: &mut Array<f32>,
    rows: u32,
    cols: u32,
    batch: u32,
    stride: u32,
    at: u32,
    shift: u32,
    last_block: u32,
    bias_at: u32,
    act: u32,
    gated: u32,
    added: u32,
    share_at: u32,
    scale: f32,
    cap: f32,
    #[comptime] tile: Tile,
) {
    let elements = comptime!(tile.elements);
    let own_batch = comptime!(tile.batch / ACROSS);
    let unit = UNIT_POS as usize;
    let groups = (cols as usize).div_ceil(GROUP);
    let first_row = CUBE_POS_X as usize * ROWS;
    let first_input = CUBE_POS_Y as usize * comptime!(tile.batch);
    let last_input = batch as usize - 1;

    if comptime!(tile.sharing != Sharing::None) {
        let mut taken = 0.0f32;
        for m in 0..comptime!(tile.batch) {
            taken += shares[share_at as usize + min(first_input + m, last_input)];
        }
        if taken == 0.0f32 {
            terminate!();
        }
    }

    let mut table = SharedMemory::<f32>::new(16usize);
    let mut pairs = SharedMemory::<Pair>::new(1usize);
    let mut map = SharedMemory::<f32>::new(comptime!(tile.elements.map_len()));
    let mut weights_tile = SharedMemory::<f32>::new(comptime!(ROWS * PITCH));
    let mut input_tile = SharedMemory::<f32>::new(comptime!(tile.batch * PITCH));
    if comptime!(elements.is_codes()) {
        load_codebook(state, &mut table, &mut pairs, Lookup::Table, UNITS);
    }
    if comptime!(elements.nested()) {
        load(&mut map, state, 16usize, 256usize, UNITS);
    }

    // This unit decodes eight columns of one row, and brings a quad of `x` now and then.
    let decoded_row = unit / 4;
    let decoded_word = unit % 4;
    let row = min(first_row + decoded_row, rows as usize - 1);
    let mut row_start = 0u32;
    if comptime!(elements.is_codes()) {
        row_start = scales[row];
    }
    let mut sums = Array::<f32>::new(comptime!(OWN * tile.batch / ACROSS));
    #[unroll]
    for i in 0..comptime!(OWN * tile.batch / ACROSS) {
        sums[i] = 0.0f32;
    }
    for group in 0..groups {
        sync_cube();
        let to = decoded_row * PITCH + decoded_word * 8;
        if comptime!(elements.is_codes()) {
            let element = row_start + (group * GROUP) as u32;
            let block = element >> shift;
            let factor = absmax(scales, state, &map, rows, block, elements);
            let mut weights = Array::<f32>::new(8usize);
            let word = word_of(codes[row * groups + group], decoded_word);
            decode_word(word, &table, &pairs, &mut weights, Lookup::Table);
            if comptime!(elements.straddles()) {
                let split = ((block + 1) << shift) - element;
                let factor_after = absmax(scales, state, &map, rows, min(block + 1, last_block), elements);
                #[unroll]
                for i in 0..8usize {
                    let place = (decoded_word * 8 + i) as u32;
                    let scaled = weights[i] * select(place < split, factor, factor_after);
                    // Code 0 of the padding is not the number 0.
                    weights_tile[to + i] = select((group * GROUP) as u32 + place < cols, scaled, 0.0f32);
                }
            } else {
                #[unroll]
                for i in 0..8usize {
                    weights_tile[to + i] = weights[i] * factor;
                }
            }
        } else {
            #[unroll]
            for half in 0..2usize {
                let quad = dense_quad(codes, (row * groups + group) * 8 + decoded_word * 2 + half, elements);
                #[unroll]
                for i in 0..4usize {
                    weights_tile[to + half * 4 + i] = quad[i];
                }
            }
        }
        let mut i = unit;
        while i < comptime!(tile.batch * 8) {
            let mut source = min(first_input + i / 8, last_input);
            if comptime!(tile.select) {
                source = output_row(places, source);
            }
            let quad = input[(source * groups + group) * 8 + i % 8];
            let to = i / 8 * PITCH + i % 8 * 4;
            #[unroll]
            for j in 0..4usize {
                input_tile[to + j] = quad[j];
            }
            i += UNITS;
        }
        sync_cube();
        let own_row = unit / ACROSS * OWN;
        let own_input = unit % ACROSS;
        for k in 0..GROUP {
            let mut w = Array::<f32>::new(OWN);
            #[unroll]
            for r in 0..OWN {
                w[r] = weights_tile[(own_row + r) * PITCH + k];
            }
            #[unroll]
            for m in 0..own_batch {
                let x = input_tile[(own_input + m * ACROSS) * PITCH + k];
                #[unroll]
                for r in 0..OWN {
                    sums[m * OWN + r] += w[r] * x;
                }
            }
        }
    }

    let merged = gated as usize + 1;
    #[unroll]
    for m in 0..own_batch {
        let batch_row = first_input + unit % ACROSS + m * ACROSS;
        #[unroll]
        for r in 0..OWN {
            let row = first_row + unit / ACROSS * OWN + r;
            // Of a pair of rows, gate and up, the first unit row writes.
            if row < rows as usize && batch_row < batch as usize && (gated == 0u32 || comptime!(r % 2 == 0)) {
                let place = batch_row * stride as usize + at as usize + row / merged;
                let bias = with_bias(0.0f32, state, bias_at, row) * scale;
                let mut y = soft_cap(activate(sums[m * OWN + r] * scale + bias, act), cap);
                if gated == 1u32 {
                    // Only even rows come here, so this is the row after.
                    y *= with_bias(sums[comptime!(m * OWN + (r | 1))], state, bias_at, row + 1);
                }
                let mut share = 1.0f32;
                if comptime!(tile.sharing != Sharing::None) {
                    share = shares[share_at as usize + batch_row];
                }
                if comptime!(tile.sharing == Sharing::Weigh) {
                    y *= share;
                }
                if added == comptime!(Residual::Read as u32) {
                    y += residual[place];
                } else if added == comptime!(Residual::Accumulate as u32) {
                    y += out[place];
                }
                if share != 0.0f32 {
                    out[place] = y;
                }
            }
        }
    }
}
