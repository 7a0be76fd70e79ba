// `out = residual + act(W x + b)` for many rows of activations: the prompt's product.
//
// A workgroup of 128 threads, 16 by 8, forms 64 ROW_FOURS rows of W by 32 COLUMN_FOURS rows of x
// ("columns" here). It walks the inner dimension in slabs of 16: weights are decoded once a slab into
// workgroup memory, `[16, 64 ROW_FOURS]`, and serve all columns; each thread owns 4 ROW_FOURS by
// 4 COLUMN_FOURS sums, so that with both 2 a step of 64 products reads 16 values. Slabs are in f16 where
// F16 is set: half the memory and its reads; products and sums are in f32 always. An expert's workgroups
// end at once if none of their columns takes it (EXPERT).
//
// Grid: [ceil(ROWS / (64 ROW_FOURS)), ceil(columns / (32 COLUMN_FOURS)), 1].
override THREADS: u32 = 128u;
override ROW_FOURS: u32 = 1u; // 1 or 2
override COLUMN_FOURS: u32 = 1u; // 1 or 2
override X_STRIDE4: u32 = 8u;
override SELECT: bool = false;

#include "places"
#include "act"
#include "weights"
#include "epilogue"

@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;

#if F16
alias Four = vec4<f16>;

fn kept(values: vec4<f32>) -> vec4<f16> {
    return vec4<f16>(clamp(values, vec4<f32>(-65504.0), vec4<f32>(65504.0)));
}
#else
alias Four = vec4<f32>;

fn kept(values: vec4<f32>) -> vec4<f32> {
    return values;
}
#endif

var<workgroup> weight_slab: array<Four, 512>; // [16, 16 ROW_FOURS]
// [16, 8 COLUMN_FOURS + 1]: one unused, so that rows of four inputs begin in different banks.
var<workgroup> input_slab: array<Four, 272>;

fn source_row(column: u32, columns: u32) -> u32 {
    let present = min(column, columns - 1u);
    if (SELECT) {
        return output_row(present);
    }
    return present;
}

// Adds the products of four rows and four columns; one vector of rows for each column.
fn add_outer(sums: mat4x4<f32>, w: vec4<f32>, h: vec4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(sums[0] + w * h.x, sums[1] + w * h.y, sums[2] + w * h.z, sums[3] + w * h.w);
}

fn finish_four(row: u32, column: u32, columns: u32, sums: mat4x4<f32>) {
    if (column < columns) {
        finish(row, column, sums[0]);
    }
    if (column + 1u < columns) {
        finish(row, column + 1u, sums[1]);
    }
    if (column + 2u < columns) {
        finish(row, column + 2u, sums[2]);
    }
    if (column + 3u < columns) {
        finish(row, column + 3u, sums[3]);
    }
}

// Which four rows of the tile and which fours of the slab a thread loads.
struct Loader {
    four: u32,
    quad: u32,
    loads: bool,
}

#if Q4
// A word of each of four rows; of each the low or the high nibbles are the four that are wanted.
fn words_at(rows: vec4<u32>, slab: u32, quad: u32) -> vec4<u32> {
    let at = rows * GROUPS + min(slab / 2u, GROUPS - 1u);
    let word = slab % 2u * 2u + quad / 2u;
    let words = vec4<u32>(weights[at.x][word], weights[at.y][word], weights[at.z][word], weights[at.w][word]);
    return words >> vec4<u32>(quad % 2u * 4u);
}

fn scaled(words: vec4<u32>, starts: vec4<u32>, slab: u32, quad: u32) -> mat4x4<f32> {
    let values = mat4x4<f32>(look_up(words.x), look_up(words.y), look_up(words.z), look_up(words.w));
    let column = slab * 16u + quad * 4u;
    if (RAGGED) {
        return mat4x4<f32>(
            values[0] * scales_of(starts.x, column)[0],
            values[1] * scales_of(starts.y, column)[0],
            values[2] * scales_of(starts.z, column)[0],
            values[3] * scales_of(starts.w, column)[0],
        );
    }
    return mat4x4<f32>(
        values[0] * scale_of(starts.x + column),
        values[1] * scale_of(starts.y + column),
        values[2] * scale_of(starts.z + column),
        values[3] * scale_of(starts.w + column),
    );
}
#endif

