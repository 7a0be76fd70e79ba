//! The kernels, each in the file of its step, and the parts they are made of.

pub(crate) mod argmax;
pub(crate) mod attend;
pub(crate) mod codebook;
pub(crate) mod dense;
pub(crate) mod embed;
pub(crate) mod epilogue;
pub(crate) mod heads;
pub(crate) mod kv;
pub(crate) mod kv_store;
pub(crate) mod linear_cores;
pub(crate) mod linear_tiled;
pub(crate) mod merge;
pub(crate) mod moments;
pub(crate) mod norm_linear;
pub(crate) mod places;
pub(crate) mod pre;
pub(crate) mod random;
pub(crate) mod read_bandwidth;
pub(crate) mod route;
pub(crate) mod sample;
pub(crate) mod scatter;
pub(crate) mod scatter_words;
pub(crate) mod tile;
pub(crate) mod variant;

use cubecl::prelude::*;

/// Four neighbours that are loaded together: 16 bytes, the widest load of a GPU.
pub(crate) type Quad<T> = Vector<T, Const<4>>;

/// Columns that one lane multiplies at a time, and what rows are padded to: 16 bytes of codes.
pub(crate) const GROUP: usize = 32;

#[cfg(all(test, feature = "cuda", feature = "wgpu"))]
pub(crate) mod cuda_source;
