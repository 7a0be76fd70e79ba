//! The CPU backend, and its scalar twin that is the reference for all kernels.
//!
//! [`CpuBackend::new`] runs the fastest kernels that the processor has on all its threads;
//! [`CpuBackend::scalar`] runs plain loops that accumulate in f64, and is what every kernel of every
//! backend is compared to. Both hold weights in their canonical bytes and keep the same account
//! ([`CpuLayout`]).

mod backend;
mod bandwidth;
mod bound;
mod buffer;
mod cache;
mod experts;
mod in_file;
mod kernels;
mod layout;
mod matrix;
mod memory;
mod path;
mod program;
mod request;
mod scalar;
mod simd;
mod slots;
mod store;
mod sweep;

pub use backend::{CpuBackend, CpuOptions};
pub use layout::CpuLayout;
pub use memory::address_space_left;
pub use path::{PATH_VARIABLE, Path};
