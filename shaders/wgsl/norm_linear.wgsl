// `out = residual + act(W h + b)` for 1 to 8 rows of activations ("columns" here): the decode product.
//
// The prologue forms h in workgroup memory: the input itself, its norm (NORM), or an attention output
// merged from its splits (MERGE). LANES threads share four rows of W and walk their columns in steps of
// 32 weights a thread: 16 bytes of codes a row in one load, one scale a row. Decoded weights serve all
// COLUMNS, staged inputs serve four rows. An expert's workgroups end at once if no row takes it (EXPERT).
//
// Grid: [ceil(ROWS / (4 THREADS / LANES)), 1, 1].
override THREADS: u32 = 128u;
override LANES: u32 = 32u;
override COLUMNS: u32 = 1u; // 1, 2, 4 or 8
override CHUNK4: u32 = 512u; // fours of inputs staged at once for each column; a multiple of 8
override X_STRIDE4: u32 = 8u;
override SELECT: bool = false; // columns are the requested outputs' rows

#include "places"
#include "reduce"
#include "act"
#include "weights"
#include "epilogue"

const STAGED: u32 = 576u; // COLUMNS * CHUNK4 * 9 / 8
var<workgroup> staged: array<vec4<f32>, STAGED>;

// One unused element in nine: neighbouring lanes, 32 inputs apart, meet different banks.
fn pitch() -> u32 {
    return CHUNK4 + CHUNK4 / 8u;
}

fn staged_at(quad: u32) -> u32 {
    return quad + (quad >> 3u);
}

fn columns_now() -> u32 {
    return select(row_count(), output_count(), SELECT);
}

fn row_of_column(column: u32) -> u32 {
    if (SELECT) {
        return output_row(column);
    }
    return column;
}

#if MERGE
// An attention output in splits: `[columns, HEADS, SPLITS, HEAD_DIM]`, not yet divided, then from
// PARTS_ML pairs (largest score, sum of exponentials) `[columns, HEADS, SPLITS]`.
@group(0) @binding(1) var<storage, read> parts: array<f32>;

override HEADS: u32 = 1u;
override HEAD_DIM: u32 = 32u;
override SPLITS: u32 = 1u;
override PARTS_ML: u32 = 0u;

fn input_quad(column: u32, quad: u32) -> vec4<f32> {
    if (HEAD_DIM % 4u == 0u) {
        let feature = quad * 4u;
        if (feature >= COLS) {
            return vec4<f32>();
        }
        let head = column * HEADS + feature / HEAD_DIM;
        let within = feature % HEAD_DIM;
        var largest = -1.0e30;
        for (var s = 0u; s < SPLITS; s++) {
            largest = max(largest, parts[PARTS_ML + (head * SPLITS + s) * 2u]);
        }
        var sum = vec4<f32>();
        var total = 0.0;
        for (var s = 0u; s < SPLITS; s++) {
            let split = head * SPLITS + s;
            let exponentials = parts[PARTS_ML + split * 2u + 1u];
            if (exponentials > 0.0) {
                let weight = exp(parts[PARTS_ML + split * 2u] - largest);
                let at = split * HEAD_DIM + within;
                total += weight * exponentials;
                sum += weight * vec4<f32>(parts[at], parts[at + 1u], parts[at + 2u], parts[at + 3u]);
            }
        }
        return sum / total;
    }
    let feature = quad * 4u;
    return vec4<f32>(
        merged(column, feature),
        merged(column, feature + 1u),
        merged(column, feature + 2u),
        merged(column, feature + 3u),
    );
}

fn merged(column: u32, feature: u32) -> f32 {
    if (feature >= COLS) {
        return 0.0;
    }
    let head = column * HEADS + feature / HEAD_DIM;
    var largest = -1.0e30;
    for (var s = 0u; s < SPLITS; s++) {
        largest = max(largest, parts[PARTS_ML + (head * SPLITS + s) * 2u]);
    }
    var sum = 0.0;
    var total = 0.0;
    for (var s = 0u; s < SPLITS; s++) {
        let split = head * SPLITS + s;
        let exponentials = parts[PARTS_ML + split * 2u + 1u];
        if (exponentials > 0.0) {
            let weight = exp(parts[PARTS_ML + split * 2u] - largest);
            total += weight * exponentials;
            sum += weight * parts[split * HEAD_DIM + feature % HEAD_DIM];
        }
    }
    return sum / total;
}
#else
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;

