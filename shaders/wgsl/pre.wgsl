// `x = residual + post(y)`, `h = norm(x)`; x or h may be kept beside (EMIT). One workgroup a row: for
// prompts, whose products take h ready-made, and for models that keep more than a norm.
//
// Grid: [rows, 1, 1].
override THREADS: u32 = 256u;

#include "places"
#include "reduce"

override WIDTH: u32 = 32u;
override STRIDE: u32 = 32u;

@group(0) @binding(1) var<storage, read> y: array<f32>;
@group(0) @binding(2) var<storage, read_write> h: array<f32>;
#if RESIDUAL
@group(0) @binding(3) var<storage, read> residual: array<f32>;
#endif
// Norms: the weight, then from STRIDE the bias.
#if POST
@group(0) @binding(4) var<storage, read> post: array<f32>;

override POST_LAYER: bool = false;
override POST_EPS: f32 = 0.00001;
override POST_OFFSET: f32 = 0.0;
#endif
#if NORM
@group(0) @binding(5) var<storage, read> norm: array<f32>;

override LAYER: bool = false;
override EPS: f32 = 0.00001;
override OFFSET: f32 = 0.0;
#endif
#if EMIT
@group(0) @binding(6) var<storage, read_write> kept: array<f32>;

override EMIT_NORMED: bool = false;
#endif

// Mean (0 unless `layer`) and reciprocal deviation of the row's x, which is in `h`; each thread reads
// what it wrote itself.
fn row_statistics(thread: u32, base: u32, layer: bool, eps: f32) -> vec2<f32> {
    var mean = 0.0;
    if (layer) {
        var sum = 0.0;
        for (var i = thread; i < WIDTH; i += THREADS) {
            sum += h[base + i];
        }
        mean = workgroup_sum(sum) / f32(WIDTH);
    }
    var squares = 0.0;
    for (var i = thread; i < WIDTH; i += THREADS) {
        let distance = h[base + i] - mean;
        squares += distance * distance;
    }
    return vec2<f32>(mean, 1.0 / sqrt(workgroup_sum(squares) / f32(WIDTH) + eps));
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
#if SUBGROUPS
    @builtin(subgroup_id) subgroup_index: u32,
    @builtin(num_subgroups) subgroups: u32,
    @builtin(subgroup_invocation_id) lane_index: u32,
#endif
) {
#if SUBGROUPS
    subgroup = subgroup_index;
    subgroup_count = subgroups;
    subgroup_lane = lane_index;
#else
    local_index = thread;
#endif
    let base = workgroup.x * STRIDE;
    for (var i = thread; i < WIDTH; i += THREADS) {
        h[base + i] = y[base + i];
    }
#if POST
    let of_post = row_statistics(thread, base, POST_LAYER, POST_EPS);
    for (var i = thread; i < WIDTH; i += THREADS) {
        var normed = (h[base + i] - of_post.x) * of_post.y * (post[i] + POST_OFFSET);
        if (POST_LAYER) {
            normed += post[STRIDE + i];
        }
        h[base + i] = normed;
    }
#endif
#if RESIDUAL
    for (var i = thread; i < WIDTH; i += THREADS) {
        h[base + i] += residual[base + i];
    }
#endif
#if EMIT
    if (!EMIT_NORMED) {
        for (var i = thread; i < WIDTH; i += THREADS) {
            kept[base + i] = h[base + i];
        }
    }
#endif
#if NORM
    let of_norm = row_statistics(thread, base, LAYER, EPS);
    for (var i = thread; i < WIDTH; i += THREADS) {
        var normed = (h[base + i] - of_norm.x) * of_norm.y * (norm[i] + OFFSET);
        if (LAYER) {
            normed += norm[STRIDE + i];
        }
        h[base + i] = normed;
    }
#endif
#if EMIT
    if (EMIT_NORMED) {
        for (var i = thread; i < WIDTH; i += THREADS) {
            kept[base + i] = h[base + i];
        }
    }
#endif
}
