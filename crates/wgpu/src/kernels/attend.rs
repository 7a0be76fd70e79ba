//! `attend.wgsl`: attention over one slice of the keys.

use super::{Places, Register, truth};
use crate::attend_plan::{ValueTile, limits};
use crate::held::NormUse;
use crate::kv_plan::Planes;
use crate::pipeline::{Extent, Launch};
use crate::tuning::Tuning;
use halfbyte_backend::gpu::{AttendSizes, KeyTile};
use halfbyte_backend::{Attend, KvType, Pairing};
use halfbyte_shaders::{Flag, Flags, Kernel, Variant};

/// Keys and values of some heads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shard<'a> {
    pub(crate) first: usize,
    pub(crate) heads: usize,
    pub(crate) keys: &'a wgpu::Buffer,
    pub(crate) values: &'a wgpu::Buffer,
}

/// An attention as its two kernels take it.
#[derive(Debug, Clone)]
pub(crate) struct Attention<'a> {
    pub(crate) places: Places<'a>,
    pub(crate) step: &'a Attend,
    pub(crate) plan: &'a AttendSizes,
    pub(crate) qkv: Register<'a>,
    /// The table and its pairs.
    pub(crate) rope: Option<(&'a wgpu::Buffer, usize)>,
    pub(crate) q_norm: Option<NormUse<'a>>,
    pub(crate) k_norm: Option<NormUse<'a>>,
    pub(crate) shards: Vec<Shard<'a>>,
    /// Slots of a sequence in the cache, and whether they are a ring.
    pub(crate) slots: usize,
    pub(crate) ring: bool,
    /// Without a cache: slots are rows.
    pub(crate) encoder: bool,
}

/// How a submission attends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner<'a> {
    /// Rows of a workgroup's tile.
    pub(crate) tile_rows: usize,
    /// Whether each row's key and value are made in the same dispatch.
    pub(crate) fresh: bool,
    /// Keys below which a context is not split further.
    pub(crate) split_keys: usize,
    /// The output in splits: its buffer and where pairs of maximum and sum start.
    pub(crate) parts: Option<(&'a wgpu::Buffer, usize)>,
    /// The output otherwise.
    pub(crate) out: Register<'a>,
}

impl<'a> Attention<'a> {
    pub(super) fn bind_rope(&self, launch: &mut Launch<'a>) {
        if let (Some((buffer, pairs)), Some(rope)) = (self.rope, self.step.rope) {
            launch.read(5, buffer);
            launch.set(&[("PAIRS", pairs as f64), ("ADJACENT", truth(rope.pairing == Pairing::Adjacent))]);
        }
    }

