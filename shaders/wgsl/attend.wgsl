// Softmax attention of a tile of TILE_ROWS neighbouring rows of one sequence, for HEADS_HERE query heads
// of one key-value head, over one slice ("split") of the keys: keys and values are read once for all
// of them. The softmax runs online (Milakov & Gimelshein 2018) over KEYS keys at a time, which a workgroup
// keeps as vectors of four features: a thread scores QUERY_TILE queries with four keys, and sums one four of
// the features for several queries, so that each vector it reads serves several products.
//
// FRESH (decode: one row a sequence): the split that holds the row's own position norms, rotates and
// rounds its key, and one workgroup stores key and value, so that decode needs no other dispatch.
// PARTS: the result is left in splits, to be merged by the product that reads it.
// WIDE: records are whole fours of words, and are read in loads of 16 bytes.
//
// Grid: [key-value heads of the shard * PIECES, SPLITS, tiles].
override THREADS: u32 = 128u;

#include "places"
#include "heads"
#include "kv"
#include "act"

@group(0) @binding(1) var<storage, read> qkv: array<f32>;
#if WIDE
alias Stored = vec4<u32>;
#else
alias Stored = u32;
#endif
// Records of RECORD words, `[sequences, SHARD_HEADS, CAPACITY]`.
#if FRESH
@group(0) @binding(2) var<storage, read_write> keys: array<Stored>;
@group(0) @binding(3) var<storage, read_write> values: array<Stored>;
override RECORD_WORDS: u32 = 2u * RECORD;
var<workgroup> records: array<u32, RECORD_WORDS>; // of the row's own key and value
#else
@group(0) @binding(2) var<storage, read> keys: array<Stored>;
@group(0) @binding(3) var<storage, read> values: array<Stored>;
#endif
@group(0) @binding(4) var<storage, read_write> out: array<f32>;
#if Q_NORM
@group(0) @binding(6) var<storage, read> q_norm: array<f32>;

override Q_LAYER: bool = false;
override Q_EPS: f32 = 0.00001;
override Q_OFFSET: f32 = 0.0;
#endif
#if K_NORM
@group(0) @binding(7) var<storage, read> k_norm: array<f32>;

override K_LAYER: bool = false;
override K_EPS: f32 = 0.00001;
override K_OFFSET: f32 = 0.0;
#endif

override NORM_BIAS: u32 = 32u; // where a norm's bias starts
override QKV_STRIDE: u32 = 96u;
override KEY_AT: u32 = 0u;
override VALUE_AT: u32 = 0u;
override SHARD_HEAD: u32 = 0u;
override SHARD_HEADS: u32 = 1u;
override CAPACITY: u32 = 1u;
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
const FLIGHT: u32 = 4u;

override FOURS: u32 = (HEAD_DIM + 3u) / 4u; // of a head's features
override PITCH: u32 = FOURS + 1u; // neighbouring keys begin in different banks
override LOADS: u32 = (CODE_WORDS + 3u) / 4u; // of 16 bytes, for a record's codes
override KEY_FOURS: u32 = (KEYS + 3u) / 4u;
override QUERY_TILES: u32 = (QUERIES + QUERY_TILE - 1u) / QUERY_TILE;
override SCORE_FOURS: u32 = QUERIES * KEY_FOURS;

override QUERY_VECTORS: u32 = QUERIES * FOURS;
override TILE_VECTORS: u32 = KEYS * PITCH;
override SCORE_PLANES: u32 = 2u; // DOT_LANES, and a second for exponentials
override SCORE_VECTORS: u32 = SCORE_FOURS * SCORE_PLANES;
var<workgroup> queries: array<vec4<f32>, QUERY_VECTORS>;
var<workgroup> tile: array<vec4<f32>, TILE_VECTORS>; // keys, then values
// Four `i` of a query is of the keys `i + (0, 1, 2, 3) KEY_FOURS` of the tile.
var<workgroup> scores: array<vec4<f32>, SCORE_VECTORS>;
var<workgroup> statistics: array<vec2<f32>, 17>;
var<workgroup> largest: array<f32, 16>;
var<workgroup> largest_now: array<f32, 16>;
var<workgroup> totals: array<f32, 16>;
var<workgroup> factors: array<f32, 16>;

