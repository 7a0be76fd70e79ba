// `out = residual + act(W h + b)` for few rows of activations ("columns" here): the decode product.
//
// The prologue forms h in workgroup memory: the input itself, times its norm's weight (NORM), or an
// attention output merged from its splits (MERGE). LANES threads share 4 FOURS rows of W and walk their
// columns in steps of 32 weights a thread: 16 bytes of codes a row in one load, eight loads on their way
// while a step is decoded (the next step's, with four rows the one after it too), one scale a row.
// Decoded weights serve all COLUMNS, staged inputs serve 4 FOURS rows. Where one thread has rows of its own and
// lanes ask each other (LANES 1, SHUFFLE), eight lanes read a group's inputs once for their whole subgroup. An
// RMSNorm's deviation is a factor of the sums: it is formed while the inputs are staged and applied at the end. An
// expert's workgroups end at once if no row takes it (EXPERT).
//
// A step of a thread, for one column: 64 FOURS bytes of codes, 128 FOURS reads of the codebook (of 4
// bytes, at most one a weight), 32 bytes of inputs for 4 FOURS rows of 8 weights, 4 FOURS scales.
//
// Grid: [ceil(ROWS / (4 FOURS THREADS / LANES)), ceil(columns / COLUMNS), 1].
override THREADS: u32 = 128u;
override LANES: u32 = 32u;
override FOURS: u32 = 1u; // 1 or 2
override COLUMNS: u32 = 1u; // 1, 2, 4 or 8
override CHUNK4: u32 = 512u; // fours of inputs staged at once for each column; a multiple of 8 LANES
override X_STRIDE4: u32 = 8u;
override SELECT: bool = false; // columns are the requested outputs' rows

#include "places"
#include "reduce"
#include "act"
#include "weights"
#include "epilogue"

override STAGED: u32 = 576u; // COLUMNS * CHUNK4 * 9 / 8
var<workgroup> staged: array<vec4<f32>, STAGED>;

// One unused element in nine: neighbouring lanes, 32 inputs apart, meet different banks.
fn pitch() -> u32 {
    return CHUNK4 + CHUNK4 / 8u;
}

fn staged_at(quad: u32) -> u32 {
    return quad + (quad >> 3u);
}

