//! A WebGPU device that interprets its shaders: for tests, where no GPU is at hand.
//!
//! Software Vulkan has subgroups of one size, runs a workgroup's invocations nearly in order, hides races
//! and missing barriers, and fills workgroup memory with zeros. Here every operation runs for all
//! invocations of a workgroup together, with subgroups of any size, workgroups come in a shuffled order,
//! and each access to memory is checked against the others: see [`Kind`] for what is found.
//!
//! ```
//! # use halfbyte_simt::{Adapter, Settings};
//! let adapter = Adapter::new(Settings { subgroup: Some((32, 32)), ..Settings::default() });
//! let gpu: wgpu::Adapter = adapter.wgpu();
//! // … open a device on `gpu` and run …
//! assert_eq!(adapter.findings(), []);
//! ```
//!
//! `Function` and `private` variables without a value begin with zeros, and so do buffers: WGSL and WebGPU
//! say so. Workgroup memory does unless the pipeline asks for none of it.

#![deny(unsafe_code)]

mod code;
mod finding;
mod lanes;
mod lower;
mod run;
mod shader;
mod webgpu;

pub use finding::{Finding, Kind};
pub use webgpu::{Adapter, Settings};
