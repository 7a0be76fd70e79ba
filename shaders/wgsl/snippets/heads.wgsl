// Head vectors in workgroup memory, normed over their features and rotated there.
override HEAD_DIM: u32 = 32u;
override VECTORS: u32 = 2u;
// naga cannot process an array's size that is an expression without a name.
override VECTOR_FLOATS: u32 = VECTORS * HEAD_DIM;
var<workgroup> vectors: array<f32, VECTOR_FLOATS>;

#if ROPE
// (cosine, sine), `[positions, PAIRS]`.
@group(0) @binding(5) var<storage, read> rope: array<vec2<f32>>;

override PAIRS: u32 = 1u;
override ADJACENT: bool = false;
#endif

// Rotates the vectors `first..first + count` of the position `base + (vector - first) / per_position`.
fn rotate(thread: u32, first: u32, count: u32, base: u32, per_position: u32) {
#if ROPE
    for (var i = thread; i < count * PAIRS; i += THREADS) {
        let vector = i / PAIRS;
        let pair = i % PAIRS;
        let turn = rope[(base + vector / per_position) * PAIRS + pair];
        let a = (first + vector) * HEAD_DIM + select(pair, 2u * pair, ADJACENT);
        let b = a + select(PAIRS, 1u, ADJACENT);
        let x = vectors[a];
        let y = vectors[b];
        vectors[a] = x * turn.x - y * turn.y;
        vectors[b] = y * turn.x + x * turn.y;
    }
#endif
}

// Mean (for LayerNorm, else 0) and reciprocal deviation of a vector.
fn head_statistics(vector: u32, layer: bool, eps: f32) -> vec2<f32> {
    var mean = 0.0;
    if (layer) {
        for (var d = 0u; d < HEAD_DIM; d++) {
            mean += vectors[vector * HEAD_DIM + d];
        }
        mean /= f32(HEAD_DIM);
    }
    var squares = 0.0;
    for (var d = 0u; d < HEAD_DIM; d++) {
        let distance = vectors[vector * HEAD_DIM + d] - mean;
        squares += distance * distance;
    }
    return vec2<f32>(mean, 1.0 / sqrt(squares / f32(HEAD_DIM) + eps));
}
