// Softmax attention of a tile of TILE_ROWS neighbouring rows of one sequence, for HEADS_HERE query heads
// of one key-value head, over one slice ("split") of the keys: keys and values are read once for all
// of them. The softmax runs online (Milakov & Gimelshein 2018) over KEYS keys at a time, which a workgroup
// keeps as vectors of four features: a thread scores QUERY_TILE queries with four keys, and sums one four of
// the features for several queries, so that each vector it reads serves several products.
//
// FRESH (decode: one row a sequence): the split that holds the row's own position norms, rotates and
// rounds its key, and one workgroup stores key and value, so that decode needs no other dispatch.
// PARTS: the result is left in splits, to be merged by the product that reads it.
//
// `kv_tile` brings keys and values, `queries` what they are multiplied with; here are scores, softmax and sums.
//
// Grid: [key-value heads of the shard * PIECES, SPLITS, tiles].
override THREADS: u32 = 128u;

#include "places"
#include "heads"
#include "act"

@group(0) @binding(1) var<storage, read> qkv: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;
#include "kv_tile"
#include "queries"
#if FRESH
#include "new_record"
#endif

override QKV_STRIDE: u32 = 96u;
override SHARD_HEAD: u32 = 0u;
override ENCODER: bool = false; // no cache: slots are rows
override CAUSAL: bool = true;
override WINDOW: u32 = 0u; // 0: none
override SCALE: f32 = 1.0;
override SCORE_CAP: f32 = 0.0;

override HEADS: u32 = 1u;
override GROUP: u32 = 1u; // query heads of a key-value head
override PIECES: u32 = 1u; // workgroups that share them
override HEADS_HERE: u32 = 1u; // GROUP / PIECES
override TILE_ROWS: u32 = 1u;
override QUERIES: u32 = 1u; // TILE_ROWS * HEADS_HERE, at most 16
override KEYS: u32 = 8u;
override QUERY_TILE: u32 = 1u; // queries that a thread scores at once, 1, 2 or 4
override DOT_LANES: u32 = 1u; // threads that share a score
override VALUE_QUERIES: u32 = 1u; // queries that a thread sums values for, at most 8
override VALUE_LANES: u32 = 1u; // threads that share such a sum
override SPLITS: u32 = 1u;
override SPLIT_KEYS: u32 = 256u; // fewer keys are not split further
override OUT_STRIDE: u32 = 32u;
override PARTS_ML: u32 = 0u;

const NOTHING: f32 = -1.0e30;

override KEY_FOURS: u32 = (KEYS + 3u) / 4u;
override QUERY_TILES: u32 = (QUERIES + QUERY_TILE - 1u) / QUERY_TILE;
override SCORE_FOURS: u32 = QUERIES * KEY_FOURS;

override QUERY_VECTORS: u32 = QUERIES * FOURS;
override SCORE_PLANES: u32 = 2u; // DOT_LANES, and a second for exponentials
override SCORE_VECTORS: u32 = SCORE_FOURS * SCORE_PLANES;
var<workgroup> queries: array<vec4<f32>, QUERY_VECTORS>;
// Four `i` of a query is of the keys `i + (0, 1, 2, 3) KEY_FOURS` of the tile.
var<workgroup> scores: array<vec4<f32>, SCORE_VECTORS>;
var<workgroup> statistics: array<vec2<f32>, 16>;
var<workgroup> largest: array<f32, 16>;
var<workgroup> largest_now: array<f32, 16>;
var<workgroup> totals: array<f32, 16>;
var<workgroup> factors: array<f32, 16>;

// The tile's keys of a four of scores. Those past the end are the last one, and are masked.
fn key_rows(four: u32, count: u32) -> vec4<u32> {
    return min(vec4<u32>(0u, 1u, 2u, 3u) * KEY_FOURS + four, vec4<u32>(count - 1u));
}

// Four rows of the tile, one of its fours of features.
fn tile_fours(rows: vec4<u32>, four: u32) -> mat4x4<f32> {
    let at = rows * PITCH + four;
    return mat4x4<f32>(tile[at.x], tile[at.y], tile[at.z], tile[at.w]);
}

// A four of scores of `query`, scaled and capped, and NOTHING where it does not see the key. The tile's first
// slot is `first`.
fn seen_scores(sums: vec4<f32>, query: u32, four: u32, first: u32, count: u32) -> vec4<f32> {
    let key = vec4<u32>(0u, 1u, 2u, 3u) * KEY_FOURS + four;
    let slot = key + first;
    let own = own_slot + query / HEADS_HERE;
    var seen = key < vec4<u32>(count);
    if (CAUSAL) {
        seen = seen & (slot <= vec4<u32>(own));
    }
    if (WINDOW > 0u) {
        seen = seen & (slot + WINDOW > vec4<u32>(own));
    }
    let scaled = sums * SCALE;
    let capped = vec4<f32>(
        soft_cap(scaled.x, SCORE_CAP),
        soft_cap(scaled.y, SCORE_CAP),
        soft_cap(scaled.z, SCORE_CAP),
        soft_cap(scaled.w, SCORE_CAP),
    );
    return select(vec4<f32>(NOTHING), capped, seen);
}

