//! Sums over units, and the moments of rows that norms need.

use super::variant::{Norming, Team};
use super::{GROUP, Quad};
use cubecl::prelude::*;

/// The mean (of LayerNorm; else 0) of row `row` of `x`, `[rows, cols]` padded to whole groups, for all units of
/// the cube.
#[cube]
pub(crate) fn row_mean(
    input: &Array<Quad<f32>>,
    row: usize,
    cols: u32,
    partial: &mut SharedMemory<f32>,
    totals: &mut SharedMemory<f32>,
    #[comptime] norm: Norming,
    #[comptime] team: Team,
) -> f32 {
    let mut mean = 0.0f32;
    if comptime!(norm.centers()) {
        let quads = (cols as usize).div_ceil(GROUP) * comptime!(GROUP / 4);
        let mut sum = 0.0f32;
        let mut quad = UNIT_POS as usize;
        while quad < quads {
            let x = input[row * quads + quad];
            sum += x[0] + x[1] + x[2] + x[3];
            quad += comptime!(team.units());
        }
        mean = sum_over_cube(sum, partial, totals, team) / f32::cast_from(cols);
    }
    mean
}

/// The inverse deviation (of RMS norm: inverse root of the mean square) of row `row` of `x`, whose `mean` is
/// known. A second pass over `x`, for `E[x²] - E[x]²` loses its digits.
#[cube]
pub(crate) fn row_inverse(
    input: &Array<Quad<f32>>,
    row: usize,
    cols: u32,
    mean: f32,
    eps: f32,
    partial: &mut SharedMemory<f32>,
    totals: &mut SharedMemory<f32>,
    #[comptime] norm: Norming,
    #[comptime] team: Team,
) -> f32 {
    let quads = (cols as usize).div_ceil(GROUP) * comptime!(GROUP / 4);
    let mut squares = 0.0f32;
    let mut quad = UNIT_POS as usize;
    while quad < quads {
        let x = input[row * quads + quad];
        #[unroll]
        for i in 0..4usize {
            // Padding is zero, which is no longer zero when it is centered.
            let centered = x[i] - mean;
            if comptime!(norm.centers()) {
                squares += select(quad * 4 + i < cols as usize, centered * centered, 0.0f32);
            } else {
                squares += centered * centered;
            }
        }
        quad += comptime!(team.units());
    }
    let squares = sum_over_cube(squares, partial, totals, team);
    1.0f32 / f32::sqrt(squares / f32::cast_from(cols) + eps)
}

/// The sum of `value` over all units of the cube, for each of them.
#[cube]
pub(crate) fn sum_over_cube(
    value: f32,
    partial: &mut SharedMemory<f32>,
    totals: &mut SharedMemory<f32>,
    #[comptime] team: Team,
) -> f32 {
    let lanes = comptime!(team.lanes);
    let sum = sum_over_team(value, partial, team);
    let unit = UNIT_POS as usize;
    let lane = unit % lanes;
    if lane == 0 {
        totals[unit / lanes] = sum;
    }
    sync_cube();
    let mut total = 0.0f32;
    for i in 0..comptime!(team.teams) {
        total += totals[i];
    }
    sync_cube();
    total
}

/// The sum of `value` over the units of a team, for each of them. Called by all units of the cube.
#[cube]
pub(crate) fn sum_over_team(value: f32, partial: &mut SharedMemory<f32>, #[comptime] team: Team) -> f32 {
    if comptime!(team.planes) {
        plane_sum(value)
    } else {
        let lanes = comptime!(team.lanes);
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
