//! `out[:, at..] = residual + act(W norm(x) + b)` with `W` in 4 bits or dense, for few rows: one launch.
//!
//! A *team* of `lanes` units (a warp on NVIDIA) owns `tile_rows` rows of the matrix and walks their
//! columns in groups of 32, one group a lane, so that a team reads 512 neighbouring bytes of codes in
//! 16-byte loads. Each group's 32 products are summed first and scaled once, since all of them share
//! an absmax; the absmax itself is decoded here from its 8-bit code. The codebook and the map of the
//! 8-bit codes are in shared memory.
//!
//! `1 / rms` is a factor of a whole row of `x`, so RMS norm applies it to the finished sums; only the norm's
//! weight is multiplied in on the way. LayerNorm is applied as `x` is read. `tile_batch` rows of `x` share
//! each decoded weight. The same kernel is the o-projection (`merge`), the head (`select`) and the experts'
//! products (`sharing`).

use super::codebook::{Pair, absmax, decode_word, load, load_codebook, word_of};
use super::dense::dense_quad;
use super::epilogue::{Residual, activate, soft_cap, with_bias};
use super::merge::{load_weights, merged_quad};
use super::moments::{row_inverse, row_mean, sum_over_team};
use super::places::output_row;
use super::variant::{Norming, Sharing, Variant};
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
/// - `input` `[rows of x, groups * 32]`, zero beyond `cols`; with `merge` an attention's splits.
/// - `residual` and `out` `[batch, stride]`, of which `at..` is read and written.
/// - `extra` statistics of splits with `merge`; with `sharing` from `share_at` the shares `[batch]`.
/// - `places` as in [`super::places`].
///
/// Blocks are of `1 << shift` weights. `act` is the number of an activation, `added` a [`Residual`], `gated` 1
/// if rows come in pairs gate, up; `scale` and `cap` are of logits. These are no variants, since each variant
/// is compiled when it first runs.
#[cube(launch_unchecked)]
pub(crate) fn norm_linear(
    codes: &Array<Quad<u32>>,
    scales: &Array<u32>,
    state: &Array<f32>,
    norm: &Array<Quad<f32>>,
    input: &Array<Quad<f32>>,
    residual: &Array<f32>,
    extra: &Array<f32>,
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
    eps: f32,
    norm_offset: f32,
    scale: f32,
    cap: f32,
    #[comptime] variant: Variant,
) {
    let team = comptime!(variant.team);
    let lanes = comptime!(variant.team.lanes);
    let tile_rows = comptime!(variant.tile_rows);
    let tile_batch = comptime!(variant.tile_batch);
    let elements = comptime!(variant.elements);
    let lookup = comptime!(variant.lookup);
    let units = comptime!(variant.units());
    let cube_rows = comptime!(variant.cube_rows());

    let unit = UNIT_POS as usize;
    let lane = unit % lanes;
    let groups = (cols as usize).div_ceil(GROUP);
    let first_row = CUBE_POS_X as usize * cube_rows;
    let own_row = first_row + unit / lanes * tile_rows;
    let first_input = CUBE_POS_Y as usize * tile_batch;
    let last_input = batch as usize - 1;

    if comptime!(variant.sharing != Sharing::None) {
        let mut taken = 0.0f32;
        for m in 0..tile_batch {
            taken += extra[share_at as usize + min(first_input + m, last_input)];
        }
        if taken == 0.0f32 {
            terminate!();
        }
    }

    let mut table = SharedMemory::<f32>::new(comptime!(variant.lookup.table_len()));
    let mut pairs = SharedMemory::<Pair>::new(comptime!(variant.lookup.pairs_len()));
    let mut map = SharedMemory::<f32>::new(comptime!(variant.elements.map_len()));
    let mut partial = SharedMemory::<f32>::new(units);
    let mut totals = SharedMemory::<f32>::new(comptime!(variant.cube_rows() * variant.tile_batch));
    let mut inverse_rms = SharedMemory::<f32>::new(tile_batch);
    let mut splits = SharedMemory::<f32>::new(comptime!(variant.merge_len()));

    if comptime!(elements.is_codes()) {
        load_codebook(state, &mut table, &mut pairs, lookup, units);
    }
    if comptime!(elements.nested()) {
        load(&mut map, state, 16usize, 256usize, units);
    }
    // Rows beyond the last are computed as copies of it and not written.
    let mut sources = Array::<usize>::new(tile_batch);
    let mut mean = Array::<f32>::new(tile_batch);
    let mut inverse = Array::<f32>::new(tile_batch);
    #[unroll]
    for m in 0..tile_batch {
        let source = min(first_input + m, last_input);
        if comptime!(variant.select) {
            sources[m] = output_row(places, source);
        } else {
            sources[m] = source;
        }
        if comptime!(variant.merge.is_some()) {
            let merge = comptime!(variant.merge.unwrap());
            load_weights(
                extra,
                sources[m],
                &mut splits,
                comptime!(m * merge.heads * merge.splits),
                merge,
                units,
            );
        }
        if comptime!(variant.norm != Norming::None) {
            mean[m] = row_mean(input, sources[m], cols, &mut partial, &mut totals, variant.norm, team);
            inverse[m] = row_inverse(
                input,
                sources[m],
                cols,
                mean[m],
                eps,
                &mut partial,
                &mut totals,
                variant.norm,
                team,
            );
            // The factor of RMS norm is kept for the end, where units change rows.
            if unit == 0 {
                inverse_rms[m] = inverse[m];
            }
        }
    }
    sync_cube();

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
        let mut factor = Array::<f32>::new(tile_rows);
        let mut factor_after = Array::<f32>::new(tile_rows);
        let mut split = Array::<u32>::new(tile_rows);
        let mut words = Array::<Quad<u32>>::new(tile_rows);
        #[unroll]
        for r in 0..tile_rows {
            let row = min(own_row + r, rows as usize - 1);
            if comptime!(elements.is_codes()) {
                words[r] = codes[row * groups + group];
                let element = scales[row] + (group * GROUP) as u32;
                let block = element >> shift;
                factor[r] = absmax(scales, state, &map, rows, block, elements);
                if comptime!(elements.straddles()) {
                    split[r] = ((block + 1) << shift) - element;
                    factor_after[r] = absmax(scales, state, &map, rows, min(block + 1, last_block), elements);
                }
            }
        }
        // Eight columns at a time: a word of codes, two quads of x.
        #[unroll(variant.unroll)]
        for w in 0..4usize {
            let quad = group * QUADS + w * 2;
            let mut low = Array::<Quad<f32>>::new(tile_batch);
            let mut high = Array::<Quad<f32>>::new(tile_batch);
            #[unroll]
            for m in 0..tile_batch {
                if comptime!(variant.merge.is_some()) {
                    let merge = comptime!(variant.merge.unwrap());
                    let at = comptime!(m * merge.heads * merge.splits);
                    low[m] = merged_quad(input, sources[m], quad, &splits, at, merge);
                    high[m] = merged_quad(input, sources[m], quad + 1, &splits, at, merge);
                } else {
                    let from = sources[m] * groups * QUADS + quad;
                    let bias = groups * QUADS + quad;
                    low[m] =
                        normed(input[from], norm, quad, bias, norm_offset, mean[m], inverse[m], variant.norm);
                    high[m] = normed(
                        input[from + 1],
                        norm,
                        quad + 1,
                        bias + 1,
                        norm_offset,
                        mean[m],
                        inverse[m],
                        variant.norm,
                    );
                }
            }
            #[unroll]
            for r in 0..tile_rows {
                let mut weights = Array::<f32>::new(8usize);
                if comptime!(elements.is_codes()) {
                    decode_word(word_of(words[r], w), &table, &pairs, &mut weights, lookup);
                    if comptime!(elements.straddles()) {
                        #[unroll]
                        for i in 0..8usize {
                            let place = (w * 8 + i) as u32;
                            let scaled = weights[i] * select(place < split[r], factor[r], factor_after[r]);
                            // Code 0 of the padding is not the number 0.
                            let column = (group * GROUP) as u32 + place;
                            weights[i] = select(column < cols, scaled, 0.0f32);
                        }
                    }
                } else {
                    let row = min(own_row + r, rows as usize - 1);
                    let first = dense_quad(codes, (row * groups + group) * QUADS + w * 2, elements);
                    let second = dense_quad(codes, (row * groups + group) * QUADS + w * 2 + 1, elements);
                    #[unroll]
                    for i in 0..4usize {
                        weights[i] = first[i];
                        weights[i + 4] = second[i];
                    }
                }
                #[unroll]
                for m in 0..tile_batch {
                    let a = low[m];
                    let b = high[m];
                    products[r * tile_batch + m] += weights[0] * a[0]
                        + weights[1] * a[1]
                        + weights[2] * a[2]
                        + weights[3] * a[3]
                        + weights[4] * b[0]
                        + weights[5] * b[1]
                        + weights[6] * b[2]
                        + weights[7] * b[3];
                }
            }
        }
        #[unroll]
        for r in 0..tile_rows {
            #[unroll]
            for m in 0..tile_batch {
                let i = comptime!(r * tile_batch + m);
                if comptime!(elements.is_codes() && !elements.straddles()) {
                    sums[i] += factor[r] * products[i];
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
            let sum = sum_over_team(sums[r * tile_batch + m], &mut partial, team);
            if lane == 0 {
                totals[m * cube_rows + own_row - first_row + r] = sum;
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
            let mut factor = scale;
            if comptime!(variant.norm == Norming::Rms) {
                factor *= inverse_rms[m];
            }
            let total = m * cube_rows + local;
            let place = batch_row * stride as usize + at as usize + row / merged;
            let bias = with_bias(0.0f32, state, bias_at, row) * scale;
            let mut y = soft_cap(activate(totals[total] * factor + bias, act), cap);
            if gated == 1u32 {
                y *= with_bias(totals[total + 1] * factor, state, bias_at, row + 1);
            }
            let mut share = 1.0f32;
            if comptime!(variant.sharing != Sharing::None) {
                share = extra[share_at as usize + batch_row];
            }
            if comptime!(variant.sharing == Sharing::Weigh) {
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
        index += units;
    }
}

/// Four columns of `x` as the product takes them: RMS norm without its row's factor.
#[cube]
fn normed(
    value: Quad<f32>,
    norm: &Array<Quad<f32>>,
    weight_at: usize,
    bias_at: usize,
    offset: f32,
    mean: f32,
    inverse: f32,
    #[comptime] norming: Norming,
) -> Quad<f32> {
    let mut x = value;
    if comptime!(norming != Norming::None) {
        let weight = norm[weight_at] + Quad::<f32>::new(offset);
        if comptime!(norming.centers()) {
            x = (value - Quad::<f32>::new(mean)) * Quad::<f32>::new(inverse) * weight;
            if comptime!(norming.has_bias()) {
                x += norm[bias_at];
            }
        } else {
            x = value * weight;
        }
    }
    x
}