var<private> own_slot: u32; // of the tile's first row
var<private> record_base: u32; // of slot 0, in words

fn stored(value: bool, at: u32) -> Stored {
    if (value) {
        return values[at];
    }
    return keys[at];
}

// Word `word` of a record, or its last one.
fn record_word(value: bool, slot: u32, word: u32) -> u32 {
    let present = min(word, RECORD - 1u);
#if FRESH
    if (slot == own_slot) {
        return records[select(0u, RECORD, value) + present];
    }
#endif
    let at = record_base + slot * RECORD + present;
#if WIDE
    return stored(value, at / 4u)[at % 4u];
#else
    return stored(value, at);
#endif
}

fn four_words(value: bool, slot: u32, load: u32) -> vec4<u32> {
    return vec4<u32>(
        record_word(value, slot, 4u * load),
        record_word(value, slot, 4u * load + 1u),
        record_word(value, slot, 4u * load + 2u),
        record_word(value, slot, 4u * load + 3u),
    );
}

// Four words of a record from word `4 load` on.
fn record_words(value: bool, slot: u32, load: u32) -> vec4<u32> {
#if WIDE
#if FRESH
    if (slot == own_slot) {
        return four_words(value, slot, load);
    }
#endif
    return stored(value, (record_base + slot * RECORD) / 4u + load);
#else
    return four_words(value, slot, load);
#endif
}

// Keys (or values) of `count` slots from `first`, as f32, into `tile`. FLIGHT loads of 16 bytes a thread are on
// their way before the first is used.
fn load_tile(thread: u32, value: bool, first: u32, count: u32) {
    let loads = count * LOADS;
    for (var base = thread; base < loads; base += FLIGHT * THREADS) {
        var words: array<vec4<u32>, FLIGHT>;
        for (var j = 0u; j < FLIGHT; j++) {
            let i = min(base + j * THREADS, loads - 1u);
            words[j] = record_words(value, first + i / LOADS, i % LOADS);
        }
        for (var j = 0u; j < FLIGHT; j++) {
            let i = base + j * THREADS;
            if (i < loads) {
                store_words(value, first, i / LOADS, i % LOADS, words[j]);
            }
        }
    }
}

// Stores the features of a record's words from `4 load` on as those of the tile's `key`-th.
fn store_words(value: bool, first: u32, key: u32, load: u32, words: vec4<u32>) {
    if (KV_DTYPE == 0u) {
        store_four(key, load, bitcast<vec4<f32>>(words));
    } else if (KV_DTYPE == 1u) {
        store_four(key, 2u * load, vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y)));
        store_four(key, 2u * load + 1u, vec4<f32>(unpack2x16float(words.z), unpack2x16float(words.w)));
    } else {
        // Sixteen features of q8 or 32 of q4 are within a block.
        let block = select(load, load / 2u, KV_DTYPE == 2u);
        let scales = unpack2x16float(record_word(value, first + key, CODE_WORDS + block / 2u));
        let scale = select(scales.x, scales.y, block % 2u == 1u);
        for (var j = 0u; j < 4u; j++) {
            let codes = vec4<u32>(words[j]); // the same word four times
            if (KV_DTYPE == 2u) {
                let bytes = (codes >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(255u);
                store_four(key, 4u * load + j, (vec4<f32>(bytes) - 128.0) * scale);
            } else {
                let low = (codes >> vec4<u32>(0u, 4u, 8u, 12u)) & vec4<u32>(15u);
                let high = (codes >> vec4<u32>(16u, 20u, 24u, 28u)) & vec4<u32>(15u);
                store_four(key, 8u * load + 2u * j, (vec4<f32>(low) - 8.0) * scale);
                store_four(key, 8u * load + 2u * j + 1u, (vec4<f32>(high) - 8.0) * scale);
            }
        }
    }
}

// Features past the end are zero.
fn store_four(key: u32, four: u32, values: vec4<f32>) {
    if (four < FOURS) {
        let feature = vec4<u32>(0u, 1u, 2u, 3u) + 4u * four;
        tile[key * PITCH + four] = select(vec4<f32>(), values, feature < vec4<u32>(HEAD_DIM));
    }
}

