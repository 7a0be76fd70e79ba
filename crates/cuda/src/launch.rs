//! One launch of a kernel, as data: which kernel, which arguments, how many cubes.
//!
//! A program's launches are listed once and replayed for every submission, so that a token costs the host
//! nothing but the launches themselves; and whoever can, may hand the list to the driver in another way than one
//! launch at a time (see the module `graph`, with the feature `cuda`).

use crate::guard::caught;
use crate::kernels::Quad;
use crate::kernels::argmax::argmax::Argmax;
use crate::kernels::attend::attend::Attend;
use crate::kernels::attend::{self, AttendVariant};
use crate::kernels::embed::EmbedVariant;
use crate::kernels::embed::embed::Embed;
use crate::kernels::kv_store::kv_store::KvStore;
use crate::kernels::kv_store::{self, StoreVariant};
use crate::kernels::linear_cores::CoreTile;
use crate::kernels::linear_cores::linear_cores::LinearCores;
use crate::kernels::linear_tiled::linear_tiled::LinearTiled;
use crate::kernels::linear_tiled::{self, Tile};
use crate::kernels::norm_linear::norm_linear::NormLinear;
use crate::kernels::pre::PreVariant;
use crate::kernels::pre::pre::Pre;
use crate::kernels::route::route::Route;
use crate::kernels::sample::sample::Sample;
use crate::kernels::variant::{Team, Variant};
use cubecl::frontend::ArrayCompilationArg;
use cubecl::prelude::*;
use cubecl::server::Handle;
use half::f16;
use halfbyte_backend::Fault;

/// A kernel and what it is compiled for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Kernel {
    Embed(EmbedVariant),
    Pre(PreVariant),
    NormLinear(Variant),
    LinearTiled(Tile),
    LinearCores(CoreTile),
    KvStore(StoreVariant),
    Attend(AttendVariant),
    Route(Team),
    /// With this many units.
    Argmax(usize),
    /// With this many units.
    Sample(usize),
}

/// What an array's elements are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Element {
    U32,
    F32,
    QuadU32,
    QuadF32,
}

impl Element {
    /// Bytes of one.
    #[cfg(feature = "cuda")]
    pub(crate) fn bytes(self) -> u64 {
        match self {
            Element::U32 | Element::F32 => 4,
            Element::QuadU32 | Element::QuadF32 => 16,
        }
    }
}

/// An argument of a kernel, in the kernel's order.
#[derive(Debug, Clone)]
pub(crate) enum Arg {
    Array(Handle, Element),
    /// The submission's row metadata.
    Places,
    U32(u32),
    F32(f32),
    /// How many rows the submission has.
    Rows,
    /// How many outputs it asks for.
    Outputs,
}

/// How many cubes along a dimension.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Extent {
    Fixed(u32),
    /// One for each so many rows.
    Rows(u32),
    /// One for each so many outputs.
    Outputs(u32),
    /// One for each tile.
    Tiles,
}

/// What a submission counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Counts {
    pub rows: u32,
    pub outputs: u32,
    pub tiles: u32,
}

impl Extent {
    /// Cubes of a submission.
    pub(crate) fn of(self, counts: Counts) -> u32 {
        match self {
            Extent::Fixed(count) => count,
            Extent::Rows(each) => counts.rows.div_ceil(each),
            Extent::Outputs(each) => counts.outputs.div_ceil(each),
            Extent::Tiles => counts.tiles,
        }
    }
}

/// One launch.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    pub kernel: Kernel,
    pub args: Vec<Arg>,
    pub grid: [Extent; 3],
}

/// Takes a kernel of whatever type.
pub(crate) trait Visitor {
    /// What becomes of it.
    type Out;
    /// Takes it.
    fn visit<K: CubeKernel>(self, kernel: K) -> Self::Out;
}

impl Kernel {
    /// Units of a cube.
    pub(crate) fn units(&self) -> usize {
        match self {
            Kernel::Embed(variant) => variant.team.units(),
            Kernel::Pre(variant) => variant.team.units(),
            Kernel::NormLinear(variant) => variant.units(),
            Kernel::LinearTiled(_) => linear_tiled::UNITS,
            Kernel::LinearCores(tile) => tile.cores.units(),
            Kernel::KvStore(_) => kv_store::UNITS,
            Kernel::Attend(_) => attend::UNITS,
            Kernel::Route(team) => team.units(),
            Kernel::Argmax(units) | Kernel::Sample(units) => *units,
        }
    }

    /// How CubeCL compiles it.
    pub(crate) fn settings(&self) -> KernelSettings {
        KernelSettings::default().cube_dim(CubeDim::new_1d(self.units() as u32))
    }

