//! Sums over units, and the moments of rows that norms need.

use super::variant::Variant;
use super::{GROUP, Quad};
use cubecl::prelude::*;

/// Means (of LayerNorm; else 0) and inverse deviations of a cube's rows of `x`, `[tile_batch]` each, the same
/// for all its units. The variance is a second pass over `x`, for `E[x²] - E[x]²` loses its digits.
#[cube]
pub(crate) fn moments(
    input: &Array<Quad<f32>>,
    first_input: usize,
    cols: u32,
    batch: u32,
    eps: f32,
    mean: &mut Array<f32>,
    inverse: &mut Array<f32>,
    partial: &mut SharedMemory<f32>,
    totals: &mut SharedMemory<f32>,
    #[comptime] variant: Variant,
) {
    let unit = UNIT_POS as usize;
    let units = comptime!(variant.units());
    let quads = (cols as usize).div_ceil(GROUP) * comptime!(GROUP / 4);
    #[unroll]
    for m in 0..comptime!(variant.tile_batch) {
        let row = min(first_input + m, batch as usize - 1);
        mean[m] = 0.0f32;
        if comptime!(variant.norm.centers()) {
            let mut sum = 0.0f32;
            let mut quad = unit;
            while quad < quads {
                let x = input[row * quads + quad];
                sum += x[0] + x[1] + x[2] + x[3];
                quad += units;
            }
            mean[m] = sum_over_cube(sum, partial, totals, variant) / f32::cast_from(cols);
        }
        let mut squares = 0.0f32;
        let mut quad = unit;
        while quad < quads {
            let x = input[row * quads + quad];
            #[unroll]
            for i in 0..4usize {
                // Padding is zero, which is no longer zero when it is centered.
                let centered = x[i] - mean[m];
                if comptime!(variant.norm.centers()) {
                    squares += select(quad * 4 + i < cols as usize, centered * centered, 0.0f32);
                } else {
                    squares += centered * centered;
                }
            }
            quad += units;
        }
        let squares = sum_over_cube(squares, partial, totals, variant);
        inverse[m] = 1.0f32 / f32::sqrt(squares / f32::cast_from(cols) + eps);
    }
}

/// The sum of `value` over all units of the cube, for each of them.
#[cube]
fn sum_over_cube(
    value: f32,
    partial: &mut SharedMemory<f32>,
    totals: &mut SharedMemory<f32>,
    #[comptime] variant: Variant,
) -> f32 {
    let lanes = comptime!(variant.lanes);
    let sum = sum_over_team(value, partial, variant);
    let unit = UNIT_POS as usize;
    let lane = unit % lanes;
    if lane == 0 {
        totals[unit / lanes] = sum;
    }
    sync_cube();
    let mut total = 0.0f32;
    for team in 0..comptime!(variant.teams) {
        total += totals[team];
    }
    sync_cube();
    total
}

/// The sum of `value` over the units of a team, for each of them. Called by all units of the cube.
#[cube]
pub(crate) fn sum_over_team(
    value: f32,
    partial: &mut SharedMemory<f32>,
    #[comptime] variant: Variant,
) -> f32 {
    if comptime!(variant.planes) {
        plane_sum(value)
    } else {
        let lanes = comptime!(variant.lanes);
        let unit = UNIT_POS as usize;
        partial[unit] = value;
        sync_cube();
        let first = unit / lanes * lanes;
        let mut sum = 0.0f32;
        for i in 0..lanes {
            sum += partial[first + i];
        }
        sync_cube();
        sum
    }
}
