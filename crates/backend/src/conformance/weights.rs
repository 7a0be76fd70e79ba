//! Weights made from a seed.

use crate::random::Stream;
use crate::{Canonical, DType, Fault, Format, Fut, Segment, WeightSource};
use half::{bf16, f16};
use halfbyte_quant::{Source, quantize};
use std::borrow::Cow;

/// Rows of a `tied` tensor that differ; see [`SeededWeights`].
const TIE_PERIOD: usize = 7;

/// Tensors of at least this many elements are uniform rather than normal, which is quicker to make.
const LARGE: usize = 1 << 18;

/// A [`WeightSource`] that makes every tensor from its name and a seed.
///
/// Matrices have independent elements of variance `1 / cols`; norm weights lie around 1, biases around
/// 0. Words in a tensor's name change that. A matrix that is `exact` has elements of -1/2 to 1/2 in
/// steps of 1/4, so that short sums of products are exact in any order; of one that is `tied` each row
/// besides equals the one seven rows above. A matrix or vector that is `zero` holds 0, and element `i` of
/// a vector that is `ascending` is `i / 16`.
#[derive(Debug, Clone, Copy)]
pub struct SeededWeights {
    seed: u64,
}

impl SeededWeights {
    /// The weights of `seed`.
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// A matrix `[rows, cols]` in f32.
    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Vec<f32> {
        let len = rows * cols;
        if name.contains("zero") {
            return vec![0.0; len];
        }
        let mut stream = Stream::new(name_seed(self.seed, name));
        let mut exact = || stream.below(5) as f32 / 4.0 - 0.5;
        if name.contains("tied") {
            let period: Vec<f32> = (0..TIE_PERIOD * cols).map(|_| exact()).collect();
            return period.iter().copied().cycle().take(len).collect();
        }
        if name.contains("exact") {
            return (0..len).map(|_| exact()).collect();
        }
        let deviation = 1.0 / (cols as f32).sqrt();
        if len < LARGE {
            return (0..len).map(|_| stream.normal() * deviation).collect();
        }
        // Four uniform numbers of 16 bits from each draw; variance of a width of 1 is 1/12.
        let scale = deviation * 12.0f32.sqrt() / 65536.0;
        let draws = std::iter::repeat_with(|| stream.bits());
        let words = draws.flat_map(|bits| [bits, bits >> 16, bits >> 32, bits >> 48]);
        words.map(|word| (f32::from(word as u16) - 32767.5) * scale).take(len).collect()
    }
}

impl WeightSource for SeededWeights {
    fn segment<'a>(&'a self, segment: &'a Segment) -> Fut<'a, Canonical<'a>> {
        Box::pin(async move {
            let values = self.matrix(&segment.tensor, segment.rows, segment.cols);
            match segment.format {
                Format::Dense(dtype) => {
                    Ok(Canonical::Dense { dtype, bytes: Cow::Owned(dense(&values, dtype)) })
                }
                Format::Quant(format) => quantize(Source::F32(&values), format.into())
                    .map(|quantized| Canonical::Quantized(Cow::Owned(quantized)))
                    .map_err(|error| Fault::Source(format!("{}: {error}", segment.tensor))),
            }
        })
    }

    fn vector<'a>(&'a self, name: &'a str, len: usize) -> Fut<'a, Vec<f32>> {
        Box::pin(async move {
            if name.contains("zero") {
                return Ok(vec![0.0; len]);
            }
            if name.contains("ascending") {
                return Ok((0..len).map(|index| index as f32 / 16.0).collect());
            }
            let mut stream = Stream::new(name_seed(self.seed, name));
            let (mean, deviation) = if name.ends_with("norm.weight") { (1.0, 0.3) } else { (0.0, 0.5) };
            Ok((0..len).map(|_| mean + deviation * stream.normal()).collect())
        })
    }
}

/// Values as little-endian elements of `dtype`.
fn dense(values: &[f32], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(),
        DType::Bf16 => values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect(),
    }
}

/// A seed for `name` under `seed`: 64-bit FNV-1a.
pub(super) fn name_seed(seed: u64, name: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3);
    name.bytes().fold(0xCBF2_9CE4_8422_2325 ^ seed, step)
}
