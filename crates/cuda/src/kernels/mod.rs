//! The kernels, each in the file of its step, and the parts they are made of.

pub(crate) mod dense;
pub(crate) mod epilogue;
pub(crate) mod moments;
pub(crate) mod norm_linear;
pub(crate) mod scatter;
pub(crate) mod variant;

use cubecl::prelude::*;

/// Four neighbours that are loaded together: 16 bytes, the widest load of a GPU.
pub(crate) type Quad<T> = Vector<T, Const<4>>;

/// Columns that one lane multiplies at a time, and what rows are padded to: 16 bytes of codes.
pub(crate) const GROUP: usize = 32;

#[cfg(all(test, feature = "cuda", feature = "wgpu"))]
mod cuda_source;