// Scores of all queries with the tile's keys, in DOT_LANES planes of partial sums unless DOT_LANES is 1.
fn score_tile(thread: u32, first: u32, count: u32) {
    for (var i = thread; i < QUERY_TILES * KEY_FOURS * DOT_LANES; i += THREADS) {
        let key_four = i % KEY_FOURS;
        let query = i / KEY_FOURS % QUERY_TILES * QUERY_TILE;
        let lane = i / (KEY_FOURS * QUERY_TILES);
        let rows = key_rows(key_four, count);
        var sums: array<vec4<f32>, 4>;
        for (var four = lane; four < FOURS; four += DOT_LANES) {
            let keys_here = tile_fours(rows, four);
            for (var q = 0u; q < QUERY_TILE; q++) {
                sums[q] += queries[min(query + q, QUERIES - 1u) * FOURS + four] * keys_here;
            }
        }
        for (var q = 0u; q < QUERY_TILE; q++) {
            if (query + q < QUERIES) {
                var sum = sums[q];
                if (DOT_LANES == 1u) {
                    sum = seen_scores(sum, query + q, key_four, first, count);
                }
                scores[lane * SCORE_FOURS + (query + q) * KEY_FOURS + key_four] = sum;
            }
        }
    }
}

// The result of a four of features of one query.
fn put_four(query: u32, four: u32, sum: vec4<f32>, first_row: u32, first_head: u32, split: u32) {
    let row = first_row + query / HEADS_HERE;
    let head = first_head + query % HEADS_HERE;
#if PARTS
    let at = ((row * HEADS + head) * SPLITS + split) * HEAD_DIM;
    let result = sum;
#else
    let at = row * OUT_STRIDE + head * HEAD_DIM;
    let result = sum / totals[query];
#endif
    for (var j = 0u; j < 4u; j++) {
        if (4u * four + j < HEAD_DIM) {
            out[at + 4u * four + j] = result[j];
        }
    }
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let kv_head = workgroup.x / PIECES; // in the shard
    let first_head = (SHARD_HEAD + kv_head) * GROUP + (workgroup.x % PIECES) * HEADS_HERE;
    let split = workgroup.y;
    let first_row = tile_word(workgroup.z, 0u);
    let tile_rows = tile_word(workgroup.z, 1u);
    let position = tile_word(workgroup.z, 3u);
    let run_first = tile_word(workgroup.z, 4u);
    let run_rows = tile_word(workgroup.z, 5u);

    // Private variables never count as uniform, and barriers follow from this one.
    let tile_slot = select(position, first_row, ENCODER);
    own_slot = tile_slot;
    let sequence = select(tile_word(workgroup.z, 2u), 0u, ENCODER);
    head_base = head_at(sequence, kv_head);
    var low = select(0u, run_first, ENCODER);
    if (WINDOW > 0u && tile_slot + 1u > WINDOW) {
        low = max(low, tile_slot + 1u - WINDOW);
    }
    let end = select(tile_slot + run_first + run_rows - first_row, tile_slot + tile_rows, CAUSAL);
    let active_splits = clamp((end - low + SPLIT_KEYS - 1u) / SPLIT_KEYS, 1u, SPLITS);
    let span = ((end - low + active_splits - 1u) / active_splits + KEYS - 1u) / KEYS * KEYS;
    let begin = low + split * span;
    let to = min(end, begin + span);
    if (begin >= to) {
#if PARTS
        if (thread < HEADS_HERE) {
            let at = PARTS_ML + (((first_row * HEADS) + first_head + thread) * SPLITS + split) * 2u;
            out[at] = NOTHING;
            out[at + 1u] = 0.0;
        }
#endif
        return;
    }

#if FRESH
    load_new(thread, first_row * QKV_STRIDE + (SHARD_HEAD + kv_head) * HEAD_DIM);
#endif
    if (thread < 16u) {
        largest[thread] = NOTHING;
        totals[thread] = 0.0;
    }
#if Q_NORM
    if (thread < QUERIES) {
        let row = first_row + min(thread / HEADS_HERE, tile_rows - 1u);
        statistics[thread] = query_statistics(row * QKV_STRIDE + (first_head + thread % HEADS_HERE) * HEAD_DIM);
    }
#endif
    workgroupBarrier();
    // Queries of rows that are missing repeat the last row's.
    for (var i = thread; i < QUERIES * FOURS; i += THREADS) {
        let query = i / FOURS;
        let row = min(query / HEADS_HERE, tile_rows - 1u);
        let base = (first_row + row) * QKV_STRIDE + (first_head + query % HEADS_HERE) * HEAD_DIM;
        queries[i] = query_four(query, base, position + row, i % FOURS * 4u);
    }
#if FRESH
    turn_new(thread, position);
    let is_here = own_slot >= begin && own_slot < to;
    if (is_here) {
        encode_own(thread);
    }
    workgroupBarrier();
    if (is_here && workgroup.x % PIECES == 0u) {
        store_own(thread);
    }
#endif

    // A thread sums one four of features of VALUE_QUERIES queries, over one in VALUE_LANES fours of the keys.
    let value_four = thread % FOURS;
    let value_query = thread / FOURS % QUERIES;
    let value_lane = thread / (FOURS * QUERIES);
    let value_step = max(THREADS / FOURS, 1u);
    let sums_values = thread < THREADS / FOURS * FOURS && value_lane < VALUE_LANES;
    var sums: array<vec4<f32>, 8>;
    for (var first = begin; first < to; first += KEYS) {
        let count = min(KEYS, to - first);
        load_tile(thread, false, first, count);
        workgroupBarrier();
        score_tile(thread, first, count);
        workgroupBarrier();
        load_tile(thread, true, first, count);
        if (DOT_LANES > 1u) {
            for (var i = thread; i < SCORE_FOURS; i += THREADS) {
                var sum = scores[i];
                for (var lane = 1u; lane < DOT_LANES; lane++) {
                    sum += scores[i + lane * SCORE_FOURS];
                }
                scores[i] = seen_scores(sum, i / KEY_FOURS, i % KEY_FOURS, first, count);
            }
            workgroupBarrier();
        }
        // A thread for each four of scores. Each looks for the largest of its query: reads that all share cost
        // less than one thread's walk while the others wait.
        for (var i = thread; i < SCORE_FOURS; i += THREADS) {
            let query = i / KEY_FOURS;
            let before = largest[query];
            var most = vec4<f32>(before);
            for (var four = 0u; four < KEY_FOURS; four++) {
                most = max(most, scores[query * KEY_FOURS + four]);
            }
            let now = max(max(most.x, most.y), max(most.z, most.w));
            let own = scores[i];
            scores[SCORE_FOURS + i] = select(vec4<f32>(), exp(own - now), own != vec4<f32>(NOTHING));
            if (i % KEY_FOURS == 0u) {
                factors[query] = exp(before - now);
                largest_now[query] = now;
            }
        }
        workgroupBarrier();
        if (thread < QUERIES) {
            var total = vec4<f32>(totals[thread] * factors[thread], 0.0, 0.0, 0.0);
            for (var four = 0u; four < KEY_FOURS; four++) {
                total += scores[SCORE_FOURS + thread * KEY_FOURS + four];
            }
            totals[thread] = dot(total, vec4<f32>(1.0));
            largest[thread] = largest_now[thread];
        }
        if (sums_values) {
            for (var i = 0u; i < VALUE_QUERIES; i++) {
                sums[i] *= factors[min(value_query + i * value_step, QUERIES - 1u)];
            }
            for (var four = value_lane; four < KEY_FOURS; four += VALUE_LANES) {
                let values_here = tile_fours(key_rows(four, count), value_four);
                for (var i = 0u; i < VALUE_QUERIES; i++) {
                    let query = min(value_query + i * value_step, QUERIES - 1u);
                    sums[i] += values_here * scores[SCORE_FOURS + query * KEY_FOURS + four];
                }
            }
        }
        workgroupBarrier();
    }

    if (VALUE_LANES > 1u) {
        // There are fewer queries than threads for them, so that each has one.
        if (sums_values) {
            tile[thread] = sums[0];
        }
        workgroupBarrier();
        if (thread < QUERIES * FOURS) {
            for (var lane = 1u; lane < VALUE_LANES; lane++) {
                sums[0] += tile[lane * QUERIES * FOURS + thread];
            }
        }
    }
    for (var i = 0u; i < VALUE_QUERIES; i++) {
        let query = value_query + i * value_step;
        if (sums_values && value_lane == 0u && query < QUERIES && query / HEADS_HERE < tile_rows) {
            put_four(query, value_four, sums[i], first_row, first_head, split);
        }
    }
#if PARTS
    if (thread < QUERIES && thread / HEADS_HERE < tile_rows) {
        let head = first_head + thread % HEADS_HERE;
        let at = PARTS_ML + (((first_row + thread / HEADS_HERE) * HEADS + head) * SPLITS + split) * 2u;
        out[at] = largest[thread];
        out[at + 1u] = totals[thread];
    }
#endif
}
