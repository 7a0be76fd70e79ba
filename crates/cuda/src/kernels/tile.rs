//! What the tiled products share: decoded weights in, finished results out.

use super::codebook::{Pair, absmax, decode_word, word_of};
use super::dense::dense_quad;
use super::epilogue::{Residual, activate, soft_cap, with_bias};
use super::variant::{Elements, Lookup, Sharing};
use super::{GROUP, Quad};
use cubecl::prelude::*;

/// A matrix as a cube reads it.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Matrix {
    pub rows: u32,
    pub cols: u32,
    /// Groups of columns of a row.
    pub groups: usize,
    /// Blocks are of `1 << shift` weights.
    pub shift: u32,
    pub last_block: u32,
}

/// What happens to a sum, in numbers as in [`norm_linear`](super::norm_linear).
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Epilogue {
    pub stride: u32,
    pub at: u32,
    pub bias_at: u32,
    pub act: u32,
    pub gated: u32,
    pub added: u32,
    pub share_at: u32,
    pub scale: f32,
    pub cap: f32,
}

/// Eight columns, word `word` of group `group`, of row `row`: decoded and scaled, zero beyond the columns. `row_start`
/// is the row's first element in the order of absmax.
#[cube]
#[allow(clippy::too_many_arguments, reason = "what a cube shares has no other name")]
pub(crate) fn weights_of(
    codes: &Array<Quad<u32>>,
    scales: &Array<u32>,
    state: &Array<f32>,
    table: &SharedMemory<f32>,
    pairs: &SharedMemory<Pair>,
    map: &SharedMemory<f32>,
    matrix: &Matrix,
    row: usize,
    row_start: u32,
    group: usize,
    word: usize,
    weights: &mut Array<f32>,
    #[comptime] elements: Elements,
) {
    if comptime!(elements.is_codes()) {
        let element = row_start + (group * GROUP) as u32;
        let block = element >> matrix.shift;
        let factor = absmax(scales, state, map, matrix.rows, block, elements);
        let codes = word_of(codes[row * matrix.groups + group], word);
        decode_word(codes, table, pairs, weights, Lookup::Table);
        if comptime!(elements.straddles()) {
            let split = ((block + 1) << matrix.shift) - element;
            let after = min(block + 1, matrix.last_block);
            let factor_after = absmax(scales, state, map, matrix.rows, after, elements);
            #[unroll]
            for i in 0..8usize {
                let place = (word * 8 + i) as u32;
                let scaled = weights[i] * select(place < split, factor, factor_after);
                // Code 0 of the padding is not the number 0.
                weights[i] = select((group * GROUP) as u32 + place < matrix.cols, scaled, 0.0f32);
            }
        } else {
            #[unroll]
            for i in 0..8usize {
                weights[i] *= factor;
            }
        }
    } else {
        #[unroll]
        for half in 0..2usize {
            let quad = dense_quad(codes, (row * matrix.groups + group) * 8 + word * 2 + half, elements);
            #[unroll]
            for i in 0..4usize {
                weights[half * 4 + i] = quad[i];
            }
        }
    }
}

/// Finishes the sum of `row` and `batch_row` and writes it; of a pair of rows, gate and up, `next` is the second's.
#[cube]
#[allow(clippy::too_many_arguments, reason = "what a cube shares has no other name")]
pub(crate) fn finish(
    sum: f32,
    next: f32,
    row: usize,
    batch_row: usize,
    state: &Array<f32>,
    residual: &Array<f32>,
    shares: &Array<f32>,
    out: &mut Array<f32>,
    epilogue: &Epilogue,
    #[comptime] sharing: Sharing,
) {
    let merged = epilogue.gated as usize + 1;
    let place = batch_row * epilogue.stride as usize + epilogue.at as usize + row / merged;
    let bias = with_bias(0.0f32, state, epilogue.bias_at, row) * epilogue.scale;
    let mut y = soft_cap(activate(sum * epilogue.scale + bias, epilogue.act), epilogue.cap);
    if epilogue.gated == 1u32 {
        y *= with_bias(next, state, epilogue.bias_at, row + 1);
    }
    let mut share = 1.0f32;
    if comptime!(sharing != Sharing::None) {
        share = shares[epilogue.share_at as usize + batch_row];
    }
    if comptime!(sharing == Sharing::Weigh) {
        y *= share;
    }
    if epilogue.added == comptime!(Residual::Read as u32) {
        y += residual[place];
    } else if epilogue.added == comptime!(Residual::Accumulate as u32) {
        y += out[place];
    }
    if share != 0.0f32 {
        out[place] = y;
    }
}

/// Whether no row of `x` from `first` on, `batch` of them, takes the expert whose shares these are.
#[cube]
pub(crate) fn nobody_takes(
    shares: &Array<f32>,
    share_at: u32,
    first: usize,
    last: usize,
    #[comptime] batch: usize,
) -> bool {
    let mut taken = 0.0f32;
    for m in 0..batch {
        taken += shares[share_at as usize + min(first + m, last)];
    }
    taken == 0.0f32
}