// How many columns this workgroup has, from `first` on.
fn columns_from(first: u32) -> u32 {
    return min(select(row_count(), output_count(), SELECT) - first, COLUMNS);
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

var<private> squares: array<f32, 8>; // this thread's part of each column's sum of squares
var<workgroup> means: array<f32, 8>; // of LayerNorm
var<workgroup> inverses: array<f32, 8>;

fn present(quad: u32) -> vec4<f32> {
    let feature = vec4<u32>(0u, 1u, 2u, 3u) + quad * 4u;
    return select(vec4<f32>(), vec4<f32>(1.0), feature < vec4<u32>(COLS));
}

// LayerNorm's mean and reciprocal deviation. Padding is zero and adds nothing to sums; distances are
// masked.
fn layer_statistics(thread: u32, column: u32, row: u32) {
    var sum = 0.0;
    for (var i = thread; i < GROUPS * 8u; i += THREADS) {
        sum += dot(x[row * X_STRIDE4 + i], vec4<f32>(1.0));
    }
    let mean = workgroup_sum(sum) / f32(COLS);
    var distances = 0.0;
    for (var i = thread; i < GROUPS * 8u; i += THREADS) {
        let distance = (x[row * X_STRIDE4 + i] - mean) * present(i);
        distances += dot(distance, distance);
    }
    let variance = workgroup_sum(distances) / f32(COLS);
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
    // Padding is zero here too.
    squares[column] += dot(value, value);
    return value * weight;
}
#else
fn input_quad(column: u32, quad: u32) -> vec4<f32> {
    return x[source_row[column] * X_STRIDE4 + quad];
}
#endif
#endif

var<private> source_row: array<u32, 8>;
// Sums of four rows for each column, then of the second four rows.
var<private> sums: array<vec4<f32>, 16>;

#if SHUFFLE
// Four `lane % 8` of a group's inputs, of each column.
var<private> own_inputs: array<vec4<f32>, 8>;
#endif

// Called before the inputs of a group are asked for. `within`: the group in the chunk.
fn take_group(within: u32) {
#if SHUFFLE
    if (LANES == 1u) {
        for (var m = 0u; m < COLUMNS; m++) {
            own_inputs[m] = staged[m * pitch() + staged_at(within * 8u + subgroup_lane % 8u)];
        }
    }
#endif
}

// Four `quad` of the eight of a group's inputs of column `m`.
fn group_input(m: u32, within: u32, quad: u32) -> vec4<f32> {
#if SHUFFLE
    if (LANES == 1u) {
        return subgroupShuffle(own_inputs[m], quad);
    }
#endif
    return staged[m * pitch() + staged_at(within * 8u) + quad];
}

#if Q4
var<private> unscaled: array<vec4<f32>, 16>; // as `sums`

// Eight columns of four rows: a column of the matrices is a row's.
struct Decoded {
    low: mat4x4<f32>,
    high: mat4x4<f32>,
}

fn decoded(words: vec4<u32>, starts: vec4<u32>, col: u32) -> Decoded {
    let low = mat4x4<f32>(look_up(words.x), look_up(words.y), look_up(words.z), look_up(words.w));
    let upper = words >> vec4<u32>(4u);
    let high = mat4x4<f32>(look_up(upper.x), look_up(upper.y), look_up(upper.z), look_up(upper.w));
    if (!RAGGED) {
        return Decoded(low, high);
    }
    let x_scales = scales_of(starts.x, col);
    let y_scales = scales_of(starts.y, col);
    let z_scales = scales_of(starts.z, col);
    let w_scales = scales_of(starts.w, col);
    return Decoded(
        mat4x4<f32>(low[0] * x_scales[0], low[1] * y_scales[0], low[2] * z_scales[0], low[3] * w_scales[0]),
        mat4x4<f32>(high[0] * x_scales[1], high[1] * y_scales[1], high[2] * z_scales[1], high[3] * w_scales[1]),
    );
}

// Sixteen bytes of each of four rows: 32 columns.
struct Codes {
    x: vec4<u32>,
    y: vec4<u32>,
    z: vec4<u32>,
    w: vec4<u32>,
}

// Groups past the end repeat the last one.
fn codes_at(rows: vec4<u32>, group: u32) -> Codes {
    let at = rows * GROUPS + min(group, GROUPS - 1u);
    return Codes(weights[at.x], weights[at.y], weights[at.z], weights[at.w]);
}

fn word_of(codes: Codes, word: u32) -> vec4<u32> {
    return vec4<u32>(codes.x[word], codes.y[word], codes.z[word], codes.w[word]);
}

fn group_scales(starts: vec4<u32>, group: u32, taken: bool) -> vec4<f32> {
    var scales = vec4<f32>(1.0);
    if (!RAGGED) {
        scales = vec4<f32>(
            scale_of(starts.x + group * 32u),
            scale_of(starts.y + group * 32u),
            scale_of(starts.z + group * 32u),
            scale_of(starts.w + group * 32u),
        );
    }
    return select(vec4<f32>(), scales, taken);
}

// Adds a group of 4 FOURS rows to the sums; each staged input is read once for all of them. `within`: the
// group in the chunk.
fn add_group(
    codes: Codes,
    upper_codes: Codes,
    starts: vec4<u32>,
    upper_starts: vec4<u32>,
    group: u32,
    within: u32,
    taken: bool,
) {
    for (var m = 0u; m < COLUMNS; m++) {
        unscaled[m] = vec4<f32>();
        unscaled[8u + m] = vec4<f32>();
    }
    take_group(within);
    for (var word = 0u; word < 4u; word++) {
        let col = group * 32u + word * 8u;
        let rows = decoded(word_of(codes, word), starts, col);
        if (FOURS == 2u) {
            let upper = decoded(word_of(upper_codes, word), upper_starts, col);
            for (var m = 0u; m < COLUMNS; m++) {
                let low = group_input(m, within, 2u * word);
                let high = group_input(m, within, 2u * word + 1u);
                unscaled[m] += low * rows.low + high * rows.high;
                unscaled[8u + m] += low * upper.low + high * upper.high;
            }
        } else {
            for (var m = 0u; m < COLUMNS; m++) {
                unscaled[m] += group_input(m, within, 2u * word) * rows.low
                    + group_input(m, within, 2u * word + 1u) * rows.high;
            }
        }
    }
    let scales = group_scales(starts, group, taken);
    for (var m = 0u; m < COLUMNS; m++) {
        sums[m] += unscaled[m] * scales;
    }
    if (FOURS == 2u) {
        let upper_scales = group_scales(upper_starts, group, taken);
        for (var m = 0u; m < COLUMNS; m++) {
            sums[8u + m] += unscaled[8u + m] * upper_scales;
        }
    }
}
#else
// Adds eight columns of four rows to the sums from `to` on. `quad`: of the row; `within`: of the chunk.
fn add_pair(to: u32, rows: vec4<u32>, quad: u32, within: u32) {
    let x = weight_pair(rows.x, quad);
    let y = weight_pair(rows.y, quad);
    let z = weight_pair(rows.z, quad);
    let w = weight_pair(rows.w, quad);
    let low = mat4x4<f32>(x[0], y[0], z[0], w[0]);
    let high = mat4x4<f32>(x[1], y[1], z[1], w[1]);
    for (var m = 0u; m < COLUMNS; m++) {
        let slot = m * pitch() + staged_at(within);
        sums[to + m] += staged[slot] * low + staged[slot + 1u] * high;
    }
}
#endif

fn four_rows(first: u32) -> vec4<u32> {
    // Rows past the end repeat the last one and are dropped at the end.
    return min(vec4<u32>(first) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(ROWS - 1u));
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
    let first_column = workgroup.y * COLUMNS;
    let columns = columns_from(first_column);
#if EXPERT
    if (!is_taken(first_column, first_column + columns)) {
        return;
    }
#endif
    let lane = thread % LANES;
    let first = (workgroup.x * (THREADS / LANES) + thread / LANES) * 4u * FOURS;
    let rows = four_rows(first);
    let upper_rows = four_rows(first + 4u);
#if Q4
    // On their way during the prologue: the first step of eight rows, or the first two of four.
    var next = codes_at(rows, lane);
    var further = codes_at(rows, lane + LANES);
    if (FOURS == 2u) {
        further = codes_at(upper_rows, lane);
    }
    let starts = row_starts(rows);
    let upper_starts = row_starts(upper_rows);
#endif
#if SHUFFLE
    load_entries(lane_index);
#endif
    load_tables(thread);
    for (var m = 0u; m < COLUMNS; m++) {
        source_row[m] = row_of_column(first_column + min(m, columns - 1u));
        sums[m] = vec4<f32>();
        sums[8u + m] = vec4<f32>();
#if NORM
        squares[m] = 0.0;
        if (LAYER) {
            layer_statistics(thread, m, source_row[m]);
        }
#endif
    }

    for (var chunk = 0u; chunk < GROUPS * 8u; chunk += CHUNK4) {
        let quads = min(CHUNK4, GROUPS * 8u - chunk);
        workgroupBarrier();
        for (var m = 0u; m < COLUMNS; m++) {
            for (var i = thread; i < quads; i += THREADS) {
#if MERGE
                staged[m * pitch() + staged_at(i)] = input_quad(source_row[m], chunk + i);
#else
                staged[m * pitch() + staged_at(i)] = input_quad(m, chunk + i);
#endif
            }
        }
        workgroupBarrier();
#if Q4
        // All lanes take as many steps: they may ask each other for the codebook.
        for (var base = 0u; base < quads / 8u; base += LANES) {
            let within = base + lane;
            let group = chunk / 8u + within;
            let codes = next;
            let upper_codes = further;
            let ahead = chunk / 8u + base + LANES;
            if (FOURS == 2u) {
                if (ahead < GROUPS) {
                    next = codes_at(rows, ahead + lane);
                    further = codes_at(upper_rows, ahead + lane);
                }
            } else {
                next = further;
                if (ahead + LANES < GROUPS) {
                    further = codes_at(rows, ahead + LANES + lane);
                }
            }
            let known = min(group, GROUPS - 1u);
            let taken = within < quads / 8u;
            add_group(codes, upper_codes, starts, upper_starts, known, known - chunk / 8u, taken);
        }
#else
        for (var pair = lane; pair < quads / 2u; pair += LANES) {
            add_pair(0u, rows, chunk + pair * 2u, pair * 2u);
            if (FOURS == 2u) {
                add_pair(8u, upper_rows, chunk + pair * 2u, pair * 2u);
            }
        }
#endif
    }

#if NORM
    if (!LAYER) {
        for (var m = 0u; m < COLUMNS; m++) {
            let inverse = 1.0 / sqrt(workgroup_sum(squares[m]) / f32(COLS) + EPS);
            sums[m] *= inverse;
            sums[8u + m] *= inverse;
        }
    }
#endif
    for (var m = 0u; m < COLUMNS; m++) {
        for (var four = 0u; four < FOURS; four++) {
            var sum = sums[four * 8u + m];
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
                finish(first + four * 4u, first_column + m, sum);
            }
        }
    }
}
