//! What CUDA is given: the kernel's C++, generated without a GPU.

use super::norm_linear::norm_linear::NormLinear;
use super::variant::{Elements, Norming, Variant};
use crate::{CubeBackend, WgpuRuntime};
use cubecl::cuda::CudaCompiler;
use cubecl::frontend::ArrayCompilationArg;
use cubecl::prelude::*;
use cubecl::{Compiler, CubeTask};

/// CUDA C++ of a variant. CubeCL wants a client for it, of whatever runtime.
fn source(variant: Variant) -> String {
    let backend =
        CubeBackend::<WgpuRuntime>::open().expect("this test needs a wgpu adapter; Mesa's lavapipe will do");
    let client = backend.client().clone();
    let array = || ArrayCompilationArg { inplace: None };
    let settings = KernelSettings::default().cube_dim(CubeDim::new_1d(variant.units() as u32));
    #[rustfmt::skip]
    let kernel = NormLinear::<WgpuRuntime>::new(
        settings, client,
        array(), array(), array(), array(), array(), array(), array(),
        (), (), (), (), (), (), (), (), (), (), (), (), (),
        variant,
    );
    let task = KernelTask::<CudaCompiler, _>::new(kernel);
    let options = <CudaCompiler as Compiler>::CompilationOptions::default();
    let address = task.address_type();
    task.compile(&mut CudaCompiler::default(), &options, ExecutionMode::Unchecked, address).unwrap().source
}

#[test]
fn the_kernel_becomes_cuda() {
    let codes = |nested, aligned| Elements::Codes { nested, aligned };
    for elements in [codes(true, true), codes(false, false), Elements::F32, Elements::F16, Elements::Bf16] {
        for (tile_rows, tile_batch) in [(4, 1), (2, 4)] {
            let variant = Variant {
                elements,
                norm: if tile_batch == 1 { Norming::Rms } else { Norming::Layer { bias: true } },
                planes: true,
                lanes: 32,
                teams: 8,
                tile_rows,
                tile_batch,
            };
            let source = source(variant);
            assert!(source.contains("__global__ void __launch_bounds__(256)norm_linear"), "{source}");
            // 16-byte loads, sums by shuffles, and nothing of the shared-memory sums.
            assert!(source.contains("struct __align__(16) uint32_4"), "{source}");
            assert!(source.contains("const uint32_4* __restrict__ buffer_0"), "{source}");
            assert!(source.contains("__shfl_xor_sync"), "{source}");
            assert!(!source.contains("Shared array size: 256, 1024 bytes") || elements.nested(), "{source}");
        }
    }
}
