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
mod byte_rows;
mod cache;
mod cache_size;
mod contents;
mod expected;
mod experts;
mod fast_error;
mod in_file;
mod interleaved;
mod kernels;
mod layout;
mod lines;
mod math;
mod matrix;
mod memory;
mod nested;
mod pages;
mod panels;
mod path;
mod products;
mod profile;
mod program;
mod quants;
mod request;
mod scalar;
mod scratch;
mod shares;
mod simd;
mod slots;
mod store;
mod sweep;
mod team;
mod threads;
mod unscanned;

pub use backend::{CpuBackend, CpuOptions};
pub use layout::CpuLayout;
pub use math::{MATH_VARIABLE, Math};
pub use memory::address_space_left;
pub use path::{PATH_VARIABLE, Path};
