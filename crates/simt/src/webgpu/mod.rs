//! WebGPU on the interpreter, through wgpu's `custom` backend: what compute needs of it. The rest of the
//! interface answers with a validation error.

mod adapter;
mod bindings;
mod buffer;
mod commands;
mod device;
mod dispatch;
mod errors;
mod queue;

pub use adapter::{Adapter, Settings};
