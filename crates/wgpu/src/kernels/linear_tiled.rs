//! `linear_tiled.wgsl`: the prompt's product.

use super::Product;
use crate::pipeline::{Extent, Launch};
use crate::tuning::Tuning;
use halfbyte_shaders::{Flag, Kernel, Variant};

/// Rows and columns of the smallest tile; it is doubled in both where that leaves work for all.
const TILE: (u32, u32) = (64, 32);

/// The product of many rows of activations, `most` at most: one launch for each shard.
pub(crate) fn launches<'a>(product: &Product<'a>, most: usize, tuning: &Tuning) -> Vec<Launch<'a>> {
    let launch = |shard: usize| {
        let rows = product.held.plan.shards[shard].1 as u32;
        let (row_fours, column_fours) = fours(tuning, rows, most as u32);
        let tile = TILE.1 * column_fours;
        let columns = if product.select { Extent::Outputs(tile) } else { Extent::Rows(tile) };
        let flags = product.flags().with(Flag::F16, tuning.half_slabs);
        let mut launch = Launch {
            variant: Variant { kernel: Kernel::LinearTiled, flags },
            constants: vec![
                ("X_STRIDE4", (product.input.stride / 4) as f64),
                ("ROW_FOURS", f64::from(row_fours)),
                ("COLUMN_FOURS", f64::from(column_fours)),
            ],
            bindings: Vec::new(),
            grid: [Extent::Fixed(rows.div_ceil(TILE.0 * row_fours)), columns, Extent::Fixed(1)],
        };
        product.bind(&mut launch, shard);
        launch.read(1, product.input.buffer);
        launch
    };
    (0..product.held.plan.shards.len()).map(launch).collect()
}

/// Fours of rows and of columns of a thread.
fn fours(tuning: &Tuning, rows: u32, columns: u32) -> (u32, u32) {
    let tiles = |(row_fours, column_fours): (u32, u32)| {
        rows.div_ceil(TILE.0 * row_fours) * columns.div_ceil(TILE.1 * column_fours)
    };
    let largest = tuning.tile_fours;
    let shapes = [(2, 2), (2, 1), (1, 1)];
    let fits = |&(r, c): &(u32, u32)| r <= largest.0 && c <= largest.1;
    // A tile of 128 by 64 takes twice the time of two of 128 by 32 at most: half of `busy` will do.
    shapes.into_iter().filter(fits).find(|&shape| 2 * tiles(shape) >= tuning.busy).unwrap_or((1, 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_are_small_where_there_are_few() {
        let tuning = Tuning::gpu(Some(32));
        assert_eq!(fours(&tuning, 4096, 512), (2, 2));
        assert_eq!(fours(&tuning, 4096, 128), (2, 1));
        assert_eq!(fours(&tuning, 768, 128), (1, 1));
    }
}