    /// Makes the kernel for `visitor`. Arrays and scalars are as in the kernels' signatures.
    #[rustfmt::skip]
    pub(crate) fn visit<R: Runtime, V: Visitor>(&self, client: &ComputeClient<R>, visitor: V) -> V::Out {
        let a = || ArrayCompilationArg { inplace: None };
        let s = self.settings();
        let c = client.clone();
        match *self {
            Kernel::Embed(v) => visitor.visit(Embed::<R>::new(
                s, c, a(), a(), a(), a(), a(), a(), a(), (), (), (), (), (), v,
            )),
            Kernel::Pre(v) => visitor.visit(Pre::<R>::new(
                s, c, a(), a(), a(), a(), a(), a(), (), (), (), (), (), v,
            )),
            Kernel::NormLinear(v) => visitor.visit(NormLinear::<R>::new(
                s, c, a(), a(), a(), a(), a(), a(), a(), a(), a(),
                (), (), (), (), (), (), (), (), (), (), (), (), (), (), (), (), v,
            )),
            Kernel::LinearTiled(v) => visitor.visit(LinearTiled::<R>::new(
                s, c, a(), a(), a(), a(), a(), a(), a(), a(),
                (), (), (), (), (), (), (), (), (), (), (), (), (), (), v,
            )),
            Kernel::LinearCores(v) if v.cores.plain => visitor.visit(LinearCores::<f32, R>::new(
                s, c, a(), a(), a(), a(), a(), a(), a(), a(),
                (), (), (), (), (), (), (), (), (), (), (), (), (), (), v,
            )),
            Kernel::LinearCores(v) => visitor.visit(LinearCores::<f16, R>::new(
                s, c, a(), a(), a(), a(), a(), a(), a(), a(),
                (), (), (), (), (), (), (), (), (), (), (), (), (), (), v,
            )),
            Kernel::KvStore(v) => visitor.visit(KvStore::<R>::new(
                s, c, a(), a(), a(), a(), a(), a(), (), (), (), (), (), (), (), v,
            )),
            Kernel::Attend(v) => visitor.visit(Attend::<R>::new(
                s, c, a(), a(), a(), a(), a(), a(), a(), a(), a(),
                (), (), (), (), (), (), (), (), (), (), (), (), (), (), v,
            )),
            Kernel::Route(v) => visitor.visit(Route::<R>::new(
                s, c, a(), a(), a(), a(), (), (), (), (), (), (), (), (), v,
            )),
            Kernel::Argmax(v) => visitor.visit(Argmax::<R>::new(s, c, a(), a(), (), (), v)),
            Kernel::Sample(v) => visitor.visit(Sample::<R>::new(
                s, c, a(), a(), a(), a(), a(), (), (), (), v,
            )),
        }
    }
}

/// Launches through CubeCL.
struct Through<'a, R: Runtime> {
    client: &'a ComputeClient<R>,
    launcher: KernelLauncher<R>,
    cubes: CubeCount,
}

impl<R: Runtime> Visitor for Through<'_, R> {
    type Out = ();

    fn visit<K: CubeKernel>(self, kernel: K) {
        // SAFETY: arrays are as long as their buffers, and every kernel clamps or guards its indices by the sizes
        // that it is given, which are those of the plan that the buffers were allocated by.
        unsafe { self.launcher.launch_unchecked(self.cubes, kernel, self.client) }
    }
}

impl Launch {
    /// Launches once, through CubeCL.
    pub(crate) fn submit<R: Runtime>(
        &self,
        device: &str,
        client: &ComputeClient<R>,
        places: &Handle,
        counts: Counts,
    ) -> Result<(), Fault> {
        let [x, y, z] = self.grid.map(|extent| extent.of(counts));
        caught(device, || {
            let mut launcher = KernelLauncher::<R>::new(self.kernel.settings());
            for arg in &self.args {
                match arg {
                    Arg::Array(handle, element) => register(&mut launcher, handle.clone(), *element),
                    Arg::Places => register(&mut launcher, places.clone(), Element::U32),
                    Arg::U32(value) => launcher.register_scalar(*value),
                    Arg::F32(value) => launcher.register_scalar(*value),
                    Arg::Rows => launcher.register_scalar(counts.rows),
                    Arg::Outputs => launcher.register_scalar(counts.outputs),
                }
            }
            self.kernel.visit(client, Through { client, launcher, cubes: CubeCount::Static(x, y, z) });
        })
    }
}

fn register<R: Runtime>(launcher: &mut KernelLauncher<R>, handle: Handle, element: Element) {
    let ty = launcher.with_scope(|scope| match element {
        Element::U32 => u32::as_type(scope),
        Element::F32 => f32::as_type(scope),
        Element::QuadU32 => Quad::<u32>::as_type(scope),
        Element::QuadF32 => Quad::<f32>::as_type(scope),
    });
    let words = (handle.size_in_used() / 4) as usize;
    // SAFETY: the buffer has so many words.
    launcher.register_array(unsafe { ArrayArg::from_raw_parts(handle, words) }, ty);
}
