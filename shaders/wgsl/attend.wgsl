// Softmax attention of a tile of TILE_ROWS neighbouring rows of one sequence, for HEADS_HERE query heads
// of one key-value head, over one slice ("split") of the keys: keys and values are read once for all
// of them. The softmax runs online (Milakov & Gimelshein 2018) over KEYS keys at a time.
//
// FRESH (decode: one row a sequence): the split that holds the row's own position norms, rotates and
// rounds its key, and one workgroup stores key and value, so that decode needs no other dispatch.
// PARTS: the result is left in splits, to be merged by the product that reads it.
//
// Grid: [key-value heads of the shard * PIECES, SPLITS, tiles].
override THREADS: u32 = 128u;

#include "places"
#include "heads"
#include "kv"
#include "act"

@group(0) @binding(1) var<storage, read> qkv: array<f32>;
// Records of RECORD words, `[sequences, SHARD_HEADS, CAPACITY]`.
#if FRESH
@group(0) @binding(2) var<storage, read_write> keys: array<u32>;
@group(0) @binding(3) var<storage, read_write> values: array<u32>;
override RECORD_WORDS: u32 = 2u * RECORD;
var<workgroup> records: array<u32, RECORD_WORDS>;
#else
@group(0) @binding(2) var<storage, read> keys: array<u32>;
@group(0) @binding(3) var<storage, read> values: array<u32>;
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
override QUERIES: u32 = 1u; // TILE_ROWS * HEADS_HERE, at most 16; times HEAD_DIM at most 2048
override KEYS: u32 = 8u;
override DOT_LANES: u32 = 1u; // threads that share a score
override SPLITS: u32 = 1u;
override SPLIT_KEYS: u32 = 256u; // fewer keys are not split further
override OUT_STRIDE: u32 = 32u;
override PARTS_ML: u32 = 0u;

const NOTHING: f32 = -1.0e30;
const EIGHT: u32 = 8u;

override TILE_FLOATS: u32 = KEYS * (HEAD_DIM + 1u);
override SCORE_PLANES: u32 = 2u; // DOT_LANES, and a second for exponentials
override SCORE_FLOATS: u32 = QUERIES * KEYS * SCORE_PLANES;
var<workgroup> tile: array<f32, TILE_FLOATS>; // keys, then values
var<workgroup> scores: array<f32, SCORE_FLOATS>;
var<workgroup> statistics: array<vec2<f32>, 17>;
var<workgroup> largest: array<f32, 16>;
var<workgroup> largest_now: array<f32, 16>;
var<workgroup> totals: array<f32, 16>;
var<workgroup> factors: array<f32, 16>;

var<private> own_slot: u32; // of the tile's first row
var<private> record_base: u32; // of slot 0

fn record_word(value: bool, slot: u32, word: u32) -> u32 {
#if FRESH
    if (slot == own_slot) {
        return records[select(0u, RECORD, value) + word];
    }
#endif
    let at = record_base + slot * RECORD + word;
    if (value) {
        return values[at];
    }
    return keys[at];
}

// Keys (or values) of `count` slots from `first`, as f32, into `tile`. Loads of EIGHT words a thread are on
// their way before the first is used.
fn load_tile(thread: u32, value: bool, first: u32, count: u32) {
    let words = count * CODE_WORDS;
    for (var base = thread; base < words; base += EIGHT * THREADS) {
        var bits: array<u32, EIGHT>;
        for (var j = 0u; j < EIGHT; j++) {
            let i = min(base + j * THREADS, words - 1u);
            bits[j] = record_word(value, first + i / CODE_WORDS, i % CODE_WORDS);
        }
        for (var j = 0u; j < EIGHT; j++) {
            let i = base + j * THREADS;
            if (i < words) {
                store_word(value, first, i / CODE_WORDS, i % CODE_WORDS, bits[j]);
            }
        }
    }
}

