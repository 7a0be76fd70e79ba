//! The WGSL kernels of halfbyte, one file per fused step, and the small preprocessor that renders
//! their variants.
//!
//! A [`Kernel`] is a file of `wgsl/`; a [`Variant`] is a kernel with a set of [`Flag`]s, which decide
//! what is bound; sizes are WGSL `override` constants, so that one variant serves every shape. All
//! variants run within WebGPU's default limits.

#![forbid(unsafe_code)]

mod kernel;
mod preprocess;
mod snippets;

pub use kernel::{Flag, Flags, Kernel, Variant};
pub use preprocess::ShaderError;
