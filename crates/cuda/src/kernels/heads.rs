//! Head vectors in shared memory, normed over their features and rotated there.

use super::variant::Norming;
use cubecl::prelude::*;

/// Rotary embedding as kernels are compiled for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Rotary {
    /// Rotated pairs of a head.
    pub pairs: usize,
    /// Whether neighbours are a pair, rather than `i` and `i + pairs`.
    pub adjacent: bool,
}

/// Norms the vectors `first..first + count` over their `head_dim` features. `norm` is its weight, then from
/// `bias_at` its bias. Called by all units; ends in step.
#[cube]
pub(crate) fn norm_heads(
    vectors: &mut SharedMemory<f32>,
    statistics: &mut SharedMemory<f32>,
    norm: &Array<f32>,
    eps: f32,
    offset: f32,
    #[comptime] first: usize,
    #[comptime] count: usize,
    #[comptime] head_dim: usize,
    #[comptime] norming: Norming,
    #[comptime] units: usize,
) {
    if comptime!(norming != Norming::None) {
        let bias_at = comptime!(head_dim.next_multiple_of(32));
        let mut vector = UNIT_POS as usize;
        while vector < count {
            let at = (first + vector) * head_dim;
            let mut mean = 0.0f32;
            if comptime!(norming.centers()) {
                for d in 0..head_dim {
                    mean += vectors[at + d];
                }
                mean /= comptime!(head_dim as f32);
            }
            let mut squares = 0.0f32;
            for d in 0..head_dim {
                let distance = vectors[at + d] - mean;
                squares += distance * distance;
            }
            statistics[vector * 2] = mean;
            statistics[vector * 2 + 1] = 1.0f32 / f32::sqrt(squares / comptime!(head_dim as f32) + eps);
            vector += units;
        }
        sync_cube();
        let mut i = UNIT_POS as usize;
        while i < comptime!(count * head_dim) {
            let d = i % head_dim;
            let vector = i / head_dim;
            let at = comptime!(first * head_dim) + i;
            let centered = (vectors[at] - statistics[vector * 2]) * statistics[vector * 2 + 1];
            let mut normed = centered * (norm[d] + offset);
            if comptime!(norming.has_bias()) {
                normed += norm[bias_at + d];
            }
            vectors[at] = normed;
            i += units;
        }
        sync_cube();
    }
}

/// Rotates the vectors `first..first + count`, of which `each` belong to one position, from `position` up.
/// `rope` is `[positions, pairs, (cosine, sine)]`. Called by all units; the caller brings them into step.
#[cube]
pub(crate) fn rotate_heads(
    vectors: &mut SharedMemory<f32>,
    rope: &Array<f32>,
    position: usize,
    count: usize,
    #[comptime] first: usize,
    #[comptime] each: usize,
    #[comptime] head_dim: usize,
    #[comptime] rotary: Option<Rotary>,
    #[comptime] units: usize,
) {
    if comptime!(rotary.is_some()) {
        let pairs = comptime!(rotary.map_or(1, |rotary| rotary.pairs));
        let adjacent = comptime!(rotary.is_some_and(|rotary| rotary.adjacent));
        let mut i = UNIT_POS as usize;
        while i < count * pairs {
            let vector = i / pairs;
            let pair = i % pairs;
            let turn = ((position + vector / each) * pairs + pair) * 2;
            let cos = rope[turn];
            let sin = rope[turn + 1];
            let step = comptime!(if adjacent { 2 } else { 1 });
            let apart = comptime!(if adjacent { 1 } else { pairs });
            let a = (first + vector) * head_dim + pair * step;
            let x = vectors[a];
            let y = vectors[a + apart];
            vectors[a] = x * cos - y * sin;
            vectors[a + apart] = y * cos + x * sin;
            i += units;
        }
    }
}
