//! An attention's output in splits, merged as a product reads it.

use super::Quad;
use super::variant::Merge;
use cubecl::prelude::*;

/// How much each split counts in row `row`, `[heads, splits]` from `at` on: `exp(m - max) / sum`, where a
/// split's own weights were `exp(score - m)` and summed to `l`. `statistics` is `[rows, heads, splits, (m, l)]`.
#[cube]
pub(crate) fn load_weights(
    statistics: &Array<f32>,
    row: usize,
    weights: &mut SharedMemory<f32>,
    #[comptime] at: usize,
    #[comptime] merge: Merge,
    #[comptime] units: usize,
) {
    let splits = comptime!(merge.splits);
    let mut head = UNIT_POS as usize;
    while head < comptime!(merge.heads) {
        let first = (row * comptime!(merge.heads) + head) * splits;
        let mut largest = statistics[first * 2];
        for split in 1..splits {
            largest = max(largest, statistics[(first + split) * 2]);
        }
        let mut total = 0.0f32;
        for split in 0..splits {
            let pair = (first + split) * 2;
            total += f32::exp(statistics[pair] - largest) * statistics[pair + 1];
        }
        for split in 0..splits {
            let pair = (first + split) * 2;
            // What an empty split holds is anything, so it must count exactly nothing.
            let weight = f32::exp(statistics[pair] - largest) / total;
            weights[at + head * splits + split] = select(statistics[pair + 1] > 0.0f32, weight, 0.0f32);
        }
        head += units;
    }
}

/// Columns `4 quad .. 4 quad + 4` of row `row`, from `parts`, `[rows, heads, splits, head_dim]`.
#[cube]
pub(crate) fn merged_quad(
    parts: &Array<Quad<f32>>,
    row: usize,
    quad: usize,
    weights: &SharedMemory<f32>,
    #[comptime] at: usize,
    #[comptime] merge: Merge,
) -> Quad<f32> {
    let splits = comptime!(merge.splits);
    let quads = comptime!(merge.head_dim / 4);
    let head = quad / quads;
    let mut sum = Quad::<f32>::new(0.0f32);
    if head < comptime!(merge.heads) {
        let first = (row * comptime!(merge.heads) + head) * splits;
        for split in 0..splits {
            let weight = weights[at + head * splits + split];
            if weight > 0.0f32 {
                sum += parts[(first + split) * quads + quad % quads] * Quad::<f32>::new(weight);
            }
        }
    }
    sum
}
