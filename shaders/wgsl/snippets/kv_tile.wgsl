// Keys and values of a tile of KEYS slots, out of the cache into workgroup memory, as f32.
//
// WIDE: a record's codes are whole fours of words, and are read in loads of 16 bytes. Those of neighbouring threads
// lie next to each other from one record to the next, since scales lie apart (`kv`).
#include "kv"

#if WIDE
alias Stored = vec4<u32>;
#else
alias Stored = u32;
#endif
#if FRESH
@group(0) @binding(2) var<storage, read_write> keys: array<Stored>;
@group(0) @binding(3) var<storage, read_write> values: array<Stored>;
override RECORD_WORDS: u32 = 2u * RECORD;
var<workgroup> records: array<u32, RECORD_WORDS>; // of the row's own key and value
#else
@group(0) @binding(2) var<storage, read> keys: array<Stored>;
@group(0) @binding(3) var<storage, read> values: array<Stored>;
#endif

override FOURS: u32 = (HEAD_DIM + 3u) / 4u; // of a head's features
override PITCH: u32 = FOURS + 1u; // neighbouring keys begin in different banks
override LOADS: u32 = (CODE_WORDS + 3u) / 4u; // of 16 bytes, for a record's codes
override FLIGHT: u32 = clamp((KEYS * LOADS + THREADS - 1u) / THREADS, 1u, 4u); // loads of a thread at once
override TILE_VECTORS: u32 = KEYS * PITCH;
var<workgroup> tile: array<vec4<f32>, TILE_VECTORS>; // keys, then values

var<private> own_slot: u32; // of the tile's first row
var<private> head_base: u32; // where the head's cache begins, in words

// Word `word` of a record.
fn record_word(value: bool, slot: u32, word: u32) -> u32 {
#if FRESH
    if (slot == own_slot) {
        return records[select(0u, RECORD, value) + word];
    }
#endif
    let at = word_at(head_base, slot, word);
#if WIDE
    if (value) {
        return values[at / 4u][at % 4u];
    }
    return keys[at / 4u][at % 4u];
#else
    if (value) {
        return values[at];
    }
    return keys[at];
#endif
}

// Four words of a record's codes from word `4 load` on, the last one again where there are fewer.
fn four_words(value: bool, slot: u32, load: u32) -> vec4<u32> {
    return vec4<u32>(
        record_word(value, slot, 4u * load),
        record_word(value, slot, min(4u * load + 1u, CODE_WORDS - 1u)),
        record_word(value, slot, min(4u * load + 2u, CODE_WORDS - 1u)),
        record_word(value, slot, min(4u * load + 3u, CODE_WORDS - 1u)),
    );
}

// The same, in one load where that is possible.
fn code_words(value: bool, slot: u32, load: u32) -> vec4<u32> {
#if WIDE
#if FRESH
    if (slot == own_slot) {
        return four_words(value, slot, load);
    }
#endif
    let at = word_at(head_base, slot, 4u * load) / 4u;
    if (value) {
        return values[at];
    }
    return keys[at];
#else
    return four_words(value, slot, load);
#endif
}

// The block whose scale a load's codes have: they are sixteen features of q8 or 32 of q4.
fn block_of(load: u32) -> u32 {
    return select(load, load / 2u, KV_DTYPE == 2u);
}

// The word that has a load's scale; 0 where there are no scales.
fn scale_word(value: bool, slot: u32, load: u32) -> u32 {
    if (SCALE_WORDS == 0u) {
        return 0u;
    }
    return record_word(value, slot, CODE_WORDS + block_of(load) / 2u);
}

// Keys (or values) of `count` slots from `first`, as f32, into `tile`. FLIGHT loads of 16 bytes a thread are on
// their way, and the scales to them, before the first is used.
fn load_tile(thread: u32, value: bool, first: u32, count: u32) {
    let loads = count * LOADS;
    for (var base = thread; base < loads; base += FLIGHT * THREADS) {
        var codes: array<vec4<u32>, 4>;
        var scales: array<u32, 4>;
        for (var j = 0u; j < FLIGHT; j++) {
            let i = min(base + j * THREADS, loads - 1u);
            codes[j] = code_words(value, first + i / LOADS, i % LOADS);
            scales[j] = scale_word(value, first + i / LOADS, i % LOADS);
        }
        for (var j = 0u; j < FLIGHT; j++) {
            let i = base + j * THREADS;
            if (i < loads) {
                store_codes(i / LOADS, i % LOADS, codes[j], scales[j]);
            }
        }
    }
}

// Stores the features of a record's words from `4 load` on as those of the tile's `key`-th.
fn store_codes(key: u32, load: u32, words: vec4<u32>, scale_bits: u32) {
    if (KV_DTYPE == 0u) {
        store_four(key, load, bitcast<vec4<f32>>(words));
    } else if (KV_DTYPE == 1u) {
        store_four(key, 2u * load, vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y)));
        store_four(key, 2u * load + 1u, vec4<f32>(unpack2x16float(words.z), unpack2x16float(words.w)));
    } else {
        let scales = unpack2x16float(scale_bits);
        let scale = select(scales.x, scales.y, block_of(load) % 2u == 1u);
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

#if FRESH
// Makes the own slot's records of `vectors`. Ends without a barrier.
fn encode_own(thread: u32) {
    for (var word = thread; word < RECORD; word += THREADS) {
        records[word] = encode_word(0u, word);
        records[RECORD + word] = encode_word(HEAD_DIM, word);
    }
}

// Stores them in the cache.
fn store_own(thread: u32) {
#if WIDE
    for (var load = thread; load < LOADS; load += THREADS) {
        let at = word_at(head_base, own_slot, 4u * load) / 4u;
        keys[at] = four_words(false, own_slot, load);
        values[at] = four_words(true, own_slot, load);
    }
    // One thread for all scales: Metal may store a component by storing its vector. What else is in that vector belongs
    // to this head, which nobody else writes, and stays as it is.
    if (thread == 0u) {
        for (var word = CODE_WORDS; word < RECORD; word++) {
            let at = word_at(head_base, own_slot, word);
            keys[at / 4u][at % 4u] = records[word];
            values[at / 4u][at % 4u] = records[RECORD + word];
        }
    }
#else
    for (var word = thread; word < RECORD; word += THREADS) {
        let at = word_at(head_base, own_slot, word);
        keys[at] = records[word];
        values[at] = records[RECORD + word];
    }
#endif
}
#endif
