//! The kernels, each in the file of its step.

pub(crate) mod norm_linear;
pub(crate) mod scatter;

use cubecl::prelude::*;

/// Four neighbours that are loaded together: 16 bytes, the widest load of a GPU.
pub(crate) type Quad<T> = Vector<T, Const<4>>;
