//! How kernels are shaped for an adapter. What they compute does not depend on it.

/// Shapes of the kernels, chosen once when an adapter is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuning {
    /// Threads of the smallest subgroup, where sums use subgroup operations.
    pub subgroup: Option<u32>,
    /// Whether lanes ask each other for entries of the codebook, where there are subgroups; else it is
    /// read from workgroup memory.
    pub shuffle: bool,
    /// The most threads that share rows of a decode product.
    pub lanes: u32,
    /// The most threads of a decode product's workgroup.
    pub threads: u32,
    /// Fours of inputs that a decode product's workgroup stages at once, 512 or 1024: 9 or 18 KiB. More where the
    /// adapter lends workgroups less than 32 KiB is taken for 512.
    pub staged: u32,
    /// Workgroups that keep the device busy: a product of fewer rows takes smaller ones.
    pub busy: u32,
    /// The most fours of rows and of columns that a thread of a prompt's product has, each 1 or 2.
    pub tile_fours: (u32, u32),
    /// Whether a prompt's product keeps slabs of weights and inputs in f16; it sums in f32.
    pub half_slabs: bool,
    /// The threads of an attention's workgroup where that gives none too many features: 32, 64 or 128.
    pub attend_threads: u32,
    /// Rows of a prompt that go through the decode product at once, where its tiles are slower.
    pub prompt_columns: Option<u32>,
}

impl Tuning {
    /// For a GPU of which nothing else is known. 256 workgroups are two on each of the 128 to 144
    /// processors of the largest.
    pub fn gpu(subgroup: Option<u32>) -> Self {
        Self {
            subgroup,
            shuffle: false,
            lanes: 32,
            threads: 128,
            staged: 512,
            busy: 256,
            tile_fours: (2, 2),
            half_slabs: false,
            attend_threads: 128,
            prompt_columns: None,
        }
    }

    /// For a processor that emulates a GPU: a subgroup is a vector register there. Reads of workgroup
    /// memory by data and reads that differ between lanes cost an instruction a lane, a shuffle and a
    /// read that all lanes share cost one. Each subgroup that waits at a barrier costs, too: workgroups are small,
    /// and a few of them are enough.
    pub fn software(subgroup: Option<u32>) -> Self {
        Self {
            shuffle: subgroup.is_some(),
            lanes: 1,
            threads: 32,
            busy: 4,
            prompt_columns: Some(8),
            attend_threads: 32,
            ..Self::gpu(subgroup)
        }
    }
}

/// The shape of one decode product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TeamShape {
    /// Threads of a workgroup.
    pub(crate) threads: u32,
    /// Threads that share rows, a "team".
    pub(crate) lanes: u32,
    /// Fours of rows of a team.
    pub(crate) fours: u32,
}

impl TeamShape {
    /// The shape for `rows` rows of `groups` groups of 32 columns, of which `chunk` are staged at once,
    /// and for `blocks` times `columns` rows of activations.
    pub(crate) fn new(
        tuning: &Tuning,
        rows: u32,
        groups: u32,
        chunk: u32,
        columns: u32,
        blocks: u32,
    ) -> Self {
        // No more than a subgroup, than the groups of a chunk, or than the groups of a row.
        let largest = tuning.lanes.min(tuning.subgroup.unwrap_or(32)).clamp(1, 32);
        let lanes = largest.min(chunk).min(groups.next_power_of_two());
        let mut shape =
            Self { threads: tuning.threads.max(lanes), lanes, fours: if columns > 2 { 1 } else { 2 } };
        // Eight rows share their inputs where there are enough; else more workgroups, then smaller ones.
        if shape.workgroups(rows) * blocks < tuning.busy {
            shape.fours = 1;
        }
        while shape.workgroups(rows) * blocks < tuning.busy
            && shape.threads > lanes.max(tuning.subgroup.unwrap_or(32))
        {
            shape.threads /= 2;
        }
        shape
    }

    /// Workgroups for `rows` rows.
    pub(crate) fn workgroups(&self, rows: u32) -> u32 {
        rows.div_ceil(4 * self.fours * self.threads / self.lanes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_follow_subgroup_chunk_and_row() {
        let lanes =
            |subgroup, chunk, groups| TeamShape::new(&Tuning::gpu(subgroup), 4096, groups, chunk, 1, 1).lanes;
        assert_eq!(lanes(Some(64), 64, 128), 32);
        assert_eq!(lanes(Some(8), 64, 128), 8);
        assert_eq!(lanes(None, 8, 128), 8);
        assert_eq!(lanes(Some(32), 64, 3), 4);
    }

    /// Llama-2-7B: the wide products take eight rows a team, the others make more workgroups.
    #[test]
    fn short_products_make_smaller_workgroups() {
        let shape = |rows, groups| TeamShape::new(&Tuning::gpu(Some(32)), rows, groups, 64, 1, 1);
        assert_eq!(shape(12288, 128), TeamShape { threads: 128, lanes: 32, fours: 2 });
        assert_eq!(shape(22016, 128), TeamShape { threads: 128, lanes: 32, fours: 2 });
        assert_eq!(shape(4096, 344), TeamShape { threads: 128, lanes: 32, fours: 1 });
        assert_eq!(shape(4096, 344).workgroups(4096), 256);
        assert_eq!(shape(768, 24).threads, 32);
    }
}
