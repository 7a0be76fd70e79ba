//! Which experts a row takes and how much each counts: `p = softmax(scores)`, of which the `top_k` largest are
//! chosen, the lower expert among equals. One launch, a cube a row; it also begins the row of `out`, to which
//! the chosen experts add.
//!
//! An expert is chosen if fewer than `top_k` come before it. Scores that are not numbers come after none: their
//! row takes every expert, and its result is no number either.

use super::epilogue::Residual;
use super::moments::sum_over_cube;
use super::variant::Team;
use cubecl::prelude::*;

/// The kernel. `scores` `[rows, score_stride]`, `shares` `[experts, share_stride]`, `residual` and `out`
/// `[rows, stride]`. `added` is the number of a [`Residual`].
#[cube(launch_unchecked)]
pub(crate) fn route(
    scores: &Array<f32>,
    residual: &Array<f32>,
    shares: &mut Array<f32>,
    out: &mut Array<f32>,
    experts: u32,
    top_k: u32,
    renormalize: u32,
    score_stride: u32,
    share_stride: u32,
    stride: u32,
    width: u32,
    added: u32,
    #[comptime] team: Team,
) {
    let units = comptime!(team.units());
    let row = CUBE_POS_X as usize;
    let base = row * score_stride as usize;
    let mut partial = SharedMemory::<f32>::new(comptime!(team.units()));
    let mut totals = SharedMemory::<f32>::new(comptime!(team.teams));

    let mut largest = scores[base];
    for expert in 1..experts as usize {
        largest = max(largest, scores[base + expert]);
    }
    let mut sum = 0.0f32;
    let mut expert = UNIT_POS as usize;
    while expert < experts as usize {
        let own = scores[base + expert];
        let mut before = 0u32;
        for other in 0..experts as usize {
            let score = scores[base + other];
            if score > own || (score == own && other < expert) {
                before += 1u32;
            }
        }
        let exponential = f32::exp(own - largest);
        let share = select(before < top_k, exponential, 0.0f32);
        sum += select(renormalize == 1u32, share, exponential);
        shares[expert * share_stride as usize + row] = share;
        expert += units;
    }
    let total = sum_over_cube(sum, &mut partial, &mut totals, team);
    let mut expert = UNIT_POS as usize;
    while expert < experts as usize {
        let place = expert * share_stride as usize + row;
        shares[place] = shares[place] / total;
        expert += units;
    }
    if added != comptime!(Residual::Accumulate as u32) {
        let mut i = UNIT_POS as usize;
        while i < width as usize {
            let place = row * stride as usize + i;
            let mut value = 0.0f32;
            if added == comptime!(Residual::Read as u32) {
                value = residual[place];
            }
            out[place] = value;
            i += units;
        }
    }
}
