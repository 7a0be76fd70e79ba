//! What CUDA is given: the kernels' C++, generated without a GPU.

use super::attend::AttendVariant;
use super::embed::EmbedVariant;
use super::heads::Rotary;
use super::kv_store::StoreVariant;
use super::linear_cores::{CoreTile, Cores};
use super::linear_tiled::Tile;
use super::pre::PreVariant;
use super::variant::{Elements, Lookup, Merge, Norming, Sharing, Team, Variant};
use crate::launch::{Kernel, Visitor};
use crate::{CubeBackend, WgpuRuntime};
use cubecl::cuda::CudaCompiler;
use cubecl::prelude::*;
use cubecl::{Compiler, CubeTask};
use halfbyte_backend::KvType;
use halfbyte_backend::kv::Record;

/// Compiles for CUDA.
struct ToCuda;

impl Visitor for ToCuda {
    type Out = String;

    fn visit<K: CubeKernel>(self, kernel: K) -> String {
        let task = KernelTask::<CudaCompiler, K>::new(kernel);
        let options = <CudaCompiler as Compiler>::CompilationOptions::default();
        let address = task.address_type();
        let compiled =
            task.compile(&mut CudaCompiler::default(), &options, ExecutionMode::Unchecked, address);
        compiled.unwrap().source
    }
}

/// CUDA C++ of a kernel. CubeCL wants a client for it, of whatever runtime.
fn source(kernel: Kernel) -> String {
    let backend =
        CubeBackend::<WgpuRuntime>::open().expect("this test needs a wgpu adapter; Mesa's lavapipe will do");
    kernel.visit(backend.client(), ToCuda)
}

fn product() -> Variant {
    Variant {
        elements: Elements::Codes { nested: true, aligned: true },
        norm: Norming::Rms,
        team: Team::of(Some(32)),
        tile_rows: 4,
        tile_batch: 1,
        lookup: Lookup::Table,
        select: false,
        sharing: Sharing::None,
        merge: None,
        unroll: true,
    }
}

/// One of each kernel, as an NVIDIA GPU would run it.
pub(crate) fn kernels() -> Vec<(&'static str, Kernel)> {
    let team = Team::of(Some(32));
    let record = Record { dtype: KvType::F16, head_dim: 128 };
    let rotary = Some(Rotary { pairs: 64, adjacent: false });
    let merge = Some(Merge { heads: 32, head_dim: 128, splits: 16 });
    let attend = AttendVariant {
        record,
        rotary,
        q_norm: Norming::None,
        k_norm: Norming::None,
        fresh: true,
        parts: true,
        encoder: false,
        ring: false,
        causal: true,
        pieces: 1,
        heads_here: 4,
        tile_rows: 1,
        keys: 8,
        dot_lanes: 4,
        splits: 16,
        split_keys: 256,
    };
    let tile = Tile { elements: product().elements, batch: 64, select: false, sharing: Sharing::None };
    let cores =
        CoreTile { elements: product().elements, select: false, sharing: Sharing::None, cores: Cores::GPU };
    let embed =
        EmbedVariant { table: Elements::F16, positions: None, types: None, norm: Norming::None, team };
    let pre = PreVariant { post: Norming::None, norm: Norming::Rms, residual: true, emit: Some(false), team };
    let store = StoreVariant { record, rotary, norm: Norming::None, encoder: false, ring: false };
    vec![
        ("embed", Kernel::Embed(embed)),
        ("pre", Kernel::Pre(pre)),
        ("norm_linear", Kernel::NormLinear(product())),
        ("norm_linear", Kernel::NormLinear(Variant { norm: Norming::None, merge, ..product() })),
        ("norm_linear", Kernel::NormLinear(Variant { lookup: Lookup::Pairs { copies: 16 }, ..product() })),
        ("linear_tiled", Kernel::LinearTiled(tile)),
        ("linear_cores", Kernel::LinearCores(cores)),
        (
            "linear_cores",
            Kernel::LinearCores(CoreTile { cores: Cores { split: false, ..Cores::GPU }, ..cores }),
        ),
        ("kv_store", Kernel::KvStore(store)),
        ("kv_store", Kernel::KvStore(StoreVariant { ring: true, ..store })),
        ("attend", Kernel::Attend(attend)),
        (
            "attend",
            Kernel::Attend(AttendVariant { fresh: false, parts: false, tile_rows: 2, ring: true, ..attend }),
        ),
        ("route", Kernel::Route(team)),
        ("argmax", Kernel::Argmax(1024)),
        ("sample", Kernel::Sample(512)),
    ]
}

#[test]
fn every_kernel_becomes_cuda() {
    for (name, kernel) in kernels() {
        let source = source(kernel);
        let units = kernel.units();
        let entry = format!("__global__ void __launch_bounds__({units}){name}");
        assert!(source.contains(&entry), "{name}: no {entry} in {source}");
    }
}

#[test]
fn products_load_16_bytes_and_sum_by_shuffles() {
    let codes = |nested, aligned| Elements::Codes { nested, aligned };
    for elements in [codes(true, true), codes(false, false), Elements::F32, Elements::F16, Elements::Bf16] {
        for (tile_rows, tile_batch) in [(4, 1), (2, 4)] {
            let norm = if tile_batch == 1 { Norming::Rms } else { Norming::Layer { bias: true } };
            let variant = Variant { elements, norm, tile_rows, tile_batch, ..product() };
            let source = source(Kernel::NormLinear(variant));
            assert!(source.contains("struct __align__(16) uint32_4"), "{source}");
            assert!(source.contains("const uint32_4* __restrict__ buffer_0"), "{source}");
            assert!(source.contains("__shfl_xor_sync"), "{source}");
        }
    }
}
