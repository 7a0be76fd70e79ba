// `out = residual + act(W x + b)` for many rows of activations: the prompt's product.
//
// A workgroup of 128 threads forms 64 rows of W by 32 rows of x ("columns" here). It walks the inner
// dimension in slabs of 32: weights are decoded once a slab into workgroup memory, `[32, 64]`, and
// serve all 32 columns; each thread owns 4 by 4 sums. An expert's workgroups end at once if none of
// their columns takes it (EXPERT).
//
// Grid: [ceil(ROWS / 64), ceil(columns / 32), 1].
override THREADS: u32 = 128u;
override X_STRIDE4: u32 = 8u;
override SELECT: bool = false;

#include "places"
#include "act"
#include "weights"
#include "epilogue"

@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;

var<workgroup> weight_slab: array<vec4<f32>, 512>; // [32, 64 / 4]
var<workgroup> input_slab: array<vec4<f32>, 256>; // [32, 32 / 4]

fn source_row(column: u32, columns: u32) -> u32 {
    let present = min(column, columns - 1u);
    if (SELECT) {
        return output_row(present);
    }
    return present;
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let columns = select(row_count(), output_count(), SELECT);
#if EXPERT
    if (!is_taken(workgroup.y * 32u, min(workgroup.y * 32u + 32u, columns))) {
        return;
    }
#endif
    load_tables(thread);
    let four_rows = thread % 16u;
    let eighth = thread / 16u; // of the slab when loading, of the columns when multiplying
    let first_row = workgroup.x * 64u + four_rows * 4u;
    let first_column = workgroup.y * 32u + eighth * 4u;
    let rows = min(vec4<u32>(first_row) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(ROWS - 1u));
#if Q4
    let starts = vec4<u32>(row_start(rows.x), row_start(rows.y), row_start(rows.z), row_start(rows.w));
#endif
    // Threads below 64 load four columns each: which, and at which four of the slab.
    let load_four = thread % 8u;
    let load_at = thread / 8u;
    let load_column = workgroup.y * 32u + load_four * 4u;
    let sources = vec4<u32>(
        source_row(load_column, columns),
        source_row(load_column + 1u, columns),
        source_row(load_column + 2u, columns),
        source_row(load_column + 3u, columns),
    );

    var sums = mat4x4<f32>(); // one vector of four rows for each column
    for (var group = 0u; group < GROUPS; group++) {
        workgroupBarrier();
#if Q4
        let word = eighth / 2u;
        let words = vec4<u32>(
            weights[rows.x * GROUPS + group][word],
            weights[rows.y * GROUPS + group][word],
            weights[rows.z * GROUPS + group][word],
            weights[rows.w * GROUPS + group][word],
        ) >> vec4<u32>((eighth % 2u) * 4u);
        let column = group * 32u + eighth * 4u;
        var loaded = mat4x4<f32>(look_up(words.x), look_up(words.y), look_up(words.z), look_up(words.w));
        if (RAGGED) {
            loaded = mat4x4<f32>(
                loaded[0] * scales_of(starts.x, column)[0],
                loaded[1] * scales_of(starts.y, column)[0],
                loaded[2] * scales_of(starts.z, column)[0],
                loaded[3] * scales_of(starts.w, column)[0],
            );
        } else {
            loaded = mat4x4<f32>(
                loaded[0] * scale_of(starts.x + group * 32u),
                loaded[1] * scale_of(starts.y + group * 32u),
                loaded[2] * scale_of(starts.z + group * 32u),
                loaded[3] * scale_of(starts.w + group * 32u),
            );
        }
#else
        let quad = group * 8u + eighth;
        let loaded = mat4x4<f32>(
            weight_quad(rows.x, quad),
            weight_quad(rows.y, quad),
            weight_quad(rows.z, quad),
            weight_quad(rows.w, quad),
        );
#endif
        let turned = transpose(loaded);
        weight_slab[(eighth * 4u) * 16u + four_rows] = turned[0];
        weight_slab[(eighth * 4u + 1u) * 16u + four_rows] = turned[1];
        weight_slab[(eighth * 4u + 2u) * 16u + four_rows] = turned[2];
        weight_slab[(eighth * 4u + 3u) * 16u + four_rows] = turned[3];
        if (thread < 64u) {
            let at = group * 8u + load_at;
            let inputs = transpose(mat4x4<f32>(
                x[sources.x * X_STRIDE4 + at],
                x[sources.y * X_STRIDE4 + at],
                x[sources.z * X_STRIDE4 + at],
                x[sources.w * X_STRIDE4 + at],
            ));
            input_slab[(load_at * 4u) * 8u + load_four] = inputs[0];
            input_slab[(load_at * 4u + 1u) * 8u + load_four] = inputs[1];
            input_slab[(load_at * 4u + 2u) * 8u + load_four] = inputs[2];
            input_slab[(load_at * 4u + 3u) * 8u + load_four] = inputs[3];
        }
        workgroupBarrier();
        for (var k = 0u; k < 32u; k++) {
            let w = weight_slab[k * 16u + four_rows];
            let h = input_slab[k * 8u + eighth];
            sums = mat4x4<f32>(
                sums[0] + w * h.x,
                sums[1] + w * h.y,
                sums[2] + w * h.z,
                sums[3] + w * h.w,
            );
        }
    }
    if (first_column < columns) {
        finish(first_row, first_column, sums[0]);
    }
    if (first_column + 1u < columns) {
        finish(first_row, first_column + 1u, sums[1]);
    }
    if (first_column + 2u < columns) {
        finish(first_row, first_column + 2u, sums[2]);
    }
    if (first_column + 3u < columns) {
        finish(first_row, first_column + 3u, sums[3]);
    }
}
