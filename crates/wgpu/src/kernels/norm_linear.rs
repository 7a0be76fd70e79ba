//! `norm_linear.wgsl`: the decode product with its prologue and epilogue.

use super::{Product, truth};
use crate::pipeline::{Extent, Launch};
use crate::tuning::{TeamShape, Tuning};
use halfbyte_shaders::{Flag, Kernel, Variant};

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

/// The product of all rows of activations, `columns` (1, 2, 4 or 8) at once, of about `most` in all: one launch for
/// each shard.
pub(crate) fn launches<'a>(
    product: &Product<'a>,
    splits: Option<Splits<'a>>,
    columns: u32,
    most: usize,
    tuning: &Tuning,
) -> Vec<Launch<'a>> {
    let plan = &product.held.plan;
    let mut flags = product
        .flags()
        .with(Flag::Subgroups, tuning.subgroup.is_some())
        .with(Flag::Norm, product.norm.is_some())
        .with(Flag::Merge, splits.is_some());
    // Eight lanes hold the codebook, or a group's inputs, between them.
    let shuffle = tuning.shuffle && tuning.subgroup.is_some_and(|size| size >= 8);
    flags = flags.with(Flag::Shuffle, shuffle && flags.has(Flag::Q4));
    let chunk = tuning.staged / columns;
    let blocks = (most as u32).div_ceil(columns);
    let extent = if product.select { Extent::Outputs(columns) } else { Extent::Rows(columns) };
    let launch = |shard: usize| {
        let rows = plan.shards[shard].1 as u32;
        let shape = TeamShape::new(tuning, rows, plan.groups as u32, chunk / 8, columns, blocks);
        let mut launch = Launch {
            variant: Variant { kernel: Kernel::NormLinear, flags },
            constants: vec![
                ("THREADS", f64::from(shape.threads)),
                ("LANES", f64::from(shape.lanes)),
                ("FOURS", f64::from(shape.fours)),
                ("NARROW", truth(tuning.subgroup.is_some_and(|size| size < 16))),
                ("COLUMNS", f64::from(columns)),
                ("CHUNK4", f64::from(chunk)),
                ("STAGED", f64::from(tuning.staged * 9 / 8)),
                ("X_STRIDE4", (product.input.stride / 4) as f64),
            ],
            bindings: Vec::new(),
            grid: [Extent::Fixed(shape.workgroups(rows)), extent, Extent::Fixed(1)],
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
