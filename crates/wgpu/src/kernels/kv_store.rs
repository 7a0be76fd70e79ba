//! `kv_store.wgsl`: keys and values of many rows, ahead of attention.

use super::attend::{Attention, columns};
use super::truth;
use crate::pipeline::{Extent, Launch};
use halfbyte_shaders::{Flag, Flags, Kernel, Variant};

/// Stores the submission's keys and values: one launch for each shard.
pub(crate) fn launches<'a>(attention: &Attention<'a>) -> Vec<Launch<'a>> {
    let step = attention.step;
    let flags = Flags::default()
        .with(Flag::Rope, attention.rope.is_some())
        .with(Flag::KNorm, attention.k_norm.is_some());
    let launch = |shard: &super::attend::Shard<'a>| {
        let mut launch = Launch {
            variant: Variant { kernel: Kernel::KvStore, flags },
            constants: vec![
                ("VECTORS", 2.0),
                ("HEAD_DIM", step.head_dim as f64),
                ("QKV_STRIDE", attention.qkv.stride as f64),
                ("SHARD_HEAD", shard.first as f64),
                ("ENCODER", truth(attention.encoder)),
            ],
            bindings: Vec::new(),
            grid: [Extent::Fixed(shard.heads as u32), Extent::Rows(1), Extent::Fixed(1)],
        };
        attention.places.bind(&mut launch);
        launch.set(&columns(step));
        launch.set(&attention.cache(shard.heads));
        launch.read(1, attention.qkv.buffer);
        launch.write(2, shard.keys);
        launch.write(3, shard.values);
        attention.bind_rope(&mut launch);
        if let Some(norm) = attention.k_norm {
            launch.read(7, norm.buffer);
            launch.set(&[
                ("K_LAYER", norm.layer),
                ("K_EPS", norm.eps),
                ("K_OFFSET", norm.offset),
                ("K_BIAS", norm.bias_at),
            ]);
        }
        launch
    };
    attention.shards.iter().map(launch).collect()
}
