//! NF4 and FP4 blockwise quantization with double quantization, as bitsandbytes does it.
//!
//! A tensor is flattened and cut into blocks, usually of 64 elements. Each block keeps its
//! largest magnitude as a scale, and each element becomes the number of the nearest of sixteen
//! values between -1 and 1 (the *codebook*) in units of that scale: 4 bits and a share of the
//! scale. *Double quantization* stores the scales themselves in 8 bits, so that a weight takes
//! 4.127 bits instead of 4.5 (Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs",
//! 2023).
//!
//! ```
//! use halfbyte_quant::{QuantSpec, Source, quantize};
//!
//! let weights: Vec<f32> = (0..11008).map(|i| (i as f32 * 0.7).sin()).collect();
//! let tensor = quantize(Source::F32(&weights), QuantSpec::default())?; // NF4, 64, double
//! assert_eq!(tensor.bytes(), 5504 + 172 + 4);
//!
//! let back = tensor.dequantize();
//! let error: f32 = back.iter().zip(&weights).map(|(a, b)| (a - b).powi(2)).sum();
//! let norm: f32 = weights.iter().map(|w| w * w).sum();
//! assert!((error / norm).sqrt() < 0.11);
//! # Ok::<(), halfbyte_quant::QuantError>(())
//! ```
//!
//! # What is the same as in bitsandbytes
//!
//! The reference is the CPU path of bitsandbytes 0.50.2. From the same elements in `f32`, `f16`
//! or `bf16` come the same bytes of codes and the same scales; from the same offset, the same
//! double-quantized scales; and dequantized values are equal. This crate's tests compare all of
//! it with stored results. Two things differ on purpose or by nature:
//!
//! - The offset of double quantization is the mean of the scales, here accumulated in double
//!   precision. torch sums in single precision in an order that depends on the machine, so the
//!   last bit or two can differ. [`quantize_with_offset`] takes an offset that is known.
//! - bitsandbytes' CUDA kernels differ slightly from its CPU path: an FP4 decision point or two by
//!   an ulp, the sign of FP4 zeros, and the blocks listed below.
//!
//! # How a block is quantized
//!
//! With `m` the largest magnitude, all in single precision:
//!
//! | block | scale that is stored | element `x` becomes |
//! |---|---|---|
//! | full | `m` | `x * (1 / max(m, 1e-38))` |
//! | partial, at the end | `max(m, 1e-38)` | `x / max(m, 1e-38)` |
//!
//! and its code is that of the nearest codebook value, the lower one on a midpoint. The codes of
//! elements `2i` and `2i + 1` are the high and the low nibble of byte `i`; an odd tensor ends in a
//! low nibble that stands for zero.
//!
//! # Values that are not ordinary
//!
//! No value makes this crate panic. What becomes of them is what bitsandbytes' CPU path makes of
//! them:
//!
//! | block | scale | codes | dequantized |
//! |---|---|---|---|
//! | zeros, of either sign | 0 (1e-38 if partial) | that of zero: NF4 7, FP4 0 | zeros |
//! | all below 1e-38 | the largest (1e-38 if partial) | of `x * 1e38`: few levels, below about 4e-40 (NF4) only zero | as few |
//! | a NaN | NaN | the largest value's: NF4 15, FP4 3 | NaN |
//! | an infinity, no NaN | infinity | infinities of either sign the largest value's, others zero's | infinity, and NaN for the others |
//!
//! With double quantization one NaN or infinite scale makes the mean, and with it every scale of
//! the tensor, NaN. Finite scales whose single-precision sum would overflow have a finite mean
//! here and an infinite one in bitsandbytes. A tensor without elements has offset 0.
//!
//! # Scalar truth, fast code
//!
//! [`scalar`] defines every result one element at a time. [`quantize`] gives the same bytes from
//! code for vector units (chosen while running) and, with the feature `parallel` (on by default),
//! for [all threads](threads).

#![deny(unsafe_code)]

mod absmax;
mod blockwise;
mod dequantize;
mod dynamic_map;
mod element;
mod error;
mod nested;
mod quant_type;
mod quantized;
pub mod scalar;
mod source;
mod spec;
pub mod threads;
mod vector_units;

pub use absmax::Absmax;
pub use blockwise::{quantize, quantize_with_offset};
pub use dynamic_map::DYNAMIC_MAP;
pub use element::Element;
pub use error::QuantError;
pub use nested::quantize_dynamic;
pub use quant_type::QuantType;
pub use quantized::Quantized;
pub use source::{Source, SourceType};
pub use spec::{NESTED_BLOCKSIZE, QuantSpec, bytes_for};
