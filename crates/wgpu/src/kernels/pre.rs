//! `pre.wgsl`: residual sum and norms as a step of their own.

use super::{Places, Register, truth};
use crate::held::NormUse;
use crate::pipeline::{Extent, Launch};
use halfbyte_shaders::{Flag, Flags, Kernel, Variant};

/// `x = residual + post(y)`, `h = norm(x)`; all registers have `h`'s stride.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pre<'a> {
    pub(crate) places: Places<'a>,
    pub(crate) width: usize,
    pub(crate) input: &'a wgpu::Buffer,
    pub(crate) out: Register<'a>,
    pub(crate) residual: Option<&'a wgpu::Buffer>,
    pub(crate) post: Option<NormUse<'a>>,
    pub(crate) norm: Option<NormUse<'a>>,
    /// Where x, or h if true, is kept.
    pub(crate) emit: Option<(&'a wgpu::Buffer, bool)>,
}

/// The launch.
pub(crate) fn launch<'a>(pre: &Pre<'a>, subgroup: Option<u32>) -> Launch<'a> {
    let flags = Flags::default()
        .with(Flag::Subgroups, subgroup.is_some())
        .with(Flag::Residual, pre.residual.is_some())
        .with(Flag::Post, pre.post.is_some())
        .with(Flag::Norm, pre.norm.is_some())
        .with(Flag::Emit, pre.emit.is_some());
    let mut launch = Launch {
        variant: Variant { kernel: Kernel::Pre, flags },
        constants: vec![("WIDTH", pre.width as f64), ("STRIDE", pre.out.stride as f64)],
        bindings: Vec::new(),
        grid: [Extent::Rows(1), Extent::Fixed(1), Extent::Fixed(1)],
    };
    pre.places.bind(&mut launch);
    launch.read(1, pre.input);
    launch.write(2, pre.out.buffer);
    if let Some(residual) = pre.residual {
        launch.read(3, residual);
    }
    if let Some(post) = pre.post {
        launch.read(4, post.buffer);
        launch.set(&[("POST_LAYER", post.layer), ("POST_EPS", post.eps), ("POST_OFFSET", post.offset)]);
    }
    if let Some(norm) = pre.norm {
        launch.read(5, norm.buffer);
        launch.set(&[("LAYER", norm.layer), ("EPS", norm.eps), ("OFFSET", norm.offset)]);
    }
    if let Some((buffer, normed)) = pre.emit {
        launch.write(6, buffer);
        launch.set(&[("EMIT_NORMED", truth(normed))]);
    }
    launch
}