    /// How the cache lies, of which a shard has `heads` heads.
    pub(super) fn cache(&self, heads: usize) -> [(&'static str, f64); 8] {
        let planes = Planes { record: self.plan.record, slots: self.slots };
        [
            ("KV_DTYPE", number(planes.record.dtype)),
            ("CODE_WORDS", planes.record.code_words() as f64),
            ("SCALE_WORDS", planes.record.scale_words() as f64),
            ("SHARD_HEADS", heads as f64),
            ("HEAD_WORDS", planes.words() as f64),
            ("SCALES_AT", planes.scales_at() as f64),
            ("SLOTS", self.slots as f64),
            ("RING", truth(self.ring)),
        ]
    }
}

/// The type as the shaders number it.
fn number(dtype: KvType) -> f64 {
    match dtype {
        KvType::F32 => 0.0,
        KvType::F16 => 1.0,
        KvType::Q8 => 2.0,
        KvType::Q4 => 3.0,
    }
}

/// Where keys and values start in a row of q|k|v.
pub(super) fn columns(step: &Attend) -> [(&'static str, f64); 2] {
    [
        ("KEY_AT", (step.heads * step.head_dim) as f64),
        ("VALUE_AT", ((step.heads + step.kv_heads) * step.head_dim) as f64),
    ]
}

/// One launch for each shard.
pub(crate) fn launches<'a>(
    attention: &Attention<'a>,
    manner: &Manner<'a>,
    tuning: &Tuning,
) -> Vec<Launch<'a>> {
    let (step, plan) = (attention.step, attention.plan);
    let queries = manner.tile_rows * plan.heads_here;
    // The plan admits only sizes that fit.
    let limits = limits(tuning.attend_threads, queries, step.head_dim);
    let tile = limits.keys(queries, plan.record).unwrap_or(KeyTile::LEAST);
    let values = ValueTile::new(limits.threads, queries, step.head_dim, tile.keys);
    let flags = Flags::default()
        .with(Flag::Rope, attention.rope.is_some())
        .with(Flag::QNorm, attention.q_norm.is_some())
        .with(Flag::KNorm, manner.fresh && attention.k_norm.is_some())
        .with(Flag::Fresh, manner.fresh)
        .with(Flag::Parts, manner.parts.is_some())
        .with(Flag::Wide, plan.record.code_words().is_multiple_of(4));
    let splits = if manner.parts.is_some() { plan.splits } else { 1 };
    let launch = |shard: &Shard<'a>| {
        let mut launch = Launch {
            variant: Variant { kernel: Kernel::Attend, flags },
            constants: vec![
                ("THREADS", limits.threads as f64),
                ("HEAD_DIM", step.head_dim as f64),
                ("QKV_STRIDE", attention.qkv.stride as f64),
                ("SHARD_HEAD", shard.first as f64),
                ("ENCODER", truth(attention.encoder)),
                ("CAUSAL", truth(step.causal)),
                ("WINDOW", step.window.unwrap_or(0) as f64),
                ("SCALE", f64::from(step.scale)),
                ("SCORE_CAP", f64::from(step.softcap.unwrap_or(0.0))),
                ("HEADS", step.heads as f64),
                ("GROUP", (step.heads / step.kv_heads) as f64),
                ("PIECES", plan.pieces as f64),
                ("HEADS_HERE", plan.heads_here as f64),
                ("TILE_ROWS", manner.tile_rows as f64),
                ("QUERIES", queries as f64),
                ("KEYS", tile.keys as f64),
                ("QUERY_TILE", tile.query_tile as f64),
                ("DOT_LANES", tile.lanes as f64),
                ("SCORE_PLANES", tile.lanes.max(2) as f64),
                ("VALUE_QUERIES", values.queries as f64),
                ("VALUE_LANES", values.lanes as f64),
                ("SPLITS", splits as f64),
                ("SPLIT_KEYS", manner.split_keys as f64),
                ("OUT_STRIDE", manner.out.stride as f64),
                ("PARTS_ML", manner.parts.map_or(0, |(_, at)| at) as f64),
            ],
            bindings: Vec::new(),
            grid: [
                Extent::Fixed((shard.heads * plan.pieces) as u32),
                Extent::Fixed(splits as u32),
                Extent::Tiles,
            ],
        };
        attention.places.bind(&mut launch);
        launch.set(&columns(step));
        launch.set(&attention.cache(shard.heads));
        launch.read(1, attention.qkv.buffer);
        if manner.fresh {
            launch.write(2, shard.keys);
            launch.write(3, shard.values);
        } else {
            launch.read(2, shard.keys);
            launch.read(3, shard.values);
        }
        launch.write(4, manner.parts.map_or(manner.out.buffer, |(buffer, _)| buffer));
        attention.bind_rope(&mut launch);
        if let Some(norm) = attention.q_norm {
            launch.read(6, norm.buffer);
            launch.set(&[
                ("Q_LAYER", norm.layer),
                ("Q_EPS", norm.eps),
                ("Q_OFFSET", norm.offset),
                ("Q_BIAS", norm.bias_at),
            ]);
        }
        if let Some(norm) = attention.k_norm.filter(|_| manner.fresh) {
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
