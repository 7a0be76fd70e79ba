//! Quantization one element at a time: the definition that the fast code must reproduce.
//!
//! Nothing here is arranged for speed. Every operation is an IEEE single-precision one, in the
//! order in which bitsandbytes' CPU path performs it.

use crate::{Absmax, Element, QuantError, QuantSpec, QuantType, Quantized, Source, SourceType};

/// The least scale that a block is divided by, as in bitsandbytes. It is a subnormal number.
pub(crate) const LEAST_SCALE: f32 = 1e-38;

/// [`crate::quantize`], one element at a time.
///
/// # Errors
/// [`QuantError::Blocksize`].
pub fn quantize(source: Source<'_>, spec: QuantSpec) -> Result<Quantized, QuantError> {
    quantize_with_offset(source, spec, None)
}

/// [`crate::quantize_with_offset`], one element at a time.
///
/// # Errors
/// [`QuantError::Blocksize`].
pub fn quantize_with_offset(
    source: Source<'_>,
    spec: QuantSpec,
    offset: Option<f32>,
) -> Result<Quantized, QuantError> {
    spec.validate()?;
    let values = widen(source);
    let mut absmax = Vec::with_capacity(values.len().div_ceil(spec.blocksize));
    let mut codes = Vec::with_capacity(values.len() + 1);
    for block in values.chunks(spec.blocksize) {
        let largest = largest_magnitude(block);
        let scale = at_least(largest, LEAST_SCALE);
        if block.len() == spec.blocksize {
            absmax.push(largest);
            let inverse = 1.0 / scale;
            codes.extend(block.iter().map(|x| encode(x * inverse, spec.quant_type)));
        } else {
            absmax.push(scale);
            codes.extend(block.iter().map(|x| encode(x / scale, spec.quant_type)));
        }
    }
    if codes.len() % 2 == 1 {
        codes.push(encode(0.0, spec.quant_type));
    }
    Ok(Quantized {
        len: values.len(),
        blocksize: spec.blocksize,
        quant_type: spec.quant_type,
        code: *spec.quant_type.codebook(),
        packed: codes.chunks_exact(2).map(|c| c[0] << 4 | c[1]).collect(),
        absmax: if spec.double_quant { Absmax::nest(&absmax, offset) } else { Absmax::Plain(absmax) },
    })
}

/// [`Quantized::dequantize`], one element at a time.
///
/// # Panics
/// If the arrays disagree where [`Quantized::check`] would have said so.
pub fn dequantize(tensor: &Quantized) -> Vec<f32> {
    (0..tensor.len).map(|i| tensor.get(i)).collect()
}

/// The code of a scaled value: of the nearest codebook entry, the lower one on a midpoint.
/// NaN takes the code of the largest entry.
pub fn encode(scaled: f32, quant_type: QuantType) -> u8 {
    let scaled = scaled.clamp(-1.0, 1.0);
    // "Not at or below" rather than "above", so that NaN counts every midpoint.
    let above = |midpoint: &&f32| !matches!(scaled.partial_cmp(midpoint), Some(o) if o.is_le());
    let rank = quant_type.midpoints().iter().filter(above).count();
    quant_type.codes_by_rank()[rank]
}

/// The largest magnitude; NaN if there is any, 0 for no values.
fn largest_magnitude(block: &[f32]) -> f32 {
    if block.iter().any(|x| x.is_nan()) {
        return f32::NAN;
    }
    block.iter().fold(0.0, |largest, x| largest.max(x.abs()))
}

/// `value`, or `least` if that is larger. NaN stays.
pub(crate) fn at_least(value: f32, least: f32) -> f32 {
    if value < least { least } else { value }
}

/// All elements in single precision, which is exact.
fn widen(source: Source<'_>) -> Vec<f32> {
    fn typed<T: Element>(values: &[T]) -> Vec<f32> {
        values.iter().map(|x| x.widen()).collect()
    }
    fn bytes<T: Element>(bytes: &[u8]) -> Vec<f32> {
        let elements = bytes.chunks_exact(size_of::<T>());
        elements.map(|e| T::from_le(e).widen()).collect()
    }
    match source {
        Source::F32(values) => values.to_vec(),
        Source::F16(values) => typed(values),
        Source::Bf16(values) => typed(values),
        Source::Bytes { dtype, bytes: b } => match dtype {
            SourceType::F32 => bytes::<f32>(b),
            SourceType::F16 => bytes::<half::f16>(b),
            SourceType::Bf16 => bytes::<half::bf16>(b),
        },
    }
}
