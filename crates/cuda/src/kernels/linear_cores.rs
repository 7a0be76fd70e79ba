//! The product of `norm_linear` for many rows on tensor cores: `linear_tiled` in multiplications of 16 × 16 × 16 of
//! halves, summed in f32.
//!
//! A number in halves has 11 bits. So each is taken in two: `v = high + low / 2048`, where `high` is `v` rounded to half
//! and `low` what is missing, times 2048; three products of four are computed (Ootomo & Yokota 2022,
//! arXiv:2203.03341). What is left out is below 2^-22 of a product, so that the results are those of the other kernels
//! within the same tolerance, for rows of `x` of 1e-4 and more: `low` has what falls below the least half, down to 1e-11.
//! `x` is taken times 1/16, which lets it reach 1e6 where a half ends at 65504.
//!
//! A cube brings 32 columns of its rows of the matrix, decoded and scaled once, and of its rows of `x` to shared memory.
//! A plane (warp) of 32 units owns `plane_rows` × `plane_batch` results, in fragments of 16 × 16. With `plain` the same
//! planes multiply the same tiles in loops, with numbers that are rounded as halves are: for devices without tensor
//! cores, which test all but the fragments' loads, products and stores. Nothing is unrolled there: software adapters
//! compile for longer than they run.

#![allow(
    clippy::collapsible_if,
    clippy::manual_is_multiple_of,
    reason = "what a kernel decides when it is compiled, and says, stands apart"
)]

mod cores;
mod fragments;

pub(crate) use cores::Cores;

use super::codebook::{Pair, load, load_codebook};
use super::dense::{narrow_f16, widen_f16};
use super::places::output_row;
use super::tile::{Epilogue, Matrix, finish, nobody_takes, weights_of};
use super::variant::{Elements, Lookup, Sharing};
use super::{GROUP, Quad};
use cubecl::cmma;
use cubecl::prelude::*;
use fragments::{accumulator, multiply, multiply_plain};

/// Rows and columns of a fragment, and the columns of `x` that a multiplication takes.
const SIDE: usize = 16;
/// Units of a plane.
const PLANE: usize = 32;
/// Elements of a row in shared memory: rows begin at different banks, and fragments at multiples of 32 bytes.
const PITCH: usize = GROUP + 8;
/// What `low` is multiplied by.
const LOW: f32 = 2048.0;
/// What `x` is multiplied by.
const INPUT: f32 = 1.0 / 16.0;
/// The largest half.
const MOST: f32 = 65504.0;

/// What is fixed when the kernel is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct CoreTile {
    pub elements: Elements,
    pub select: bool,
    pub sharing: Sharing,
    pub cores: Cores,
}

