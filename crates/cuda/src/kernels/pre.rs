//! `x = residual + post(y)`, `h = norm(x)`; x or h may be kept beside: one launch, a cube a row. For prompts,
//! whose products take h ready-made, and for models that keep more than a norm.

use super::moments::{row_inverse, row_mean};
use super::variant::{Norming, Team};
use super::{GROUP, Quad};
use cubecl::prelude::*;

/// What is fixed when the kernel is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PreVariant {
    pub post: Norming,
    pub norm: Norming,
    pub residual: bool,
    /// Whether something is kept, and whether that is h rather than x.
    pub emit: Option<bool>,
    pub team: Team,
}

/// The kernel, over registers whose rows are padded to whole groups with zeros.
#[cube(launch_unchecked)]
pub(crate) fn pre(
    y: &Array<Quad<f32>>,
    residual: &Array<Quad<f32>>,
    post: &Array<Quad<f32>>,
    norm: &Array<Quad<f32>>,
    h: &mut Array<Quad<f32>>,
    kept: &mut Array<Quad<f32>>,
    cols: u32,
    post_eps: f32,
    post_offset: f32,
    eps: f32,
    offset: f32,
    #[comptime] variant: PreVariant,
) {
    let team = comptime!(variant.team);
    let row = CUBE_POS_X as usize;
    let quads = (cols as usize).div_ceil(GROUP) * comptime!(GROUP / 4);
    let first = row * quads;
    let mut partial = SharedMemory::<f32>::new(comptime!(variant.team.units()));
    let mut totals = SharedMemory::<f32>::new(comptime!(variant.team.teams));

    let mut quad = UNIT_POS as usize;
    while quad < quads {
        h[first + quad] = y[first + quad];
        quad += comptime!(team.units());
    }
    if comptime!(variant.post != Norming::None) {
        norm_row(h, post, row, cols, post_eps, post_offset, &mut partial, &mut totals, variant.post, team);
    }
    if comptime!(variant.residual) {
        let mut quad = UNIT_POS as usize;
        while quad < quads {
            h[first + quad] = h[first + quad] + residual[first + quad];
            quad += comptime!(team.units());
        }
    }
    if comptime!(variant.emit == Some(false)) {
        copy_row(h, kept, first, quads, team);
    }
    if comptime!(variant.norm != Norming::None) {
        norm_row(h, norm, row, cols, eps, offset, &mut partial, &mut totals, variant.norm, team);
    }
    if comptime!(variant.emit == Some(true)) {
        copy_row(h, kept, first, quads, team);
    }
}

/// Norms row `row` of `x` in place. Each unit reads back only what it wrote itself.
#[cube]
pub(crate) fn norm_row(
    x: &mut Array<Quad<f32>>,
    norm: &Array<Quad<f32>>,
    row: usize,
    cols: u32,
    eps: f32,
    offset: f32,
    partial: &mut SharedMemory<f32>,
    totals: &mut SharedMemory<f32>,
    #[comptime] norming: Norming,
    #[comptime] team: Team,
) {
    let quads = (cols as usize).div_ceil(GROUP) * comptime!(GROUP / 4);
    let mean = row_mean(x, row, cols, partial, totals, norming, team);
    let inverse = row_inverse(x, row, cols, mean, eps, partial, totals, norming, team);
    let mut quad = UNIT_POS as usize;
    while quad < quads {
        let value = x[row * quads + quad];
        let weight = norm[quad];
        let mut normed = Quad::<f32>::empty();
        #[unroll]
        for i in 0..4usize {
            let mut element = (value[i] - mean) * inverse * (weight[i] + offset);
            if comptime!(norming.has_bias()) {
                let bias = norm[quads + quad];
                element += bias[i];
            }
            // Padding stays zero.
            normed[i] = select(quad * 4 + i < cols as usize, element, 0.0f32);
        }
        x[row * quads + quad] = normed;
        quad += comptime!(team.units());
    }
}

#[cube]
fn copy_row(
    from: &Array<Quad<f32>>,
    to: &mut Array<Quad<f32>>,
    first: usize,
    quads: usize,
    #[comptime] team: Team,
) {
    let mut quad = UNIT_POS as usize;
    while quad < quads {
        to[first + quad] = from[first + quad];
        quad += comptime!(team.units());
    }
}
