//! The CUDA backend, on CubeCL, the compute layer of burn.
//!
//! Kernels are written once, in Rust (`#[cube]`), and compiled for whatever CubeCL runs on: for CUDA by NVRTC
//! while the program runs, for wgpu by way of WGSL. The tests therefore run the very kernels of
//! `cuda:0` on any machine with a wgpu adapter, software ones included.
//!
//! # Turning CUDA on
//! Build with the feature `cuda` (`--features cuda`). That needs no GPU and no CUDA toolkit. To run it needs
//! NVIDIA's driver, and NVRTC with the toolkit's headers (set `CUDA_PATH` if the toolkit is not in
//! `/usr/local/cuda`). `CubeBackend::<CudaRuntime>::open(0)` says which of them is missing. The feature
//! `wgpu` brings CubeCL's other runtime, which the tests use. Neither is on by default: nobody compiles
//! CubeCL's CUDA runtime who has not asked for it.
//!
//! # What runs
//! Every step of [`halfbyte_backend::Step`]: the whole conformance table. Weights are NF4 or FP4, absmax plain or
//! double-quantized, or dense in f32, f16 or bf16; embeddings are dense. burn's tensors are not used: they have no
//! NF4 and would dequantize the matrix first, which moves four to eight times the bytes.
//!
//! # Why few, large launches
//! A CubeCL launch costs the host 18 to 45 µs (measured on its wgpu runtime, November 2026), a dispatch of
//! our own wgpu engine 0.6 µs. So a step is one launch with its norm, bias, activation and residual inside, and
//! absmax is decoded in the kernel rather than by a launch of its own. In decode a dense Llama layer is five:
//! `norm_linear` (norm, q|k|v), `attend` (rope, KV write, split softmax), `norm_linear` (merge, o-projection,
//! residual), `norm_linear` (norm, gate and up, activation), `norm_linear` (down, residual). Around `L` layers are
//! `embed`, the head and the choice (`argmax` or `sample`): `5 L + 3`, for Llama-2-7B 163. What precedes a norm
//! (Gemma's and BERT's residuals and post-norms) is a launch of its own; a mixture of `n` experts is `3 + 2n`, of which
//! those end at once that no row takes. Prompts take `kv_store` and a norm for each product besides.
//!
//! 163 launches through CubeCL are 3 to 7 ms, where an H200 reads the weights in 0.8: the module `graph` has the
//! arithmetic and the way out, a CUDA graph of the same kernels. It has to prove itself on each device: the module
//! `trial`.
//!
//! # Prompts
//! Products of many rows use tensor cores where the device has any for halves: `linear_cores` takes each number in two
//! halves, so that the results are those of the other kernels within the table's tolerance, and a device whose first
//! product differs from the host's goes without. `HALFBYTE_CUDA_CORES=off` is without, `half` takes one half a number,
//! which is faster, rounds to 11 bits and fails the table. Tensor cores have not run yet: NVRTC takes the kernel, and its
//! indices, layouts and numbers are tested with loops in place of the fragments.
//!
//! # Memory
//! Every buffer is a persistent allocation of CubeCL's, of exactly the bytes that [`CubeLayout`] says; what is
//! released goes back to the driver at once. An allocation that the driver refuses, or that exceeds the budget of
//! [`CubeBackend::with_budget`], is [`Fault::OutOfMemory`](halfbyte_backend::Fault::OutOfMemory).

mod attend_plan;
mod backend;
mod bandwidth;
mod cores;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cuda")]
mod graph;
mod guard;
mod hardware;
mod held;
mod kernels;
mod kv_rows;
mod launch;
mod layout;
mod linear;
mod pack;
mod product;
mod program;
mod program_plan;
mod recording;
mod rows;
mod sequence;
mod staging;
mod trial;
mod upload;
mod weight;
#[cfg(feature = "wgpu")]
mod wgpu;

pub use backend::{CubeBackend, Probe};
#[cfg(feature = "cuda")]
pub use cubecl::cuda::CudaRuntime;
#[cfg(feature = "wgpu")]
pub use cubecl::wgpu::WgpuRuntime;
#[cfg(feature = "cuda")]
pub use cuda::cuda_devices;
pub use layout::CubeLayout;
pub use linear::{CubeLinear, PackedLinear};
#[doc(hidden)]
pub use recording::Trial;
