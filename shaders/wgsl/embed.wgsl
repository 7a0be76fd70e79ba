// `out[r] = table[token] * SCALE + positions[position + POSITION_OFFSET] + types[type]`, for the tokens
// whose rows this shard of the table holds.
//
// Grid: [ceil(STRIDE4 / 64), rows, 1].
override THREADS: u32 = 64u;

#include "places"
#include "dense"

@group(0) @binding(1) var<storage, read> table: array<vec4<u32>>;
#if POSITIONS
@group(0) @binding(2) var<storage, read> positions: array<vec4<u32>>;

override POSITION_DTYPE: u32 = 0u;
override POSITION_OFFSET: u32 = 0u;
#endif
#if TYPES
@group(0) @binding(3) var<storage, read> types: array<vec4<u32>>;

override TYPE_DTYPE: u32 = 0u;
#endif
// Tokens chosen by the last greedy output, `[outputs]`.
@group(0) @binding(4) var<storage, read> chosen: array<u32>;
@group(0) @binding(6) var<storage, read_write> out: array<vec4<f32>>;

override TABLE_DTYPE: u32 = 0u;
override SHARD_ROW: u32 = 0u;
override ROWS: u32 = 1u;
override STRIDE4: u32 = 8u; // of the tables and of `out`
override SCALE: f32 = 1.0;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row = workgroup.y;
    let column = workgroup.x * THREADS + thread;
    var token = token_of(row);
    if (places[3] == 1u) {
        token = chosen[row];
    }
    if (column >= STRIDE4 || token < SHARD_ROW || token >= SHARD_ROW + ROWS) {
        return;
    }
    let quad = (token - SHARD_ROW) * STRIDE4 + column;
    var sum = dense_quad(table[dense_word(quad, TABLE_DTYPE)], quad, TABLE_DTYPE) * SCALE;
#if POSITIONS
    let place = (position_of(row) + POSITION_OFFSET) * STRIDE4 + column;
    sum += dense_quad(positions[dense_word(place, POSITION_DTYPE)], place, POSITION_DTYPE);
#endif
#if TYPES
    let kind = type_of(row) * STRIDE4 + column;
    sum += dense_quad(types[dense_word(kind, TYPE_DTYPE)], kind, TYPE_DTYPE);
#endif
    out[row * STRIDE4 + column] = sum;
}
