// The index of the largest of each output's logits; the lowest among equals; NaN never wins.
//
// Grid: [outputs, 1, 1].
override THREADS: u32 = 256u;
override VOCABULARY: u32 = 32u;
override STRIDE: u32 = 32u;

@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read_write> chosen: array<u32>;

const NONE: u32 = 0xffffffffu;
var<workgroup> best_values: array<f32, THREADS>;
var<workgroup> best_indices: array<u32, THREADS>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    var value = -3.4e38;
    var index = NONE;
    for (var i = thread; i < VOCABULARY; i += THREADS) {
        let logit = logits[workgroup.x * STRIDE + i];
        if (logit > value) {
            value = logit;
            index = i;
        }
    }
    best_values[thread] = value;
    best_indices[thread] = index;
    for (var step = THREADS / 2u; step > 0u; step >>= 1u) {
        workgroupBarrier();
        if (thread < step) {
            let other = best_values[thread + step];
            let other_index = best_indices[thread + step];
            if (other > best_values[thread] || (other == best_values[thread] && other_index < best_indices[thread])) {
                best_values[thread] = other;
                best_indices[thread] = other_index;
            }
        }
    }
    if (thread == 0u) {
        chosen[workgroup.x] = select(best_indices[0], 0u, best_indices[0] == NONE);
    }
}
