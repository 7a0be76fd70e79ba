// Sums over a workgroup of THREADS threads, a power of two. Every thread gets the sum.
//
// A subgroup's threads are taken to be neighbours by local index, and LANES to divide its size.
var<workgroup> partial_sums: array<f32, THREADS>;

#if SUBGROUPS
var<private> subgroup: u32;
var<private> subgroup_count: u32;
var<private> subgroup_lane: u32;

fn workgroup_sum(value: f32) -> f32 {
    let sum = subgroupAdd(value);
    workgroupBarrier();
    // One thread alone: that all write the same is a race nevertheless.
    if (subgroup_lane == 0u) {
        partial_sums[subgroup] = sum;
    }
    workgroupBarrier();
    var total = 0.0;
    for (var i = 0u; i < subgroup_count; i++) {
        total += partial_sums[i];
    }
    return total;
}
#else
var<private> local_index: u32;

fn workgroup_sum(value: f32) -> f32 {
    workgroupBarrier();
    partial_sums[local_index] = value;
    for (var step = THREADS / 2u; step > 0u; step >>= 1u) {
        workgroupBarrier();
        if (local_index < step) {
            partial_sums[local_index] += partial_sums[local_index + step];
        }
    }
    workgroupBarrier();
    return partial_sums[0];
}
#endif
