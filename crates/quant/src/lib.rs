//! NF4 and FP4 blockwise quantization with double quantization, as bitsandbytes does it.

#![forbid(unsafe_code)]

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
