// Norms and rotates the keys of many rows and stores keys and values in the cache: before `attend`
// where rows attend to each other.
//
// Grid: [key-value heads of the shard, rows, 1].
override THREADS: u32 = 64u;

#include "places"
#include "heads"
#include "kv"

@group(0) @binding(1) var<storage, read> qkv: array<f32>;
@group(0) @binding(2) var<storage, read_write> keys: array<u32>;
@group(0) @binding(3) var<storage, read_write> values: array<u32>;
#include "new_record"

override QKV_STRIDE: u32 = 96u;
override SHARD_HEAD: u32 = 0u;
override ENCODER: bool = false; // no cache: slots are rows

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let head = workgroup.x;
    let row = workgroup.y;
    load_new(thread, row * QKV_STRIDE + (SHARD_HEAD + head) * HEAD_DIM);
    workgroupBarrier();
    turn_new(thread, position_of(row));
    let sequence = select(sequence_of(row), 0u, ENCODER);
    let slot = select(position_of(row), row, ENCODER);
    let to = head_at(sequence, head);
    for (var word = thread; word < RECORD; word += THREADS) {
        let at = word_at(to, slot, word);
        keys[at] = encode_word(0u, word);
        values[at] = encode_word(HEAD_DIM, word);
    }
}
