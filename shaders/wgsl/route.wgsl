// Which experts a row takes and how much each counts: `p = softmax(scores)`, of which the TOP_K largest
// are chosen, the lower expert among equals. One workgroup a row; it also begins the row of `out`, to
// which the chosen experts add.
//
// An expert is chosen if fewer than TOP_K come before it. Scores that are not numbers come after none:
// their row takes every expert, and its result is no number either.
//
// Grid: [rows, 1, 1].
override THREADS: u32 = 64u;
override EXPERTS: u32 = 1u;
override TOP_K: u32 = 1u;
override RENORMALIZE: bool = false;
override SCORE_STRIDE: u32 = 32u; // elements of a row of `scores`
override SHARE_STRIDE: u32 = 64u; // rows of an expert in `shares`
override ACCUMULATE: bool = false; // `out` holds the residual
override WIDTH: u32 = 32u;
override STRIDE: u32 = 32u;

#include "reduce"

@group(0) @binding(1) var<storage, read> scores: array<f32>; // [rows, SCORE_STRIDE]
@group(0) @binding(2) var<storage, read_write> shares: array<f32>; // [EXPERTS, SHARE_STRIDE]
@group(0) @binding(6) var<storage, read_write> out: array<f32>;
#if RESIDUAL
@group(0) @binding(7) var<storage, read> residual: array<f32>;
#endif

fn is_chosen(base: u32, expert: u32) -> bool {
    let own = scores[base + expert];
    var before = 0u;
    for (var other = 0u; other < EXPERTS; other++) {
        let score = scores[base + other];
        before += u32(score > own || (score == own && other < expert));
    }
    return before < TOP_K;
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    local_index = thread;
    let row = workgroup.x;
    let base = row * SCORE_STRIDE;
    var largest = scores[base];
    for (var expert = 1u; expert < EXPERTS; expert++) {
        largest = max(largest, scores[base + expert]);
    }
    var sum = 0.0;
    for (var expert = thread; expert < EXPERTS; expert += THREADS) {
        let exponential = exp(scores[base + expert] - largest);
        let share = select(0.0, exponential, is_chosen(base, expert));
        sum += select(exponential, share, RENORMALIZE);
        shares[expert * SHARE_STRIDE + row] = share;
    }
    let total = workgroup_sum(sum);
    for (var expert = thread; expert < EXPERTS; expert += THREADS) {
        shares[expert * SHARE_STRIDE + row] /= total;
    }

    if (ACCUMULATE) {
        return;
    }
    for (var i = thread; i < WIDTH; i += THREADS) {
#if RESIDUAL
        out[row * STRIDE + i] = residual[row * STRIDE + i];
#else
        out[row * STRIDE + i] = 0.0;
#endif
    }
}
