//! The wgpu backend: Vulkan, Metal, DX12 and the browser.
//!
//! [`WgpuBackend`] runs steps as WGSL compute dispatches, all of a submission in one pass. A dense Llama
//! layer in decode is five: `norm_linear` (norm, q|k|v), `attend` (rope, KV write, split softmax),
//! `norm_linear` merging the splits (o-projection, residual), `norm_linear` gated, `norm_linear` (down,
//! residual). A mixture of `n` experts is `3 + 2n` dispatches: norm, router, choice, and two for each
//! expert, which end at once where no row takes it: only the chosen experts' weights are read. All of it
//! needs no more than WebGPU's default limits: tensors are cut by rows, caches by heads.
//!
//! How it lies in memory is said where it is planned: `linear_plan` (weights), `kv_plan` (caches),
//! `program_plan` (activations); [`WgpuLayout`] adds it up without a device, and the ledger agrees to
//! the byte.

mod adapters;
mod answers;
mod attend_plan;
mod backend;
mod bandwidth;
mod canonical;
mod compile;
mod experts;
mod gpu;
mod heaps;
mod held;
mod kept_file;
mod kernels;
mod kv_plan;
mod kv_rows;
mod layout;
mod linear_plan;
mod memory;
mod meter;
mod options;
mod pipeline;
mod pipeline_cache;
mod profile;
mod program;
mod program_plan;
mod rows;
mod sequence;
mod staging;
mod step_class;
mod tuning;
mod tuning_measure;
mod tuning_table;
mod upload;
mod wait;

pub use backend::WgpuBackend;
pub use layout::WgpuLayout;
pub use options::Options;
pub use tuning::Tuning;
