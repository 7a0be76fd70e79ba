//! What an attention dispatch may take: WebGPU's 16 KiB of workgroup memory.

use halfbyte_backend::gpu::AttendLimits;

/// What bounds a workgroup that attends.
pub(crate) const LIMITS: AttendLimits = AttendLimits {
    threads: 128,
    // Less small arrays.
    words: 4096 - 112,
    least_partials: 2,
    max_splits: 8,
    max_merged: usize::MAX,
    merged_features: 1,
};
