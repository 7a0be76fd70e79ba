//! `norm_linear.wgsl`: the decode product with its prologue and epilogue.

use super::Product;
use crate::pipeline::{Extent, Launch};
use halfbyte_shaders::{Flag, Kernel, Variant};

/// Threads of a workgroup.
const THREADS: u32 = 128;
/// Fours of inputs that are staged at once, over all columns.
const STAGED: u32 = 512;

/// An attention output in splits, as the product's input.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Splits<'a> {
    pub(crate) buffer: &'a wgpu::Buffer,
    pub(crate) heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) splits: usize,
    /// Where pairs of maximum and sum start, in words.
    pub(crate) pairs_at: usize,
}

/// The product of `columns` (1, 2, 4 or 8) rows of activations: one launch for each shard.
pub(crate) fn launches<'a>(
    product: &Product<'a>,
    splits: Option<Splits<'a>>,
    columns: u32,
    subgroup: Option<u32>,
) -> Vec<Launch<'a>> {
    let plan = &product.held.plan;
    let flags = product
        .flags()
        .with(Flag::Subgroups, subgroup.is_some())
        .with(Flag::Norm, product.norm.is_some())
        .with(Flag::Merge, splits.is_some());
    let chunk = STAGED / columns;
    let lanes = lanes(subgroup, chunk, plan.groups as u32);
    let launch = |shard: usize| {
        let mut launch = Launch {
            variant: Variant { kernel: Kernel::NormLinear, flags },
            constants: vec![
                ("THREADS", f64::from(THREADS)),
                ("LANES", f64::from(lanes)),
                ("COLUMNS", f64::from(columns)),
                ("CHUNK4", f64::from(chunk)),
                ("X_STRIDE4", (product.input.stride / 4) as f64),
            ],
            bindings: Vec::new(),
            grid: [
                Extent::Fixed((plan.shards[shard].1 as u32).div_ceil(4 * THREADS / lanes)),
                Extent::Fixed(1),
                Extent::Fixed(1),
            ],
        };
        product.bind(&mut launch, shard);
        match splits {
            Some(splits) => {
                launch.read(1, splits.buffer);
                launch.set(&[
                    ("HEADS", splits.heads as f64),
                    ("HEAD_DIM", splits.head_dim as f64),
                    ("SPLITS", splits.splits as f64),
                    ("PARTS_ML", splits.pairs_at as f64),
                ]);
            }
            None => launch.read(1, product.input.buffer),
        }
        if let Some(norm) = product.norm {
            launch.read(2, norm.buffer);
            launch.set(&[("LAYER", norm.layer), ("EPS", norm.eps), ("OFFSET", norm.offset)]);
        }
        launch
    };
    (0..plan.shards.len()).map(launch).collect()
}

/// Threads that share four rows of weights: no more than a subgroup, than the groups of a chunk, or
/// than the groups of a row.
fn lanes(subgroup: Option<u32>, chunk: u32, groups: u32) -> u32 {
    let largest = subgroup.unwrap_or(32).clamp(1, 32);
    largest.min(chunk / 8).min(groups.next_power_of_two())
}

#[cfg(test)]
mod tests {
    use super::lanes;

    #[test]
    fn lanes_follow_subgroup_chunk_and_row() {
        assert_eq!(lanes(Some(64), 512, 128), 32);
        assert_eq!(lanes(Some(8), 512, 128), 8);
        assert_eq!(lanes(None, 64, 128), 8);
        assert_eq!(lanes(Some(32), 512, 3), 4);
    }
}
