//! The product of `norm_linear` for many rows (prompts), whose `x` is normed already: a tile of 64 rows of the
//! matrix and [`Tile::batch`] rows of `x` for each cube.
//!
//! Both are brought to shared memory 32 columns at a time, the weights decoded and scaled once for all rows of
//! `x`; each of 256 units then owns four rows of the matrix and every sixteenth row of `x`.

#![allow(clippy::collapsible_if, reason = "what is decided when the kernel is compiled stands apart")]

use super::codebook::{Pair, load, load_codebook};
use super::places::output_row;
use super::tile::{Epilogue, Matrix, finish, nobody_takes, weights_of};
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
    let matrix = Matrix { rows, cols, groups, shift, last_block };
    let epilogue = Epilogue { stride, at, bias_at, act, gated, added, share_at, scale, cap };
    let first_row = CUBE_POS_X as usize * ROWS;
    let first_input = CUBE_POS_Y as usize * comptime!(tile.batch);
    let last_input = batch as usize - 1;

    if comptime!(tile.sharing != Sharing::None) {
        if nobody_takes(shares, share_at, first_input, last_input, comptime!(tile.batch)) {
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
        let mut weights = Array::<f32>::new(8usize);
        weights_of(
            codes,
            scales,
            state,
            &table,
            &pairs,
            &map,
            &matrix,
            row,
            row_start,
            group,
            decoded_word,
            &mut weights,
            elements,
        );
        #[unroll]
        for i in 0..8usize {
            weights_tile[to + i] = weights[i];
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

    #[unroll]
    for m in 0..own_batch {
        let batch_row = first_input + unit % ACROSS + m * ACROSS;
        #[unroll]
        for r in 0..OWN {
            let row = first_row + unit / ACROSS * OWN + r;
            // Of a pair of rows, gate and up, the first unit row writes: only even rows, whose next is here, too.
            if row < rows as usize && batch_row < batch as usize && (gated == 0u32 || comptime!(r % 2 == 0)) {
                finish(
                    sums[m * OWN + r],
                    sums[comptime!(m * OWN + (r | 1))],
                    row,
                    batch_row,
                    state,
                    residual,
                    shares,
                    out,
                    &epilogue,
                    tile.sharing,
                );
            }
        }
    }
}
