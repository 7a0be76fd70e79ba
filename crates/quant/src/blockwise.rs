//! Quantization and dequantization of whole tensors, arranged for vector units and threads.

use crate::{Element, QuantError, QuantSpec, Quantized, Source, scalar};

/// Quantizes a tensor as bitsandbytes' CPU path does.
///
/// # Errors
/// [`QuantError::Blocksize`].
pub fn quantize(source: Source<'_>, spec: QuantSpec) -> Result<Quantized, QuantError> {
    quantize_with_offset(source, spec, None)
}

/// [`quantize`] with a given offset for double quantization instead of the mean of the scales.
/// Without double quantization the offset is not used.
///
/// # Errors
/// [`QuantError::Blocksize`].
pub fn quantize_with_offset(
    source: Source<'_>,
    spec: QuantSpec,
    offset: Option<f32>,
) -> Result<Quantized, QuantError> {
    scalar::quantize_with_offset(source, spec, offset)
}

/// Dequantizes the whole tensor into `out`, `[tensor.len]`.
pub(crate) fn dequantize<T: Element>(tensor: &Quantized, out: &mut [T]) {
    dequantize_range(tensor, 0, out);
}

/// Dequantizes elements `start .. start + out.len()`.
pub(crate) fn dequantize_range<T: Element>(tensor: &Quantized, start: usize, out: &mut [T]) {
    for (i, out) in out.iter_mut().enumerate() {
        *out = T::narrow(tensor.get(start + i));
    }
}
