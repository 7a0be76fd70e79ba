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
//! # Why few, large launches
//! A CubeCL launch costs the host 18 to 45 µs (measured on its wgpu runtime, November 2026), a dispatch of
//! our own wgpu engine 0.6 µs, and CubeCL 0.10 cannot capture CUDA graphs. Llama-2-7B in NF4 is 3.6 GiB, read
//! in 4 ms by a GPU of 1 TB/s: at five launches a layer, 160 a token, launching alone takes 3 to 7 ms. So
//! every step here is one launch with its norm, bias, activation and residual inside, and absmax is decoded
//! in the kernel rather than by a launch of its own. burn's tensors are not used: they have no NF4 and would
//! dequantize the matrix first, which moves four to eight times the bytes.
//!
//! # What runs
//! [`Step::Linear`](halfbyte_backend::Step::Linear) with weights in NF4 or FP4, absmax plain or
//! double-quantized, or dense in f32, f16 or bf16; with or without RMS norm or LayerNorm, bias, activation,
//! gate and residual. Every other step, what precedes a norm (post-norms, residuals, emitted streams), rope
//! tables and KV caches are refused as [`Fault::Unsupported`](halfbyte_backend::Fault::Unsupported), by name.

mod attend_plan;
mod backend;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cuda")]
mod graph;
mod guard;
mod hardware;
mod held;
mod kernels;
mod launch;
mod layout;
mod pack;
mod product;
mod program;
mod program_plan;
mod recording;
mod rows;
mod sequence;
mod staging;
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
