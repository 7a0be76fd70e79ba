// A shard of a linear layer's weights, rows in layer order, columns padded to GROUPS groups of 32.
override ROWS: u32 = 4u; // rows of the shard
override COLS: u32 = 32u; // columns without padding
override GROUPS: u32 = 1u;
override SHARD_ROW: u32 = 0u; // the shard's first row in the layer

// 4 bits: `[ROWS, GROUPS]`, one vec4 a group; in each word the low nibbles of bytes 0 to 3 are
// elements 0 to 3, the high nibbles elements 4 to 7. Dense: `[ROWS, GROUPS * 32]` in DTYPE.
@group(0) @binding(3) var<storage, read> weights: array<vec4<u32>>;

#if Q4
// Scales of the whole layer: u8 codes, four a word, if NESTED, else f32.
@group(0) @binding(4) var<storage, read> absmax: array<u32>;
// Codebook [16], 8-bit map [256], then at ROW_AT the element in block space at which each row starts,
// at BIAS_AT the biases, at NESTED_AT, which is even, pairs of (absmax of 256 codes, offset): in pairs,
// so that these are one load.
@group(0) @binding(5) var<storage, read> tables: array<vec2<u32>>;

override NESTED: bool = true;
override RAGGED: bool = false; // blocks may begin within a group: scales are per element
override BLOCK_SHIFT: u32 = 6u;
override ROW_AT: u32 = 272u;
override BIAS_AT: u32 = 272u;
override NESTED_AT: u32 = 272u;

fn table_word(at: u32) -> u32 {
    return tables[at >> 1u][at & 1u];
}

// Tables that are indexed by data live in workgroup memory: constants and private arrays would be
// spilled to memory per thread. 16 words lie in 16 banks: lanes never wait for each other.
#if SHUFFLE
// Or each lane of a subgroup holds an entry (the eighth after it, too, where there are 8 lanes), which
// the others ask for.
override NARROW: bool = false; // some subgroup has less than 16 lanes
var<private> entries: vec2<f32>;

fn load_entries(lane: u32) {
    entries = bitcast<vec2<f32>>(vec2<u32>(
        table_word(lane % select(16u, 8u, NARROW)),
        table_word(8u + lane % 8u),
    ));
}

fn entry(code: u32) -> f32 {
    if (NARROW) {
        let low = subgroupShuffle(entries.x, code & 7u);
        return select(low, subgroupShuffle(entries.y, code & 7u), code > 7u);
    }
    return subgroupShuffle(entries.x, code);
}
#else
var<workgroup> codebook: array<f32, 16>;

fn entry(code: u32) -> f32 {
    return codebook[code];
}
#endif
var<workgroup> code_map: array<f32, 256>;

// Ends without a barrier.
fn load_tables(thread: u32) {
#if SHUFFLE
#else
    for (var i = thread; i < 16u; i += THREADS) {
        codebook[i] = bitcast<f32>(table_word(i));
    }
#endif
    if (NESTED) {
        for (var i = thread; i < 256u; i += THREADS) {
            code_map[i] = bitcast<f32>(table_word(16u + i));
        }
    }
}

fn row_start(row: u32) -> u32 {
    return table_word(ROW_AT + SHARD_ROW + row);
}

fn row_starts(rows: vec4<u32>) -> vec4<u32> {
    return vec4<u32>(row_start(rows.x), row_start(rows.y), row_start(rows.z), row_start(rows.w));
}

fn scale_of(element: u32) -> f32 {
    let block = element >> BLOCK_SHIFT;
    if (NESTED) {
        let code = (absmax[block >> 2u] >> ((block & 3u) * 8u)) & 255u;
        let nested = bitcast<vec2<f32>>(tables[NESTED_AT / 2u + (block >> 8u)]);
        return code_map[code] * nested.x + nested.y;
    }
    return bitcast<f32>(absmax[block]);
}

// Scales of eight elements from column `col` of a row, four in each column of the result. Blocks have at
// least 32 elements, so there are at most two of them. Padding takes the last column's scale: its
// inputs are zero.
fn scales_of(start: u32, col: u32) -> mat2x4<f32> {
    let first = start + min(col, COLS - 1u);
    let last = start + min(col + 7u, COLS - 1u);
    let boundary = (last >> BLOCK_SHIFT) << BLOCK_SHIFT;
    let before = vec4<f32>(scale_of(first));
    let after = vec4<f32>(scale_of(last));
    let low = vec4<u32>(0u, 1u, 2u, 3u) + first;
    return mat2x4<f32>(
        select(before, after, low >= vec4<u32>(boundary)),
        select(before, after, low + 4u >= vec4<u32>(boundary)),
    );
}

fn look_up(nibbles: u32) -> vec4<f32> {
    let code = unpack4xU8(nibbles & 0x0f0f0f0fu);
    return vec4<f32>(entry(code.x), entry(code.y), entry(code.z), entry(code.w));
}

fn bias_of(row: u32) -> f32 {
    return bitcast<f32>(table_word(BIAS_AT + SHARD_ROW + row));
}
#else
override DTYPE: u32 = 0u;

#include "dense"

fn load_tables(thread: u32) {}

fn weight_quad(row: u32, quad: u32) -> vec4<f32> {
    let at = row * GROUPS * 8u + quad;
    return dense_quad(weights[dense_word(at, DTYPE)], at, DTYPE);
}

// Two neighbouring quads, the first of which is even: 16 bytes of 16-bit elements are one load.
fn weight_pair(row: u32, quad: u32) -> mat2x4<f32> {
    let at = row * GROUPS * 8u + quad;
    let words = weights[dense_word(at, DTYPE)];
    if (DTYPE == 0u) {
        return mat2x4<f32>(bitcast<vec4<f32>>(words), bitcast<vec4<f32>>(weights[at + 1u]));
    }
    return mat2x4<f32>(dense_quad(words, 0u, DTYPE), dense_quad(words, 1u, DTYPE));
}

#if BIAS
@group(0) @binding(5) var<storage, read> tables: array<u32>;

fn bias_of(row: u32) -> f32 {
    return bitcast<f32>(tables[SHARD_ROW + row]);
}
#endif
#endif
