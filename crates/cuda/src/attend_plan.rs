//! What an attention launch may take: 16 KiB of shared memory, which every device has.

use crate::kernels::attend::UNITS;
use halfbyte_backend::gpu::AttendLimits;

/// What bounds a cube that attends.
pub(crate) const LIMITS: AttendLimits = AttendLimits {
    threads: UNITS,
    // Less small arrays.
    words: 4096 - 112,
    least_partials: 1,
    max_splits: 16,
    // Weights of heads and splits that a row may have where they are merged: 8 KiB for four rows.
    max_merged: 512,
    // They are merged a quad at a time.
    merged_features: 4,
    fours: false,
};
