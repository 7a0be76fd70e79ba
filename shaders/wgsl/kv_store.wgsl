// Norms and rotates the keys of many rows and stores keys and values in the cache: before `attend`
// where rows attend to each other.
//
// Grid: [key-value heads of the shard, rows, 1].
override THREADS: u32 = 64u;

#include "places"
#include "heads"
#include "kv"

@group(0) @binding(1) var<storage, read> qkv: array<f32>;
// Records of RECORD words, `[sequences, SHARD_HEADS, CAPACITY]`.
@group(0) @binding(2) var<storage, read_write> keys: array<u32>;
@group(0) @binding(3) var<storage, read_write> values: array<u32>;
#if K_NORM
@group(0) @binding(7) var<storage, read> k_norm: array<f32>;

override K_LAYER: bool = false;
override K_EPS: f32 = 0.00001;
override K_OFFSET: f32 = 0.0;
override K_BIAS: u32 = 32u; // where the norm's bias starts
var<workgroup> statistics: vec2<f32>;
#endif

override QKV_STRIDE: u32 = 96u;
override KEY_AT: u32 = 0u; // column of the first key head
override VALUE_AT: u32 = 0u;
override SHARD_HEAD: u32 = 0u;
override SHARD_HEADS: u32 = 1u;
override CAPACITY: u32 = 1u;
override ENCODER: bool = false; // no cache: slots are rows

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let head = workgroup.x;
    let row = workgroup.y;
    let begin = row * QKV_STRIDE + (SHARD_HEAD + head) * HEAD_DIM;
    for (var d = thread; d < HEAD_DIM; d += THREADS) {
        vectors[d] = qkv[begin + KEY_AT + d];
        vectors[HEAD_DIM + d] = qkv[begin + VALUE_AT + d];
    }
    workgroupBarrier();
#if K_NORM
    if (thread == 0u) {
        statistics = head_statistics(0u, K_LAYER, K_EPS);
    }
    workgroupBarrier();
    for (var d = thread; d < HEAD_DIM; d += THREADS) {
        var normed = (vectors[d] - statistics.x) * statistics.y * (k_norm[d] + K_OFFSET);
        if (K_LAYER) {
            normed += k_norm[K_BIAS + d];
        }
        vectors[d] = normed;
    }
    workgroupBarrier();
#endif
    rotate(thread, 0u, 1u, position_of(row), 1u);
    workgroupBarrier();
    let sequence = select(sequence_of(row), 0u, ENCODER);
    let slot = select(position_of(row), row, ENCODER);
    let to = ((sequence * SHARD_HEADS + head) * CAPACITY + slot) * RECORD;
    for (var word = thread; word < RECORD; word += THREADS) {
        keys[to + word] = encode_word(0u, word);
        values[to + word] = encode_word(HEAD_DIM, word);
    }
}
