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

/// What bounds a workgroup of about `wanted` threads for `queries` queries: as many as leave none more than 16
/// features.
pub(crate) fn limits(wanted: u32, queries: usize, head_dim: usize) -> AttendLimits {
    let least = (queries * head_dim).div_ceil(16).next_power_of_two();
    AttendLimits { threads: (wanted as usize).max(least).clamp(32, LIMITS.threads), ..LIMITS }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_heads_take_more_threads() {
        assert_eq!(limits(32, 1, 64).threads, 32);
        assert_eq!(limits(32, 8, 128).threads, 64);
        assert_eq!(limits(32, 16, 128).threads, 128);
        assert_eq!(limits(128, 1, 64).threads, 128);
    }
}
