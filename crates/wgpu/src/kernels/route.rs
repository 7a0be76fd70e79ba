//! `route.wgsl`: which experts a row takes and how much each counts.

use super::{Register, Residual, truth};
use crate::pipeline::{Extent, Launch};
use halfbyte_shaders::{Flag, Flags, Kernel, Variant};

/// How much each expert counts in each row: `[experts, stride]`, so that each expert's part can be bound.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shares<'a> {
    pub(crate) buffer: &'a wgpu::Buffer,
    /// Elements of an expert's part, at least the rows.
    pub(crate) stride: usize,
}

/// One expert's part of [`Shares`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Share<'a> {
    pub(crate) all: Shares<'a>,
    pub(crate) expert: usize,
}

/// Elements of an expert's part for `rows` rows: bindings start at multiples of 256 bytes.
pub(crate) fn share_stride(rows: usize) -> usize {
    rows.next_multiple_of(64)
}

/// What is chosen from, and how; and the output that the experts will add to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Route<'a> {
    pub(crate) scores: Register<'a>,
    pub(crate) experts: usize,
    pub(crate) top_k: usize,
    pub(crate) renormalize: bool,
    pub(crate) shares: Shares<'a>,
    pub(crate) residual: Residual<'a>,
    pub(crate) out: Register<'a>,
    pub(crate) width: usize,
}

/// The launch.
pub(crate) fn launch<'a>(route: &Route<'a>) -> Launch<'a> {
    let flags = Flags::default().with(Flag::Residual, matches!(route.residual, Residual::Other(_)));
    let mut launch = Launch {
        variant: Variant { kernel: Kernel::Route, flags },
        constants: vec![
            ("EXPERTS", route.experts as f64),
            ("TOP_K", route.top_k as f64),
            ("RENORMALIZE", truth(route.renormalize)),
            ("SCORE_STRIDE", route.scores.stride as f64),
            ("SHARE_STRIDE", route.shares.stride as f64),
            ("ACCUMULATE", truth(matches!(route.residual, Residual::Own))),
            ("WIDTH", route.width as f64),
            ("STRIDE", route.out.stride as f64),
        ],
        bindings: Vec::new(),
        grid: [Extent::Rows(1), Extent::Fixed(1), Extent::Fixed(1)],
    };
    launch.read(1, route.scores.buffer);
    launch.write(2, route.shares.buffer);
    launch.write(6, route.out.buffer);
    if let Residual::Other(buffer) = route.residual {
        launch.read(7, buffer);
    }
    launch
}
