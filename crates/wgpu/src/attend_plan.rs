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
    fours: true,
};

/// Queries at most that a thread sums values for.
const VALUE_QUERIES: usize = 8;

/// How the threads of a workgroup share the sums of values: each has one four of features of some queries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ValueTile {
    /// Queries of a thread.
    pub(crate) queries: usize,
    /// Threads that share such a sum, each with a part of the keys.
    pub(crate) lanes: usize,
}

impl ValueTile {
    /// The tile for `threads` threads, which are at least as many as a head has fours, and `keys` keys at once.
    pub(crate) fn new(threads: usize, queries: usize, head_dim: usize, keys: usize) -> Self {
        let fours = head_dim.div_ceil(4);
        let teams = (threads / fours).max(1);
        // Their sums take the place of the keys at the end.
        let room = keys * (fours + 1) / (queries * fours);
        let lanes = (teams / queries).min(room).min(keys.div_ceil(4)).max(1);
        Self { queries: queries.div_ceil(teams), lanes }
    }
}

/// What bounds a workgroup of about `wanted` threads for `queries` queries: more where a thread would sum values
/// for too many.
pub(crate) fn limits(wanted: u32, queries: usize, head_dim: usize) -> AttendLimits {
    let crowded = |threads: usize| {
        threads < head_dim.div_ceil(4)
            || ValueTile::new(threads, queries, head_dim, 1).queries > VALUE_QUERIES
    };
    let mut threads = (wanted as usize).clamp(32, LIMITS.threads);
    while threads < LIMITS.threads && crowded(threads) {
        threads *= 2;
    }
    AttendLimits { threads, ..LIMITS }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_heads_take_more_threads() {
        assert_eq!(limits(32, 1, 64).threads, 32);
        assert_eq!(limits(32, 16, 64).threads, 32);
        assert_eq!(limits(32, 16, 128).threads, 64);
        assert_eq!(limits(32, 1, 256).threads, 64);
        assert_eq!(limits(128, 1, 64).threads, 128);
    }

    #[test]
    fn threads_that_no_query_needs_share_keys() {
        assert_eq!(ValueTile::new(128, 1, 128, 24), ValueTile { queries: 1, lanes: 4 });
        assert_eq!(ValueTile::new(128, 16, 128, 8), ValueTile { queries: 4, lanes: 1 });
        assert_eq!(ValueTile::new(32, 16, 64, 16), ValueTile { queries: 8, lanes: 1 });
        assert_eq!(ValueTile::new(128, 3, 80, 16), ValueTile { queries: 1, lanes: 2 });
    }

    /// Whatever the plan admits, each thread has at most eight queries.
    #[test]
    fn no_thread_has_too_many_queries() {
        for head_dim in 1..=512 {
            for queries in (1..=16).take_while(|queries| queries * head_dim <= 16 * LIMITS.threads) {
                for wanted in [32, 64, 128] {
                    let threads = limits(wanted, queries, head_dim).threads;
                    let tile = ValueTile::new(threads, queries, head_dim, 8);
                    assert!(tile.queries <= VALUE_QUERIES, "{queries} of {head_dim}, {threads} threads");
                    assert!(threads >= head_dim.div_ceil(4));
                }
            }
        }
    }
}
