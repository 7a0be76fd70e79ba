//! Quantization of whole tensors, arranged for vector units and threads.
//!
//! The bytes are those of [`crate::scalar`]. Three things make it fast. The largest magnitude is
//! an integer maximum of bit patterns, sixteen bits wide where elements are. A rank is a count of
//! comparisons without a branch, over strips of fixed length, which compilers turn into vector
//! code. Chunks of blocks are independent, so threads share them.

use std::borrow::Cow;

use half::{bf16, f16};

use crate::scalar::{LEAST_SCALE, at_least};
use crate::threads::each;
use crate::{Absmax, Element, QuantError, QuantSpec, QuantType, Quantized, Source, SourceType, vector_units};

/// Elements of one parallel task: a multiple of every block size, and small enough that a chunk
/// stays in the second-level cache between the search for its maxima and its encoding.
const CHUNK: usize = 1 << 16;

/// Elements that are encoded together: a divisor of every block size.
const STRIP: usize = 32;

/// Quantizes a tensor as bitsandbytes' CPU path does, with the offset of double quantization
/// the mean of the scales.
///
/// # Errors
/// [`QuantError::Blocksize`].
///
/// ```
/// use halfbyte_quant::{QuantSpec, Source, quantize};
/// let weights: Vec<f32> = (0..4096).map(|i| (i as f32).sin()).collect();
/// let tensor = quantize(Source::F32(&weights), QuantSpec::default())?;
/// assert_eq!(tensor.packed.len(), 2048);
/// let error = tensor.dequantize().into_iter().zip(&weights).map(|(a, b)| (a - b).abs());
/// assert!(error.fold(0.0, f32::max) < 0.16);
/// # Ok::<(), halfbyte_quant::QuantError>(())
/// ```
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
    spec.validate()?;
    let len = source.len();
    let (packed, absmax) = match source {
        Source::F32(values) => encode(len, spec, |at| Cow::Borrowed(&values[at])),
        Source::F16(values) => encode(len, spec, |at| Cow::Borrowed(&values[at])),
        Source::Bf16(values) => encode(len, spec, |at| Cow::Borrowed(&values[at])),
        Source::Bytes { dtype, bytes } => match dtype {
            SourceType::F32 => encode(len, spec, |at| Cow::Owned(read::<f32>(bytes, at))),
            SourceType::F16 => encode(len, spec, |at| Cow::Owned(read::<f16>(bytes, at))),
            SourceType::Bf16 => encode(len, spec, |at| Cow::Owned(read::<bf16>(bytes, at))),
        },
    };
    Ok(Quantized {
        len,
        blocksize: spec.blocksize,
        quant_type: spec.quant_type,
        code: *spec.quant_type.codebook(),
        packed,
        absmax: if spec.double_quant { Absmax::nest(&absmax, offset) } else { Absmax::Plain(absmax) },
    })
}

/// Elements `at` of little-endian bytes.
fn read<T: Element>(bytes: &[u8], at: std::ops::Range<usize>) -> Vec<T> {
    let width = size_of::<T>();
    let elements = bytes[at.start * width..at.end * width].chunks_exact(width);
    elements.map(T::from_le).collect()
}

/// Codes `[len.div_ceil(2)]` and scales `[len.div_ceil(blocksize)]` of `len` elements, which
/// `chunk` hands out by range.
fn encode<'a, T: Element>(
    len: usize,
    spec: QuantSpec,
    chunk: impl Fn(std::ops::Range<usize>) -> Cow<'a, [T]> + Sync,
) -> (Vec<u8>, Vec<f32>) {
    let mut packed = vec![0; len.div_ceil(2)];
    let mut absmax = vec![0.0; len.div_ceil(spec.blocksize)];
    let encoder = vector_units::encoder();
    let task = |(index, (packed, absmax)): (usize, (&mut [u8], &mut [f32]))| {
        let start = index * CHUNK;
        let values = chunk(start..len.min(start + CHUNK));
        encoder(&values, spec, packed, absmax);
    };
    let scales = CHUNK / spec.blocksize;
    each(packed.chunks_mut(CHUNK / 2).zip(absmax.chunks_mut(scales)).enumerate(), task);
    (packed, absmax)
}

/// Encodes consecutive blocks of `values`, of which the last may be partial.
#[inline(always)]
pub(crate) fn encode_chunk<T: Element>(values: &[T], spec: QuantSpec, packed: &mut [u8], absmax: &mut [f32]) {
    let midpoints = spec.quant_type.midpoints();
    let blocks = values.chunks(spec.blocksize);
    let outputs = packed.chunks_mut(spec.blocksize / 2).zip(absmax);
    for (block, (packed, absmax)) in blocks.zip(outputs) {
        let largest = T::largest_magnitude(block);
        let scale = at_least(largest, LEAST_SCALE);
        if block.len() == spec.blocksize {
            *absmax = largest;
            let inverse = 1.0 / scale;
            let (strips, _) = block.as_chunks::<STRIP>();
            let (bytes, _) = packed.as_chunks_mut::<{ STRIP / 2 }>();
            for (strip, bytes) in strips.iter().zip(bytes) {
                *bytes = encode_strip(strip, inverse, midpoints);
            }
        } else {
            *absmax = scale;
            encode_rest(block, scale, midpoints, packed);
        }
        if spec.quant_type == QuantType::Fp4 {
            for byte in packed {
                *byte = FP4_OF_RANKS[usize::from(*byte)];
            }
        }
    }
}

/// The rank of a scaled value. It need not be clamped to `[-1, 1]`: the points lie within.
#[inline(always)]
fn rank(scaled: f32, midpoints: &[f32; 15]) -> u8 {
    // Counting those at or above, rather than those below, makes NaN rank 15.
    let mut rank = 15;
    for &point in midpoints {
        rank -= i32::from(scaled <= point);
    }
    rank as u8
}

/// The packed ranks of a strip of a full block.
#[inline(always)]
fn encode_strip<T: Element>(strip: &[T; STRIP], inverse: f32, midpoints: &[f32; 15]) -> [u8; STRIP / 2] {
    let mut ranks = [0; STRIP];
    for (rank_out, value) in ranks.iter_mut().zip(strip) {
        *rank_out = rank(value.widen() * inverse, midpoints);
    }
    let mut packed = [0; STRIP / 2];
    let (pairs, _) = ranks.as_chunks::<2>();
    for (byte, pair) in packed.iter_mut().zip(pairs) {
        *byte = pair[0] << 4 | pair[1];
    }
    packed
}

/// The packed ranks of a partial block at the end, which is divided by its scale rather than
/// multiplied by the reciprocal. An odd element is paired with a zero.
fn encode_rest<T: Element>(block: &[T], scale: f32, midpoints: &[f32; 15], packed: &mut [u8]) {
    for (byte, pair) in packed.iter_mut().zip(block.chunks(2)) {
        let high = rank(pair[0].widen() / scale, midpoints);
        let low = pair.get(1).map_or(0.0, |value| value.widen() / scale);
        *byte = high << 4 | rank(low, midpoints);
    }
}

/// Two packed ranks to two packed FP4 codes.
const FP4_OF_RANKS: [u8; 256] = {
    let by_rank = QuantType::Fp4.codes_by_rank();
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = by_rank[byte >> 4] << 4 | by_rank[byte & 15];
        byte += 1;
    }
    table
};