#if NORM
// Weight, then bias, each padded with zeros to whole groups.
@group(0) @binding(2) var<storage, read> norm: array<vec4<f32>>;

override LAYER: bool = false; // LayerNorm; else RMSNorm
override EPS: f32 = 0.00001;
override OFFSET: f32 = 0.0;

var<workgroup> means: array<f32, 8>;
var<workgroup> inverses: array<f32, 8>;

fn present(quad: u32) -> vec4<f32> {
    let feature = vec4<u32>(0u, 1u, 2u, 3u) + quad * 4u;
    return select(vec4<f32>(), vec4<f32>(1.0), feature < vec4<u32>(COLS));
}

// Padding is zero and adds nothing to sums; LayerNorm's distances are masked.
fn column_statistics(thread: u32, column: u32, row: u32) {
    var mean = 0.0;
    if (LAYER) {
        var sum = 0.0;
        for (var i = thread; i < GROUPS * 8u; i += THREADS) {
            sum += dot(x[row * X_STRIDE4 + i], vec4<f32>(1.0));
        }
        mean = workgroup_sum(sum) / f32(COLS);
    }
    var squares = 0.0;
    for (var i = thread; i < GROUPS * 8u; i += THREADS) {
        var value = x[row * X_STRIDE4 + i];
        if (LAYER) {
            value = (value - mean) * present(i);
        }
        squares += dot(value, value);
    }
    let variance = workgroup_sum(squares) / f32(COLS);
    if (thread == 0u) {
        means[column] = mean;
        inverses[column] = 1.0 / sqrt(variance + EPS);
    }
}

fn input_quad(column: u32, quad: u32) -> vec4<f32> {
    let value = x[source_row[column] * X_STRIDE4 + quad];
    let weight = norm[quad] + OFFSET;
    if (LAYER) {
        return ((value - means[column]) * inverses[column] * weight + norm[GROUPS * 8u + quad]) * present(quad);
    }
    return value * inverses[column] * weight;
}
#else
fn input_quad(column: u32, quad: u32) -> vec4<f32> {
    return x[source_row[column] * X_STRIDE4 + quad];
}
#endif
#endif

var<private> source_row: array<u32, 8>;
// Sums of four rows for each column.
var<private> sums: array<vec4<f32>, 8>;

#if Q4
var<private> unscaled: array<vec4<f32>, 8>;

// Eight columns of four rows, from the quad `at` of the chunk.
fn multiply(at: u32, words: vec4<u32>, starts: vec4<u32>, col: u32) {
    var low = mat4x4<f32>(look_up(words.x), look_up(words.y), look_up(words.z), look_up(words.w));
    let upper = words >> vec4<u32>(4u);
    var high = mat4x4<f32>(look_up(upper.x), look_up(upper.y), look_up(upper.z), look_up(upper.w));
    if (RAGGED) {
        let x_scales = scales_of(starts.x, col);
        let y_scales = scales_of(starts.y, col);
        let z_scales = scales_of(starts.z, col);
        let w_scales = scales_of(starts.w, col);
        low = mat4x4<f32>(
            low[0] * x_scales[0],
            low[1] * y_scales[0],
            low[2] * z_scales[0],
            low[3] * w_scales[0],
        );
        high = mat4x4<f32>(
            high[0] * x_scales[1],
            high[1] * y_scales[1],
            high[2] * z_scales[1],
            high[3] * w_scales[1],
        );
    }
    for (var m = 0u; m < COLUMNS; m++) {
        let slot = m * pitch() + staged_at(at);
        unscaled[m] += staged[slot] * low + staged[slot + 1u] * high;
    }
}
#endif

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
    let columns = columns_now();