// Four fours of inputs of neighbouring columns.
fn inputs_at(sources: vec4<u32>, quad: u32) -> mat4x4<f32> {
    let at = sources * X_STRIDE4 + min(quad, X_STRIDE4 - 1u);
    return mat4x4<f32>(x[at.x], x[at.y], x[at.z], x[at.w]);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let columns = select(row_count(), output_count(), SELECT);
    let tile_rows = 64u * ROW_FOURS;
    let tile_columns = 32u * COLUMN_FOURS;
    let tile_column = workgroup.y * tile_columns;
#if EXPERT
    if (!is_taken(tile_column, min(tile_column + tile_columns, columns))) {
        return;
    }
#endif
    load_tables(thread);
    // When multiplying: which fours.
    let row_four = thread % 16u;
    let column_four = thread / 16u;
    // When loading: each thread turns at most one block of four rows by four of the inner dimension, and
    // the last threads one of four columns, too; four neighbours load 64 bytes of each column.
    let row_pitch = 16u * ROW_FOURS;
    let own_rows = Loader(thread % row_pitch, thread / row_pitch, thread < 64u * ROW_FOURS);
    let rank = THREADS - 1u - thread;
    let own_columns = Loader(rank / 4u, rank % 4u, rank < 32u * COLUMN_FOURS);
    let column_pitch = 8u * COLUMN_FOURS + 1u;
    let first_own = workgroup.x * tile_rows + own_rows.four * 4u;
    let rows = min(vec4<u32>(first_own) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(ROWS - 1u));
    let column = tile_column + own_columns.four * 4u;
    let sources = vec4<u32>(
        source_row(column, columns),
        source_row(column + 1u, columns),
        source_row(column + 2u, columns),
        source_row(column + 3u, columns),
    );
    // The next slab is on its way while one is multiplied.
    var next_inputs = inputs_at(sources, own_columns.quad);
#if Q4
    let starts = row_starts(rows);
    var next_words = words_at(rows, 0u, own_rows.quad);
#endif

    var sums = mat4x4<f32>();
    var right = mat4x4<f32>(); // of the second four of columns
    var lower = mat4x4<f32>(); // of the second four of rows
    var corner = mat4x4<f32>(); // of both
    for (var slab = 0u; slab < GROUPS * 2u; slab++) {
        workgroupBarrier();
        if (own_rows.loads) {
#if Q4
            let loaded = scaled(next_words, starts, slab, own_rows.quad);
            next_words = words_at(rows, slab + 1u, own_rows.quad);
#else
            let quad = slab * 4u + own_rows.quad;
            let loaded = mat4x4<f32>(
                weight_quad(rows.x, quad),
                weight_quad(rows.y, quad),
                weight_quad(rows.z, quad),
                weight_quad(rows.w, quad),
            );
#endif
            let turned = transpose(loaded);
            let at = own_rows.quad * 4u * row_pitch + own_rows.four;
            weight_slab[at] = kept(turned[0]);
            weight_slab[at + row_pitch] = kept(turned[1]);
            weight_slab[at + 2u * row_pitch] = kept(turned[2]);
            weight_slab[at + 3u * row_pitch] = kept(turned[3]);
        }
        if (own_columns.loads) {
            let turned = transpose(next_inputs);
            next_inputs = inputs_at(sources, slab * 4u + 4u + own_columns.quad);
            let at = own_columns.quad * 4u * column_pitch + own_columns.four;
            input_slab[at] = kept(turned[0]);
            input_slab[at + column_pitch] = kept(turned[1]);
            input_slab[at + 2u * column_pitch] = kept(turned[2]);
            input_slab[at + 3u * column_pitch] = kept(turned[3]);
        }
        workgroupBarrier();
        for (var k = 0u; k < 16u; k++) {
            let w = vec4<f32>(weight_slab[k * row_pitch + row_four]);
            let h = vec4<f32>(input_slab[k * column_pitch + column_four]);
            sums = add_outer(sums, w, h);
            if (COLUMN_FOURS == 2u) {
                let right_h = vec4<f32>(input_slab[k * column_pitch + 8u + column_four]);
                right = add_outer(right, w, right_h);
                if (ROW_FOURS == 2u) {
                    let lower_w = vec4<f32>(weight_slab[k * row_pitch + 16u + row_four]);
                    lower = add_outer(lower, lower_w, h);
                    corner = add_outer(corner, lower_w, right_h);
                }
            } else if (ROW_FOURS == 2u) {
                lower = add_outer(lower, vec4<f32>(weight_slab[k * row_pitch + 16u + row_four]), h);
            }
        }
    }
    let first_row = workgroup.x * tile_rows + row_four * 4u;
    let first_column = tile_column + column_four * 4u;
    finish_four(first_row, first_column, columns, sums);
    if (COLUMN_FOURS == 2u) {
        finish_four(first_row, first_column + 32u, columns, right);
    }
    if (ROW_FOURS == 2u) {
        finish_four(first_row + 64u, first_column, columns, lower);
        if (COLUMN_FOURS == 2u) {
            finish_four(first_row + 64u, first_column + 32u, columns, corner);
        }
    }
}
