//! Kernels as CUDA's C++, which CubeCL makes, and as PTX, which NVRTC makes of that.

use crate::launch::Visitor;
use cubecl::cuda::CudaCompiler;
use cubecl::prelude::*;
use cubecl::{Compiler, CubeTask};
use std::ffi::{CStr, CString};

/// Compiled C++ of a kernel, before NVRTC.
pub(super) struct Source {
    pub text: String,
    pub entry: String,
    /// Bytes.
    pub shared_memory: u32,
}

/// Compiles kernels to C++ that takes its scalars as a constant of the grid, as CubeCL does from sm_70 on.
pub(super) struct ToSource;

impl Visitor for ToSource {
    type Out = Result<Source, String>;

    fn visit<K: CubeKernel>(self, kernel: K) -> Self::Out {
        let task = KernelTask::<CudaCompiler, K>::new(kernel);
        let mut options = <CudaCompiler as Compiler>::CompilationOptions::default();
        options.supports_features.grid_constants = true;
        let address = task.address_type();
        let compiled = task
            .compile(&mut CudaCompiler::default(), &options, ExecutionMode::Unchecked, address)
            .map_err(|error| error.to_string())?;
        let shared = compiled.repr.as_ref().map_or(0, |repr| repr.shared_memory_size());
        let (text, entry) = (compiled.source, compiled.entrypoint_name);
        Ok(Source { text, entry, shared_memory: shared as u32 })
    }
}

/// PTX of `source` for `architecture`, as in `sm_90a`, with the headers in `include`.
pub(super) fn compile(source: &str, architecture: &str, include: &str) -> Result<Vec<u8>, String> {
    use cudarc::nvrtc::result as nvrtc;
    let text = CString::new(source).map_err(|error| error.to_string())?;
    let options = [format!("--gpu-architecture={architecture}"), format!("--include-path={include}")];
    let program = nvrtc::create_program(&text, None).map_err(|error| error.to_string())?;
    // SAFETY: the program was just created, is used by nobody else, and is destroyed once, at the end.
    unsafe {
        let compiled = nvrtc::compile_program(program, &options);
        let out = match compiled {
            Ok(()) => nvrtc::get_ptx(program).map_err(|error| error.to_string()),
            Err(error) => {
                let log = nvrtc::get_program_log(program).unwrap_or_default();
                let log: Vec<u8> = log.iter().map(|&letter| letter as u8).collect();
                let log = CStr::from_bytes_until_nul(&log).map(CStr::to_string_lossy).unwrap_or_default();
                Err(format!("{error}: {log}"))
            }
        };
        let _ = nvrtc::destroy_program(program);
        out.map(|ptx| ptx.iter().map(|&letter| letter as u8).collect())
    }
}

#[cfg(all(test, feature = "wgpu"))]
mod tests {
    use super::*;
    use crate::kernels::cuda_source::kernels;
    use crate::{CubeBackend, WgpuRuntime};
    use cubecl::cuda::install;

    #[test]
    #[ignore = "needs NVRTC and CUDA's headers, from NVIDIA's wheels: see CONTRIBUTING"]
    fn nvrtc_takes_every_kernel() {
        let backend = CubeBackend::<WgpuRuntime>::open().unwrap();
        let include = install::include_path();
        for architecture in ["sm_75", "sm_80", "sm_90a"] {
            for (name, kernel) in kernels() {
                let source = kernel.visit(backend.client(), ToSource).unwrap();
                let ptx = compile(&source.text, architecture, &include.to_string_lossy());
                let ptx = ptx.unwrap_or_else(|error| panic!("{name} for {architecture}: {error}"));
                if let Some(to) = std::env::var_os("HALFBYTE_PTX") {
                    let file = format!("{name}-{units}-{architecture}.ptx", units = kernel.units());
                    std::fs::write(
                        std::path::Path::new(&to).join(file),
                        ptx.strip_suffix(&[0]).unwrap_or(&ptx),
                    )
                    .unwrap();
                }
                let ptx = String::from_utf8_lossy(&ptx);
                assert!(ptx.contains(&format!(".entry {}", source.entry)), "{name}");
                // One parameter a buffer, and one with all scalars: as `Prepared::launch` passes them.
                let parameters =
                    ptx.split(".entry").nth(1).and_then(|entry| entry.split(')').next()).unwrap();
                let arrays = kernel.visit(backend.client(), Arrays);
                assert_eq!(parameters.matches(".param").count(), arrays + 1, "{name}: {parameters}");
                println!("{name} for {architecture}: {} bytes of shared memory", source.shared_memory);
            }
        }
    }

    /// How many buffers a kernel has.
    struct Arrays;

    impl Visitor for Arrays {
        type Out = usize;

        fn visit<K: CubeKernel>(self, kernel: K) -> usize {
            kernel.define().buffers.len()
        }
    }
}
