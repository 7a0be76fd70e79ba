//! `embed.wgsl`: token ids to vectors.

use super::{Places, Register};
use crate::held::LinearHeld;
use crate::pipeline::{Extent, Launch};
use halfbyte_shaders::{Flag, Flags, Kernel, Variant};

/// The tables of an embedding and where it goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Embed<'a> {
    pub(crate) places: Places<'a>,
    pub(crate) table: &'a LinearHeld,
    pub(crate) scale: f32,
    /// Learned positions and the first position's row.
    pub(crate) positions: Option<(&'a LinearHeld, u32)>,
    pub(crate) types: Option<&'a LinearHeld>,
    pub(crate) chosen: &'a wgpu::Buffer,
    pub(crate) out: Register<'a>,
}

/// One launch for each shard of the token table.
pub(crate) fn launches<'a>(embed: &Embed<'a>) -> Vec<Launch<'a>> {
    let flags = Flags::default()
        .with(Flag::Positions, embed.positions.is_some())
        .with(Flag::Types, embed.types.is_some());
    let launch = |shard: usize| {
        let (first, rows) = embed.table.plan.shards[shard];
        let quads = (embed.out.stride / 4) as u32;
        let mut launch = Launch {
            variant: Variant { kernel: Kernel::Embed, flags },
            constants: vec![
                ("TABLE_DTYPE", embed.table.plan.dtype_code()),
                ("SHARD_ROW", first as f64),
                ("ROWS", rows as f64),
                ("STRIDE4", f64::from(quads)),
                ("SCALE", f64::from(embed.scale)),
            ],
            bindings: Vec::new(),
            grid: [Extent::Fixed(quads.div_ceil(64)), Extent::Rows(1), Extent::Fixed(1)],
        };
        embed.places.bind(&mut launch);
        launch.read(1, &embed.table.shards[shard].buffer);
        if let Some((positions, offset)) = embed.positions {
            launch.read(2, &positions.shards[0].buffer);
            launch.set(&[
                ("POSITION_DTYPE", positions.plan.dtype_code()),
                ("POSITION_OFFSET", f64::from(offset)),
            ]);
        }
        if let Some(types) = embed.types {
            launch.read(3, &types.shards[0].buffer);
            launch.set(&[("TYPE_DTYPE", types.plan.dtype_code())]);
        }
        launch.read(4, embed.chosen);
        launch.write(6, embed.out.buffer);
        launch
    };
    (0..embed.table.shards.len()).map(launch).collect()
}
