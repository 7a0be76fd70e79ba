//! A matrix product as a launch: `norm_linear` for few rows, `linear_tiled` for many.

use crate::hardware::Hardware;
use crate::held::{NormUse, WeightBuffers};
use crate::kernels::epilogue::{self, NO_BIAS, Residual};
use crate::kernels::linear_cores::CoreTile;
use crate::kernels::linear_tiled::{ROWS, Tile};
use crate::kernels::variant::{Merge, Norming, Sharing, Variant};
use crate::launch::{Arg, Element, Extent, Kernel, Launch};
use crate::sequence::Columns;
use crate::weight::WeightLayout;
use cubecl::server::Handle;
use halfbyte_backend::Act;

/// An attention's output in splits, which the product merges.
#[derive(Debug, Clone)]
pub(crate) struct Splits {
    pub merge: Merge,
    pub statistics: Handle,
}

/// An expert's part of the rows: from `at`, how much it counts in each.
#[derive(Debug, Clone)]
pub(crate) struct Share {
    pub shares: Handle,
    pub at: usize,
    pub sharing: Sharing,
}

/// A product `out[:, at..] = residual + cap(scale * act(W norm(input) + b))`.
#[derive(Debug, Clone)]
pub(crate) struct Product<'a> {
    pub layout: &'a WeightLayout,
    pub weight: &'a WeightBuffers,
    pub input: Handle,
    pub norm: Option<NormUse>,
    pub act: Act,
    pub gated: bool,
    pub residual: (Residual, Option<Handle>),
    pub scale: f32,
    /// 0: none.
    pub cap: f32,
    pub out: Handle,
    /// Elements of a row of `out`.
    pub stride: usize,
    pub at: usize,
    /// Whether its rows are the submission's outputs.
    pub select: bool,
    pub splits: Option<Splits>,
    pub share: Option<Share>,
}

impl<'a> Product<'a> {
    /// `out = W input + b`.
    pub(crate) fn new(
        (layout, weight): (&'a WeightLayout, &'a WeightBuffers),
        input: Handle,
        out: Handle,
        stride: usize,
    ) -> Self {
        Self {
            layout,
            weight,
            input,
            norm: None,
            act: Act::Identity,
            gated: false,
            residual: (Residual::None, None),
            scale: 1.0,
            cap: 0.0,
            out,
            stride,
            at: 0,
            select: false,
            splits: None,
            share: None,
        }
    }

    /// The launch. Norms and splits are for few rows only.
    pub(crate) fn launch(&self, hardware: &Hardware, columns: Columns) -> Launch {
        let sharing = self.share.as_ref().map_or(Sharing::None, |share| share.sharing);
        let (kernel, rows, batch) = match columns {
            Columns::Many => {
                let (elements, select) = (self.layout.elements, self.select);
                match hardware.cores {
                    Some(cores) => {
                        let tile = CoreTile { elements, select, sharing, cores };
                        (Kernel::LinearCores(tile), cores.rows(), cores.batch())
                    }
                    None => {
                        let batch = hardware.tile_batch;
                        let tile = Tile { elements, batch, select, sharing };
                        (Kernel::LinearTiled(tile), ROWS, batch)
                    }
                }
            }
            Columns::One | Columns::Few => {
                let variant = self.variant(hardware, columns, sharing);
                (Kernel::NormLinear(variant), variant.cube_rows(), variant.tile_batch)
            }
        };
        let cubes = u32::try_from(self.layout.rows.div_ceil(rows)).unwrap_or(u32::MAX);
        let across = if self.select { Extent::Outputs(batch as u32) } else { Extent::Rows(batch as u32) };
        Launch {
            kernel,
            args: self.args(matches!(kernel, Kernel::NormLinear(_))),
            grid: [Extent::Fixed(cubes), across, Extent::Fixed(1)],
        }
    }

    /// Single rows take more rows of the matrix a team, so that one load of `x` serves them all, as long as there
    /// are cubes enough to fill the device; more rows of `x` take two, and four of them for each decoded weight.
    fn variant(&self, hardware: &Hardware, columns: Columns, sharing: Sharing) -> Variant {
        let (tile_rows, tile_batch) = match columns {
            Columns::One => (hardware.tile_rows(self.layout.rows), 1),
            Columns::Few | Columns::Many => (hardware.few_rows(), 4),
        };
        Variant {
            elements: self.layout.elements,
            norm: self.norm.as_ref().map_or(Norming::None, |norm| norm.norming),
            team: hardware.team,
            tile_rows,
            tile_batch,
            lookup: hardware.lookup,
            select: self.select,
            sharing,
            merge: self.splits.as_ref().map(|splits| splits.merge),
            unroll: hardware.multiprocessors.is_some(),
        }
    }

    /// The arguments: `norm_linear` has more than `linear_tiled`.
    fn args(&self, norms: bool) -> Vec<Arg> {
        let (layout, weight) = (self.layout, self.weight);
        let floats = |handle: &Handle| Arg::Array(handle.clone(), Element::F32);
        let quads = |handle: &Handle| Arg::Array(handle.clone(), Element::QuadF32);
        let number = |value: usize| Arg::U32(value as u32); // WeightLayout::of has bounded them all
        // A kernel binds every argument, also those that a variant does not read.
        let unread = &weight.state;
        let mut args = vec![
            Arg::Array(weight.codes.clone(), Element::QuadU32),
            Arg::Array(weight.scales.clone(), Element::U32),
            floats(&weight.state),
        ];
        if norms {
            args.push(quads(self.norm.as_ref().map_or(unread, |norm| &norm.weight)));
        }
        let shares = self.share.as_ref().map(|share| &share.shares);
        let extra = shares.or(self.splits.as_ref().map(|splits| &splits.statistics));
        args.extend([
            quads(&self.input),
            floats(self.residual.1.as_ref().unwrap_or(unread)),
            floats(extra.unwrap_or(unread)),
            Arg::Places,
            floats(&self.out),
            number(layout.rows),
            number(layout.cols),
            if self.select { Arg::Outputs } else { Arg::Rows },
            number(self.stride),
            number(self.at),
            Arg::U32(layout.blocksize.trailing_zeros()),
            number(layout.blocks().saturating_sub(1)),
            if layout.bias { number(layout.bias_at) } else { Arg::U32(NO_BIAS) },
            Arg::U32(epilogue::number(self.act)),
            Arg::U32(u32::from(self.gated)),
            Arg::U32(self.residual.0 as u32),
            number(self.share.as_ref().map_or(0, |share| share.at)),
        ]);
        if norms {
            let (eps, offset) = self.norm.as_ref().map_or((0.0, 0.0), |norm| (norm.eps, norm.offset));
            args.extend([Arg::F32(eps), Arg::F32(offset)]);
        }
        args.extend([Arg::F32(self.scale), Arg::F32(self.cap)]);
        args
    }
}
