// A row's key and value on their way from q|k|v to the cache: the vectors 0 and 1 of `vectors`.
#if K_NORM
@group(0) @binding(7) var<storage, read> k_norm: array<f32>;

override K_LAYER: bool = false;
override K_EPS: f32 = 0.00001;
override K_OFFSET: f32 = 0.0;
override K_BIAS: u32 = 32u; // where the norm's bias starts
var<workgroup> key_statistics: vec2<f32>;
#endif

override KEY_AT: u32 = 0u; // column of the first key head
override VALUE_AT: u32 = 0u;

// Brings both; `base` is where the first key head would begin if it were the first column. Ends
// without a barrier.
fn load_new(thread: u32, base: u32) {
    for (var d = thread; d < HEAD_DIM; d += THREADS) {
        vectors[d] = qkv[base + KEY_AT + d];
        vectors[HEAD_DIM + d] = qkv[base + VALUE_AT + d];
    }
}

// Norms and rotates the key, which a barrier has shown to all. Ends with a barrier.
fn turn_new(thread: u32, position: u32) {
#if K_NORM
    if (thread == 0u) {
        key_statistics = head_statistics(0u, K_LAYER, K_EPS);
    }
    workgroupBarrier();
    for (var d = thread; d < HEAD_DIM; d += THREADS) {
        var normed = (vectors[d] - key_statistics.x) * key_statistics.y * (k_norm[d] + K_OFFSET);
        if (K_LAYER) {
            normed += k_norm[K_BIAS + d];
        }
        vectors[d] = normed;
    }
    workgroupBarrier();
#endif
    rotate(thread, 0u, 1u, position, 1u);
    workgroupBarrier();
}