/// The kernel; arguments as those of [`linear_tiled`](super::linear_tiled). `E` is f16, or f32 where loops multiply.
#[cube(launch_unchecked)]
pub(crate) fn linear_cores<E: Float>(
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
    #[comptime] tile: CoreTile,
) {
    let cores = comptime!(tile.cores);
    let elements = comptime!(tile.elements);
    let units = comptime!(cores.units());
    let unit = UNIT_POS as usize;
    let groups = (cols as usize).div_ceil(GROUP);
    let matrix = Matrix { rows, cols, groups, shift, last_block };
    let epilogue = Epilogue { stride, at, bias_at, act, gated, added, share_at, scale, cap };
    let first_row = CUBE_POS_X as usize * comptime!(cores.rows());
    let first_input = CUBE_POS_Y as usize * comptime!(cores.batch());
    let last_input = batch as usize - 1;

    if comptime!(tile.sharing != Sharing::None) {
        if nobody_takes(shares, share_at, first_input, last_input, comptime!(cores.batch())) {
            terminate!();
        }
    }

    let mut table = SharedMemory::<f32>::new(16usize);
    let mut pairs = SharedMemory::<Pair>::new(1usize);
    let mut map = SharedMemory::<f32>::new(comptime!(elements.map_len()));
    // High parts of all rows, then low ones.
    let mut weights_tile =
        SharedMemory::<E>::new_aligned(comptime!(cores.parts() * cores.rows() * PITCH), 128usize);
    let mut input_tile =
        SharedMemory::<E>::new_aligned(comptime!(cores.parts() * cores.batch() * PITCH), 128usize);
    let mut results =
        SharedMemory::<f32>::new_aligned(comptime!(cores.plane_count() * SIDE * SIDE), 128usize);
    if comptime!(elements.is_codes()) {
        load_codebook(state, &mut table, &mut pairs, Lookup::Table, units);
    }
    if comptime!(elements.nested()) {
        load(&mut map, state, 16usize, 256usize, units);
    }

    let plane = unit / PLANE;
    let lane = unit % PLANE;
    let plane_row = plane % comptime!(cores.planes[0]) * comptime!(cores.fragments[0] * SIDE);
    let plane_input = plane / comptime!(cores.planes[0]) * comptime!(cores.fragments[1] * SIDE);
    // Sums of products of high parts, and of mixed ones.
    let mut high = Sequence::<cmma::Matrix<f32>>::new();
    let mut low = Sequence::<cmma::Matrix<f32>>::new();
    if comptime!(!cores.plain) {
        #[unroll]
        for _ in 0..comptime!(cores.own()) {
            high.push(accumulator());
            low.push(accumulator());
        }
    }
    let mut high_sums = Array::<f32>::new(comptime!(cores.sums()));
    let mut low_sums = Array::<f32>::new(comptime!(cores.sums()));
    #[unroll(!cores.plain)]
    for i in 0..comptime!(cores.sums()) {
        high_sums[i] = 0.0f32;
        low_sums[i] = 0.0f32;
    }

    for group in 0..groups {
        sync_cube();
        let mut i = unit;
        while i < comptime!(cores.rows() * 4) {
            let local = i / 4;
            let word = i % 4;
            let row = min(first_row + local, rows as usize - 1);
            let mut row_start = 0u32;
            if comptime!(elements.is_codes()) {
                row_start = scales[row];
            }
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
                word,
                &mut weights,
                elements,
            );
            #[unroll(!cores.plain)]
            for j in 0..8usize {
                let to = local * PITCH + word * 8 + j;
                keep::<E>(&mut weights_tile, to, weights[j], comptime!(cores.rows() * PITCH), cores);
            }
            i += units;
        }
        let mut i = unit;
        while i < comptime!(cores.batch() * 8) {
            let mut source = min(first_input + i / 8, last_input);
            if comptime!(tile.select) {
                source = output_row(places, source);
            }
            let quad = input[(source * groups + group) * 8 + i % 8];
            #[unroll(!cores.plain)]
            for j in 0..4usize {
                let to = i / 8 * PITCH + i % 8 * 4 + j;
                keep::<E>(&mut input_tile, to, quad[j] * INPUT, comptime!(cores.batch() * PITCH), cores);
            }
            i += units;
        }
        sync_cube();
        if comptime!(cores.plain) {
            multiply_plain::<E>(
                &weights_tile,
                &input_tile,
                plane_row,
                plane_input,
                lane,
                min(rows as usize, 1usize),
                &mut high_sums,
                &mut low_sums,
                cores,
            );
        } else {
            multiply::<E>(&weights_tile, &input_tile, plane_row, plane_input, &high, &low, cores);
        }
    }

    #[unroll]
    for r in 0..comptime!(cores.fragments[0]) {
        #[unroll]
        for m in 0..comptime!(cores.fragments[1]) {
            let fragment = comptime!(r * cores.fragments[1] + m);
            let base = plane * comptime!(SIDE * SIDE);
            // `[rows of x, rows of the matrix]`, of high parts, then of low ones.
            let mut kept = Array::<f32>::new(comptime!(SIDE * SIDE / PLANE));
            let mut kept_next = Array::<f32>::new(comptime!(SIDE * SIDE / PLANE));
            #[unroll]
            for part in 0..comptime!(cores.parts()) {
                sync_cube();
                if comptime!(cores.plain) {
                    for j in 0..comptime!(SIDE * SIDE / PLANE) {
                        let own = comptime!(fragment * SIDE * SIDE / PLANE) + j;
                        let mut sum = high_sums[own];
                        if comptime!(part == 1) {
                            sum = low_sums[own];
                        }
                        results[base + lane + j * PLANE] = sum;
                    }
                } else {
                    let mut to = results.slice_mut(base, base + comptime!(SIDE * SIDE));
                    if comptime!(part == 0) {
                        cmma::store(&mut to, high.index(fragment), 16u32, cmma::MatrixLayout::RowMajor);
                    } else {
                        cmma::store(&mut to, low.index(fragment), 16u32, cmma::MatrixLayout::RowMajor);
                    }
                }
                sync_cube();
                #[unroll(!cores.plain)]
                for j in 0..comptime!(SIDE * SIDE / PLANE) {
                    let index = lane + j * PLANE;
                    let next = index - index % SIDE + min(index % SIDE + 1, comptime!(SIDE - 1));
                    if comptime!(part == 0) {
                        kept[j] = results[base + index];
                        kept_next[j] = results[base + next];
                    } else {
                        kept[j] += results[base + index] / LOW;
                        kept_next[j] += results[base + next] / LOW;
                    }
                }
            }
            #[unroll(!cores.plain)]
            for j in 0..comptime!(SIDE * SIDE / PLANE) {
                let index = lane + j * PLANE;
                let row = first_row + plane_row + comptime!(r * SIDE) + index % SIDE;
                let batch_row = first_input + plane_input + comptime!(m * SIDE) + index / SIDE;
                let writes = gated == 0u32 || index % 2 == 0;
                if row < rows as usize && batch_row < batch as usize && writes {
                    finish(
                        kept[j] / INPUT,
                        kept_next[j] / INPUT,
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
}

/// Keeps `value` at `to`, its low part `apart` elements further on.
#[cube]
fn keep<E: Float>(
    tile: &mut SharedMemory<E>,
    to: usize,
    value: f32,
    #[comptime] apart: usize,
    #[comptime] cores: Cores,
) {
    let value = clamp(value, comptime!(-MOST), MOST);
    let mut high = value;
    if comptime!(cores.plain) {
        high = widen_f16(narrow_f16(value));
    }
    let half = E::cast_from(high);
    tile[to] = half;
    if comptime!(cores.split) {
        let mut low = (value - f32::cast_from(half)) * LOW;
        if comptime!(cores.plain) {
            low = widen_f16(narrow_f16(low));
        }
        tile[to + apart] = E::cast_from(low);
    }
}
