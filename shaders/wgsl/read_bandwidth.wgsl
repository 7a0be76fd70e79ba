// Reads a buffer once, 16 bytes a thread at a time, neighbours next to each other: what decoding would be
// if it did nothing but read. The sums are written so that no load can be left out.
//
// Grid: [GROUPS_X, 1, 1].
override THREADS: u32 = 256u;
override QUADS: u32 = 256u; // 16-byte elements of the buffer
override GROUPS_X: u32 = 1u;

@group(0) @binding(1) var<storage, read> source: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> sums: array<u32>; // [GROUPS_X * THREADS]

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) global: vec3<u32>) {
    let stride = GROUPS_X * THREADS;
    var sum = vec4<u32>();
    // Four loads in flight before the first is needed.
    var at = global.x;
    for (; at + 3u * stride < QUADS; at += 4u * stride) {
        let a = source[at];
        let b = source[at + stride];
        let c = source[at + 2u * stride];
        let d = source[at + 3u * stride];
        sum += (a ^ b) + (c ^ d);
    }
    for (; at < QUADS; at += stride) {
        sum += source[at];
    }
    sums[global.x] = sum.x + sum.y + sum.z + sum.w;
}