// A feature of the query that begins at `base`, normed.
fn normed_feature(query: u32, base: u32, d: u32) -> f32 {
    let value = qkv[base + d];
#if Q_NORM
    let of_query = statistics[query];
    var normed = (value - of_query.x) * of_query.y * (q_norm[d] + Q_OFFSET);
    if (Q_LAYER) {
        normed += q_norm[NORM_BIAS + d];
    }
    return normed;
#else
    return value;
#endif
}

// A feature of the query at `position` that begins at `base`, normed and rotated; zero past the end.
fn query_feature(query: u32, base: u32, position: u32, d: u32) -> f32 {
    if (d >= HEAD_DIM) {
        return 0.0;
    }
    let value = normed_feature(query, base, d);
#if ROPE
    if (d < 2u * PAIRS) {
        let second = select(d >= PAIRS, d % 2u == 1u, ADJACENT);
        let distance = select(PAIRS, 1u, ADJACENT);
        let pair = select(d % PAIRS, d / 2u, ADJACENT);
        let other = normed_feature(query, base, select(d + distance, d - distance, second));
        let turn = rope[position * PAIRS + pair];
        return value * turn.x + select(-other, other, second) * turn.y;
    }
#endif
    return value;
}

#if Q_NORM
// As `head_statistics`, of the query that begins at `base`.
fn query_statistics(base: u32) -> vec2<f32> {
    var mean = 0.0;
    if (Q_LAYER) {
        for (var d = 0u; d < HEAD_DIM; d++) {
            mean += qkv[base + d];
        }
        mean /= f32(HEAD_DIM);
    }
    var squares = 0.0;
    for (var d = 0u; d < HEAD_DIM; d++) {
        let distance = qkv[base + d] - mean;
        squares += distance * distance;
    }
    return vec2<f32>(mean, 1.0 / sqrt(squares / f32(HEAD_DIM) + Q_EPS));
}
#endif

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
    record_base = (sequence * SHARD_HEADS + kv_head) * CAPACITY * RECORD;
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
    let fresh_at = first_row * QKV_STRIDE + (SHARD_HEAD + kv_head) * HEAD_DIM;
    for (var d = thread; d < HEAD_DIM; d += THREADS) {
        vectors[d] = qkv[fresh_at + KEY_AT + d];
        vectors[HEAD_DIM + d] = qkv[fresh_at + VALUE_AT + d];
    }
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
        let d = i % FOURS * 4u;
        queries[i] = vec4<f32>(
            query_feature(query, base, position + row, d),
            query_feature(query, base, position + row, d + 1u),
            query_feature(query, base, position + row, d + 2u),
            query_feature(query, base, position + row, d + 3u),
        );
    }
#if FRESH
#if K_NORM
    if (thread == 0u) {
        statistics[16] = head_statistics(0u, K_LAYER, K_EPS);
    }
    workgroupBarrier();
    for (var d = thread; d < HEAD_DIM; d += THREADS) {
        var normed = (vectors[d] - statistics[16].x) * statistics[16].y * (k_norm[d] + K_OFFSET);
        if (K_LAYER) {
            normed += k_norm[NORM_BIAS + d];
        }
        vectors[d] = normed;
    }
    workgroupBarrier();
#endif
    rotate(thread, 0u, 1u, position, 1u);
    workgroupBarrier();
    if (own_slot >= begin && own_slot < to) {
        for (var word = thread; word < RECORD; word += THREADS) {
            records[word] = encode_word(0u, word);
            records[RECORD + word] = encode_word(HEAD_DIM, word);
        }
    }
    workgroupBarrier();
    if (own_slot >= begin && own_slot < to && workgroup.x % PIECES == 0u) {
        let at = record_base + own_slot * RECORD;
#if WIDE
        for (var load = thread; load < RECORD / 4u; load += THREADS) {
            keys[at / 4u + load] = record_words(false, own_slot, load);
            values[at / 4u + load] = record_words(true, own_slot, load);
        }
#else
        for (var word = thread; word < RECORD; word += THREADS) {
            keys[at + word] = records[word];
            values[at + word] = records[RECORD + word];
        }
#endif
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
