//! The kernels as launches: which variant, which constants, which buffers, how many workgroups. One
//! file for each of the `.wgsl` files.

pub(crate) mod argmax;
pub(crate) mod attend;
pub(crate) mod embed;
pub(crate) mod kv_store;
pub(crate) mod linear_tiled;
pub(crate) mod norm_linear;
pub(crate) mod pre;
pub(crate) mod route;
pub(crate) mod sample;

use crate::held::{LinearHeld, NormUse};
use crate::linear_plan::ROW_AT;
use crate::pipeline::Launch;
use halfbyte_backend::{Act, Caps};
use halfbyte_shaders::{Flag, Flags};
use route::Share;

/// The row metadata, which almost every kernel reads, and its bounds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Places<'a> {
    pub(crate) buffer: &'a wgpu::Buffer,
    pub(crate) caps: Caps,
}

impl<'a> Places<'a> {
    /// Binds the metadata.
    pub(crate) fn bind(&self, launch: &mut Launch<'a>) {
        launch.read(0, self.buffer);
        launch.set(&[("ROW_CAP", self.caps.rows as f64), ("OUTPUT_CAP", self.caps.outputs.max(1) as f64)]);
    }
}

/// A register: its buffer and the elements of a row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Register<'a> {
    pub(crate) buffer: &'a wgpu::Buffer,
    pub(crate) stride: usize,
}

/// What is added to a product.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Residual<'a> {
    /// Nothing.
    None,
    /// What the output holds.
    Own,
    /// Another register of the same width.
    Other(&'a wgpu::Buffer),
}

/// A matrix product as both of its kernels take it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Product<'a> {
    pub(crate) places: Places<'a>,
    pub(crate) held: &'a LinearHeld,
    pub(crate) input: Register<'a>,
    pub(crate) norm: Option<NormUse<'a>>,
    pub(crate) act: Act,
    pub(crate) gated: bool,
    pub(crate) residual: Residual<'a>,
    pub(crate) logit_scale: f32,
    pub(crate) softcap: f32,
    pub(crate) out: Register<'a>,
    /// First column of `out`.
    pub(crate) at: usize,
    /// Whether the outputs' rows are taken, not all rows.
    pub(crate) select: bool,
    /// Where the layer is an expert's: how much it counts in each row.
    pub(crate) share: Option<Share<'a>>,
}

impl<'a> Product<'a> {
    fn flags(&self) -> Flags {
        Flags::default()
            .with(Flag::Q4, self.held.plan.scales.is_some())
            .with(Flag::Bias, self.held.plan.has_bias)
            .with(Flag::Residual, matches!(self.residual, Residual::Other(_)))
            .with(Flag::Expert, self.share.is_some())
    }

    /// Binds and sets what both kernels share, for one shard.
    fn bind(&self, launch: &mut Launch<'a>, shard: usize) {
        let plan = &self.held.plan;
        let (first, rows) = plan.shards[shard];
        self.places.bind(launch);
        launch.read(3, &self.held.shards[shard].buffer);
        if let Some(scales) = &self.held.scales {
            launch.read(4, &scales.buffer);
        }
        if let Some(tables) = &self.held.tables {
            launch.read(5, &tables.buffer);
        }
        launch.write(6, self.out.buffer);
        if let Residual::Other(buffer) = self.residual {
            launch.read(7, buffer);
        }
        if let Some(Share { all, expert }) = self.share {
            let bytes = all.stride as u64 * 4;
            launch.read_part(2, all.buffer, expert as u64 * bytes, bytes);
        }
        if let Some(scales) = &plan.scales {
            launch.set(&[
                ("NESTED", truth(scales.nested)),
                ("RAGGED", truth(scales.ragged)),
                ("BLOCK_SHIFT", f64::from(scales.block_shift)),
                ("ROW_AT", ROW_AT as f64),
                ("BIAS_AT", plan.bias_at as f64),
                ("NESTED_AT", scales.nested_at as f64),
            ]);
        }
        let first_column = if self.gated { first / 2 } else { first };
        launch.set(&[
            ("ROWS", rows as f64),
            ("COLS", plan.cols as f64),
            ("GROUPS", plan.groups as f64),
            ("SHARD_ROW", first as f64),
            ("DTYPE", plan.dtype_code()),
            ("ACT", act_code(self.act)),
            ("GATED", truth(self.gated)),
            ("ACCUMULATE", truth(matches!(self.residual, Residual::Own))),
            ("LOGIT_SCALE", f64::from(self.logit_scale)),
            ("SOFTCAP", f64::from(self.softcap)),
            ("OUT_STRIDE", self.out.stride as f64),
            ("OUT_AT", (self.at + first_column) as f64),
            ("SELECT", truth(self.select)),
        ]);
    }
}

/// A boolean as a constant.
pub(crate) fn truth(value: bool) -> f64 {
    f64::from(u8::from(value))
}

/// An activation as `act.wgsl` numbers it.
fn act_code(act: Act) -> f64 {
    match act {
        Act::Identity => 0.0,
        Act::Silu => 1.0,
        Act::Gelu => 2.0,
        Act::GeluTanh => 3.0,
        Act::Relu => 4.0,
        Act::Tanh => 5.0,
    }
}