// The features of one word of a record, which is the tile's `key`-th, into `tile`.
fn store_word(value: bool, first: u32, key: u32, word: u32, bits: u32) {
    let to = key * (HEAD_DIM + 1u);
    if (KV_DTYPE == 0u) {
        tile[to + word] = bitcast<f32>(bits);
    } else if (KV_DTYPE == 1u) {
        let pair = unpack2x16float(bits);
        tile[to + 2u * word] = pair.x;
        if (2u * word + 1u < HEAD_DIM) {
            tile[to + 2u * word + 1u] = pair.y;
        }
    } else {
        let per_word = select(8u, 4u, KV_DTYPE == 2u);
        let width = 32u / per_word;
        let block = word * per_word / 32u;
        let scales = unpack2x16float(record_word(value, first + key, CODE_WORDS + block / 2u));
        let scale = select(scales.x, scales.y, block % 2u == 1u);
        let middle = select(8.0, 128.0, KV_DTYPE == 2u);
        for (var j = 0u; j < per_word; j++) {
            let d = word * per_word + j;
            if (d < HEAD_DIM) {
                let code = (bits >> (j * width)) & ((1u << width) - 1u);
                tile[to + d] = (f32(code) - middle) * scale;
            }
        }
    }
}

fn visible(slot: u32, own: u32) -> bool {
    return !(CAUSAL && slot > own) && !(WINDOW > 0u && slot + WINDOW <= own);
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

    for (var i = thread; i < QUERIES * HEAD_DIM; i += THREADS) {
        let query = i / HEAD_DIM;
        let row = query / HEADS_HERE;
        var value = 0.0;
        if (row < tile_rows) {
            value = qkv[(first_row + row) * QKV_STRIDE + (first_head + query % HEADS_HERE) * HEAD_DIM + i % HEAD_DIM];
        }
        vectors[i] = value;
    }
#if FRESH
    let fresh_at = first_row * QKV_STRIDE + (SHARD_HEAD + kv_head) * HEAD_DIM;
    for (var d = thread; d < HEAD_DIM; d += THREADS) {
        vectors[QUERIES * HEAD_DIM + d] = qkv[fresh_at + KEY_AT + d];
        vectors[(QUERIES + 1u) * HEAD_DIM + d] = qkv[fresh_at + VALUE_AT + d];
    }
#endif
    if (thread < 16u) {
        largest[thread] = NOTHING;
        totals[thread] = 0.0;
    }
    workgroupBarrier();
#if Q_NORM
    if (thread < QUERIES) {
        statistics[thread] = head_statistics(thread, Q_LAYER, Q_EPS);
    }
#endif
#if K_NORM
#if FRESH
    if (thread == QUERIES) {
        statistics[QUERIES] = head_statistics(QUERIES, K_LAYER, K_EPS);
    }
#endif
#endif
#if Q_NORM
    workgroupBarrier();
#else
#if K_NORM
    workgroupBarrier();
#endif
#endif
#if Q_NORM
    for (var i = thread; i < QUERIES * HEAD_DIM; i += THREADS) {
        let d = i % HEAD_DIM;
        let of_query = statistics[i / HEAD_DIM];
        var normed = (vectors[i] - of_query.x) * of_query.y * (q_norm[d] + Q_OFFSET);
        if (Q_LAYER) {
            normed += q_norm[NORM_BIAS + d];
        }
        vectors[i] = normed;
    }
#endif
#if K_NORM
#if FRESH
    for (var d = thread; d < HEAD_DIM; d += THREADS) {
        let at = QUERIES * HEAD_DIM + d;
        var normed = (vectors[at] - statistics[QUERIES].x) * statistics[QUERIES].y * (k_norm[d] + K_OFFSET);
        if (K_LAYER) {
            normed += k_norm[NORM_BIAS + d];
        }
        vectors[at] = normed;
    }
#endif
#endif
#if Q_NORM
    workgroupBarrier();
#else
#if K_NORM
    workgroupBarrier();
#endif
#endif
    rotate(thread, 0u, tile_rows * HEADS_HERE, position, HEADS_HERE);
#if FRESH
    rotate(thread, QUERIES, 1u, position, 1u);
    workgroupBarrier();
    if (own_slot >= begin && own_slot < to) {
        let at = record_base + own_slot * RECORD;
        for (var word = thread; word < RECORD; word += THREADS) {
            let key = encode_word(QUERIES * HEAD_DIM, word);
            let value = encode_word((QUERIES + 1u) * HEAD_DIM, word);
            records[word] = key;
            records[RECORD + word] = value;
            if (workgroup.x % PIECES == 0u) {
                keys[at + word] = key;
                values[at + word] = value;
            }
        }
    }
    workgroupBarrier();
#endif

    // Thread t owns the elements t + i THREADS of `[QUERIES, HEAD_DIM]`.
    var sums: array<f32, 16>;
    for (var first = begin; first < to; first += KEYS) {
        let count = min(KEYS, to - first);
        load_tile(thread, false, first, count);
        workgroupBarrier();
        for (var i = thread; i < QUERIES * KEYS * DOT_LANES; i += THREADS) {
            let pair = i % (QUERIES * KEYS);
            let width = (HEAD_DIM + DOT_LANES - 1u) / DOT_LANES;
            let start = i / (QUERIES * KEYS) * width;
            let query_at = pair / KEYS * HEAD_DIM;
            let key_at = pair % KEYS * (HEAD_DIM + 1u);
            var sum = 0.0;
            if (pair % KEYS < count) {
                for (var d = start; d < min(start + width, HEAD_DIM); d++) {
                    sum += vectors[query_at + d] * tile[key_at + d];
                }
            }
            scores[i] = sum;
        }
        workgroupBarrier();
        load_tile(thread, true, first, count);
        for (var i = thread; i < QUERIES * KEYS; i += THREADS) {
            var score = 0.0;
            for (var lane = 0u; lane < DOT_LANES; lane++) {
                score += scores[i + lane * QUERIES * KEYS];
            }
            let own = own_slot + i / KEYS / HEADS_HERE;
            let seen = i % KEYS < count && visible(first + i % KEYS, own);
            scores[i] = select(NOTHING, soft_cap(score * SCALE, SCORE_CAP), seen);
        }
        workgroupBarrier();
        // A thread for each score. Each looks for the largest of its query: reads that all share cost less
        // than one thread's walk while the others wait.
        for (var i = thread; i < QUERIES * KEYS; i += THREADS) {
            let query = i / KEYS;
            let before = largest[query];
            var now = before;
            for (var key = 0u; key < KEYS; key++) {
                now = max(now, scores[query * KEYS + key]);
            }
            scores[QUERIES * KEYS + i] = select(0.0, exp(scores[i] - now), scores[i] != NOTHING);
            if (i % KEYS == 0u) {
                factors[query] = exp(before - now);
                largest_now[query] = now;
            }
        }
        workgroupBarrier();
        if (thread < QUERIES) {
            var total = totals[thread] * factors[thread];
            for (var key = 0u; key < KEYS; key++) {
                total += scores[(QUERIES + thread) * KEYS + key];
            }
            totals[thread] = total;
            largest[thread] = largest_now[thread];
        }
        for (var i = 0u; i < (QUERIES * HEAD_DIM + THREADS - 1u) / THREADS; i++) {
            let element = thread + i * THREADS;
            if (element < QUERIES * HEAD_DIM) {
                let query = element / HEAD_DIM;
                let d = element % HEAD_DIM;
                var sum = sums[i] * factors[query];
                for (var key = 0u; key < count; key++) {
                    sum += scores[(QUERIES + query) * KEYS + key] * tile[key * (HEAD_DIM + 1u) + d];
                }
                sums[i] = sum;
            }
        }
        workgroupBarrier();
    }

    for (var i = 0u; i < (QUERIES * HEAD_DIM + THREADS - 1u) / THREADS; i++) {
        let element = thread + i * THREADS;
        let query = element / HEAD_DIM;
        let row = query / HEADS_HERE;
        if (element < QUERIES * HEAD_DIM && row < tile_rows) {
            let head = first_head + query % HEADS_HERE;
            let d = element % HEAD_DIM;
#if PARTS
            out[(((first_row + row) * HEADS + head) * SPLITS + split) * HEAD_DIM + d] = sums[i];
#else
            out[(first_row + row) * OUT_STRIDE + head * HEAD_DIM + d] = sums[i] / totals[query];
#endif
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