#if EXPERT
    if (!is_taken(0u, columns)) {
        return;
    }
#endif
    load_tables(thread);
    for (var m = 0u; m < COLUMNS; m++) {
        source_row[m] = row_of_column(min(m, columns - 1u));
        sums[m] = vec4<f32>();
    }
#if NORM
    for (var m = 0u; m < COLUMNS; m++) {
        column_statistics(thread, m, source_row[m]);
    }
#endif

    let lane = thread % LANES;
    let first = (workgroup.x * (THREADS / LANES) + thread / LANES) * 4u;
    // Rows past the end repeat the last one and are dropped at the end.
    let rows = min(vec4<u32>(first) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(ROWS - 1u));
#if Q4
    let starts = vec4<u32>(row_start(rows.x), row_start(rows.y), row_start(rows.z), row_start(rows.w));
#endif

    for (var chunk = 0u; chunk < GROUPS * 8u; chunk += CHUNK4) {
        let quads = min(CHUNK4, GROUPS * 8u - chunk);
        workgroupBarrier();
        for (var m = 0u; m < COLUMNS; m++) {
            for (var i = thread; i < quads; i += THREADS) {
#if MERGE
                staged[m * pitch() + staged_at(i)] = input_quad(min(m, columns - 1u), chunk + i);
#else
                staged[m * pitch() + staged_at(i)] = input_quad(m, chunk + i);
#endif
            }
        }
        workgroupBarrier();
#if Q4
        for (var group = lane; group < quads / 8u; group += LANES) {
            let at = chunk / 8u + group;
            let a = weights[rows.x * GROUPS + at];
            let b = weights[rows.y * GROUPS + at];
            let c = weights[rows.z * GROUPS + at];
            let d = weights[rows.w * GROUPS + at];
            for (var m = 0u; m < COLUMNS; m++) {
                unscaled[m] = vec4<f32>();
            }
            for (var word = 0u; word < 4u; word++) {
                let words = vec4<u32>(a[word], b[word], c[word], d[word]);
                multiply((group * 4u + word) * 2u, words, starts, at * 32u + word * 8u);
            }
            var scales = vec4<f32>(1.0);
            if (!RAGGED) {
                scales = vec4<f32>(
                    scale_of(starts.x + at * 32u),
                    scale_of(starts.y + at * 32u),
                    scale_of(starts.z + at * 32u),
                    scale_of(starts.w + at * 32u),
                );
            }
            for (var m = 0u; m < COLUMNS; m++) {
                sums[m] += unscaled[m] * scales;
            }
        }
#else
        for (var pair = lane; pair < quads / 2u; pair += LANES) {
            let quad = chunk + pair * 2u;
            let low = mat4x4<f32>(
                weight_quad(rows.x, quad),
                weight_quad(rows.y, quad),
                weight_quad(rows.z, quad),
                weight_quad(rows.w, quad),
            );
            let high = mat4x4<f32>(
                weight_quad(rows.x, quad + 1u),
                weight_quad(rows.y, quad + 1u),
                weight_quad(rows.z, quad + 1u),
                weight_quad(rows.w, quad + 1u),
            );
            for (var m = 0u; m < COLUMNS; m++) {
                let slot = m * pitch() + staged_at(pair * 2u);
                sums[m] += staged[slot] * low + staged[slot + 1u] * high;
            }
        }
#endif
    }

    for (var m = 0u; m < COLUMNS; m++) {
        var sum = sums[m];
#if SUBGROUPS
        for (var step = LANES / 2u; step > 0u; step >>= 1u) {
            sum += subgroupShuffleXor(sum, step);
        }
#else
        workgroupBarrier();
        staged[thread] = sum;
        workgroupBarrier();
        if (lane == 0u) {
            for (var i = 1u; i < LANES; i++) {
                sum += staged[thread + i];
            }
        }
#endif
        if (lane == 0u && m < columns) {
            finish(first, m, sum);
        }
    }
}
