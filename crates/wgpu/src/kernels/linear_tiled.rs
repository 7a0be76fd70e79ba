//! `linear_tiled.wgsl`: the prompt's product.

use super::Product;
use crate::pipeline::{Extent, Launch};
use halfbyte_shaders::{Kernel, Variant};

/// The product of many rows of activations: one launch for each shard.
pub(crate) fn launches<'a>(product: &Product<'a>) -> Vec<Launch<'a>> {
    let launch = |shard: usize| {
        let columns = if product.select { Extent::Outputs(32) } else { Extent::Rows(32) };
        let rows = product.held.plan.shards[shard].1 as u32;
        let mut launch = Launch {
            variant: Variant { kernel: Kernel::LinearTiled, flags: product.flags() },
            constants: vec![("X_STRIDE4", (product.input.stride / 4) as f64)],
            bindings: Vec::new(),
            grid: [Extent::Fixed(rows.div_ceil(64)), columns, Extent::Fixed(1)],
        };
        product.bind(&mut launch, shard);
        launch.read(1, product.input.buffer);
        launch
    };
    (0..product.held.plan.shards.len()).map(launch).collect()
}
