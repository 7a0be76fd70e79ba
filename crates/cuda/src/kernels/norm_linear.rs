//! `out[:, at..] = residual + act(W norm(x) + b)` with `W` in 4 bits: one launch.
//!
//! A *team* of `lanes` units (a warp on NVIDIA) owns `tile_rows` rows of the matrix and walks their
//! columns in groups of 32, one group a lane, so that a team reads 512 neighbouring bytes of codes in
//! 16-byte loads. Each group's 32 products are summed first and scaled once, since all of them share
//! an absmax; the absmax itself is decoded here from its 8-bit code. The codebook and the map of the
//! 8-bit codes are in shared memory: one conflict-free read a weight.
//!
//! `1 / rms` is a factor of a whole row of `x`, so RMS norm applies it to the finished sums; only the norm's
//! weight is multiplied in on the way. LayerNorm is applied as `x` is read. `tile_batch` rows of `x` share
//! each decoded weight.

use super::dense::dense_quad;
use super::epilogue::{Residual, activate, with_bias};
use super::moments::{moments, sum_over_team};
use super::variant::{Norming, Variant};
use super::{GROUP, Quad};
use cubecl::prelude::*;

/// Quads of `x` in a group.
const QUADS: usize = GROUP / 4;

/// The kernel. `groups = cols.div_ceil(32)`.
///
/// - `codes` `[rows, groups, quads]` of 16 bytes, zero beyond `cols`.
/// - `scales` `[rows]` first element of each row in the order of absmax, then absmax: four 8-bit codes
///   or one f32 a word.
/// - `state` `[16]` codebook, `[256]` map if nested, `[blocks / 256, 2]` absmax and offset if nested,
///   then from `bias_at` the bias `[rows]`.
/// - `norm` weight `[groups * 32]`, then bias `[groups * 32]` if it has one.
/// - `input` `[batch, groups * 32]`, zero beyond `cols`.
/// - `residual` and `out` `[batch, stride]`, of which `at..` is read and written.
///
/// Blocks are of `1 << shift` weights. `act` is the number of an activation, `added` a [`Residual`], `gated` 1
/// if rows come in pairs gate, up. These are no variants, since each variant is compiled when it first runs.
#[cube(launch_unchecked)]
pub(crate) fn norm_linear(
    codes: &Array<Quad<u32>>,
    scales: &Array<u32>,
    state: &Array<f32>,
    norm: &Array<Quad<f32>>,
    input: &Array<Quad<f32>>,
    residual: &Array<f32>,
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
    eps: f32,
    norm_offset: f32,
    #[comptime] variant: Variant,
) {
    let lanes = comptime!(variant.lanes);
    let tile_rows = comptime!(variant.tile_rows);
    let tile_batch = comptime!(variant.tile_batch);
    let elements = comptime!(variant.elements);
    let units = comptime!(variant.units());
    let cube_rows = comptime!(variant.cube_rows());

    let unit = UNIT_POS as usize;
    let lane = unit % lanes;
    let team = unit / lanes;
    let groups = (cols as usize).div_ceil(GROUP);
    let first_row = CUBE_POS_X as usize * cube_rows;
    let first_input = CUBE_POS_Y as usize * tile_batch;

    let mut codebook = SharedMemory::<f32>::new(16usize);
    let mut map = SharedMemory::<f32>::new(comptime!(variant.map_len()));
    let mut partial = SharedMemory::<f32>::new(units);
    let mut totals = SharedMemory::<f32>::new(comptime!(variant.cube_rows() * variant.tile_batch));
    let mut inverse_rms = SharedMemory::<f32>::new(tile_batch);

    if comptime!(elements.is_codes()) {
        load(&mut codebook, state, 0usize, 16usize, units);
    }
    if comptime!(elements.nested()) {
        load(&mut map, state, 16usize, 256usize, units);
    }
    // The factor of RMS norm is kept for the end, where units change rows.
    let mut mean = Array::<f32>::new(tile_batch);
    let mut inverse = Array::<f32>::new(tile_batch);
    if comptime!(variant.norm != Norming::None) {
        moments(
            input,
            first_input,
            cols,
            batch,
            eps,
            &mut mean,
            &mut inverse,
            &mut partial,
            &mut totals,
            variant,
        );
        if unit == 0 {
            #[unroll]
            for m in 0..tile_batch {
                inverse_rms[m] = inverse[m];
            }
        }
    }
    sync_cube();

    // Rows beyond the last are computed as copies of it and not written.
    let mut sums = Array::<f32>::new(comptime!(variant.tile_rows * variant.tile_batch));
    #[unroll]
    for i in 0..comptime!(variant.tile_rows * variant.tile_batch) {
        sums[i] = 0.0f32;
    }
    let mut group = lane;
    while group < groups {
        let mut products = Array::<f32>::new(comptime!(variant.tile_rows * variant.tile_batch));
        #[unroll]
        for i in 0..comptime!(variant.tile_rows * variant.tile_batch) {
            products[i] = 0.0f32;
        }
        // One scale for the group, or, where it straddles two blocks, one for its first `split`
        // columns and one for the rest.
        let mut scale = Array::<f32>::new(tile_rows);
        let mut scale_after = Array::<f32>::new(tile_rows);
        let mut split = Array::<u32>::new(tile_rows);
        let mut words = Array::<Quad<u32>>::new(tile_rows);
        #[unroll]
        for r in 0..tile_rows {
            let row = min(first_row + team * tile_rows + r, rows as usize - 1);
            if comptime!(elements.is_codes()) {
                words[r] = codes[row * groups + group];
                let element = scales[row] + (group * GROUP) as u32;
                let block = element >> shift;
                scale[r] = absmax(scales, state, &map, rows, block, variant);
                if comptime!(elements.straddles()) {
                    split[r] = ((block + 1) << shift) - element;
                    scale_after[r] = absmax(scales, state, &map, rows, min(block + 1, last_block), variant);
                }
            }
        }
        #[unroll]
        for q in 0..QUADS {
            let mut x = Array::<Quad<f32>>::new(tile_batch);
            #[unroll]
            for m in 0..tile_batch {
                let row = min(first_input + m, batch as usize - 1);
                let value = input[(row * groups + group) * QUADS + q];
                if comptime!(variant.norm == Norming::None) {
                    x[m] = value;
                } else {
                    let weight = norm[group * QUADS + q] + Quad::<f32>::new(norm_offset);
                    if comptime!(variant.norm.centers()) {
                        let centered = (value - Quad::<f32>::new(mean[m])) * Quad::<f32>::new(inverse[m]);
                        if comptime!(variant.norm.has_bias()) {
                            x[m] = centered * weight + norm[(groups + group) * QUADS + q];
                        } else {
                            x[m] = centered * weight;
                        }
                    } else {
                        x[m] = value * weight;
                    }
                }
            }
            #[unroll]
            for r in 0..tile_rows {
                let mut weight = Quad::<f32>::empty();
                if comptime!(elements.is_codes()) {
                    // Low nibbles of a word are columns 0..4 of its eight, high nibbles 4..8.
                    let word = words[r];
                    let word = word[q / 2] >> comptime!((q as u32 % 2) * 4);
                    #[unroll]
                    for i in 0..4usize {
                        weight[i] = codebook[((word >> comptime!(i as u32 * 8)) & 15u32) as usize];
                    }
                    if comptime!(elements.straddles()) {
                        #[unroll]
                        for i in 0..4usize {
                            let place = comptime!((q * 4 + i) as u32);
                            let scaled = weight[i] * select(place < split[r], scale[r], scale_after[r]);
                            // Code 0 of the padding is not the number 0.
                            let column = (group * GROUP) as u32 + place;
                            weight[i] = select(column < cols, scaled, 0.0f32);
                        }
                    }
                } else {
                    let row = min(first_row + team * tile_rows + r, rows as usize - 1);
                    weight = dense_quad(codes, row * groups + group, q, elements);
                }
                #[unroll]
                for m in 0..tile_batch {
                    let v = x[m];
                    products[r * tile_batch + m] +=
                        weight[0] * v[0] + weight[1] * v[1] + weight[2] * v[2] + weight[3] * v[3];
                }
            }
        }
        #[unroll]
        for r in 0..tile_rows {
            #[unroll]
            for m in 0..tile_batch {
                let i = comptime!(r * tile_batch + m);
                if comptime!(elements.is_codes() && !elements.straddles()) {
                    sums[i] += scale[r] * products[i];
                } else {
                    sums[i] += products[i];
                }
            }
        }
        group += lanes;
    }

    #[unroll]
    for m in 0..tile_batch {
        #[unroll]
        for r in 0..tile_rows {
            let sum = sum_over_team(sums[r * tile_batch + m], &mut partial, variant);
            if lane == 0 {
                totals[m * cube_rows + team * tile_rows + r] = sum;
            }
        }
    }
    sync_cube();

    // One result a unit, neighbouring units at neighbouring columns.
    let merged = gated as usize + 1;
    let outputs = cube_rows / merged;
    let mut index = unit;
    while index < outputs * tile_batch {
        let m = index / outputs;
        let local = index % outputs * merged;
        let row = first_row + local;
        let batch_row = first_input + m;
        if row < rows as usize && batch_row < batch as usize {
            let mut factor = 1.0f32;
            if comptime!(variant.norm == Norming::Rms) {
                factor = inverse_rms[m];
            }
            let total = m * cube_rows + local;
            let place = batch_row * stride as usize + at as usize + row / merged;
            let mut y = activate(with_bias(totals[total] * factor, state, bias_at, row), act);
            if gated == 1u32 {
                y *= with_bias(totals[total + 1] * factor, state, bias_at, row + 1);
            }
            if added == comptime!(Residual::Read as u32) {
                y += residual[place];
            } else if added == comptime!(Residual::Accumulate as u32) {
                y += out[place];
            }
            out[place] = y;
        }
        index += units;
    }
}

/// `count` values of the state from `from` on, into shared memory.
#[cube]
fn load(
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

/// The scale of `block`: a plain f32, or `map[code] * absmax + offset` (Dettmers et al. 2023, section 3,
/// "double quantization"). Codes are four to a word after the `rows` starts of rows.
#[cube]
fn absmax(
    scales: &Array<u32>,
    state: &Array<f32>,
    map: &SharedMemory<f32>,
    rows: u32,
    block: u32,
    #[comptime] variant: Variant,
) -> f32 {
    if comptime!(variant.elements.nested()) {
        let word = scales[(rows + block / 4) as usize];
        let code = (word >> (block % 4 * 8)) & 255u32;
        let pair = comptime!(variant.pairs_at()) + (block / 256 * 2) as usize;
        map[code as usize] * state[pair] + state[pair + 1]
    } else {
        f32::reinterpret(scales[(rows + block) as usize])
    }
}
