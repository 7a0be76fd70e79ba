//! The 8-bit stage of double quantization: the scales of a tensor, themselves quantized.

use std::sync::LazyLock;

use crate::{Absmax, DYNAMIC_MAP, NESTED_BLOCKSIZE};

/// Resolution of the grid through which bitsandbytes' CPU path finds 8-bit codes.
const GRID: usize = 65536;

/// The code of every grid point, `[65536]`.
static CODE_OF_POINT: LazyLock<Box<[u8]>> = LazyLock::new(|| (0..GRID).map(code_of_point).collect());

/// The code of grid point `point`: the number of midpoints of [`DYNAMIC_MAP`] below its value.
fn code_of_point(point: usize) -> u8 {
    let value = -1.0 + 2.0 * point as f32 / (GRID - 1) as f32;
    let (mut low, mut high) = (0, DYNAMIC_MAP.len() - 1);
    while low < high {
        let middle = usize::midpoint(low, high);
        if 0.5 * (DYNAMIC_MAP[middle] + DYNAMIC_MAP[middle + 1]) < value {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low as u8
}

/// The grid point nearest to a value scaled to `[-1, 1]`. NaN goes to point 0.
fn grid_point(value: f32) -> usize {
    let unit = (value.clamp(-1.0, 1.0) + 1.0) * 0.5;
    ((unit * (GRID - 1) as f32 + 0.5) as usize).min(GRID - 1)
}

/// Quantizes values to 8 bits with [`DYNAMIC_MAP`], as bitsandbytes' CPU `quantize_blockwise`
/// does: codes `[values.len()]` and block maxima `[values.len().div_ceil(blocksize)]`.
///
/// Values are scaled by the reciprocal of their block's largest magnitude, clamped to `[-1, 1]`
/// and rounded to a uniform grid of 65536 points, each of which has its code. The code is
/// therefore not always the nearest: below a magnitude of about 1.5e-5 of the block's maximum
/// the grid cannot tell values apart. NaN does not count towards a maximum and takes code 0; so do
/// all values of a block whose maximum is 0, and infinities.
pub fn quantize_dynamic(values: &[f32], blocksize: usize) -> (Vec<u8>, Vec<f32>) {
    let mut codes = vec![0; values.len()];
    let mut maxima = Vec::with_capacity(values.len().div_ceil(blocksize.max(1)));
    let blocks = values.chunks(blocksize.max(1));
    for (values, codes) in blocks.zip(codes.chunks_mut(blocksize.max(1))) {
        // `f32::max` passes over NaN.
        let maximum = values.iter().fold(0.0, |m: f32, v| m.max(v.abs()));
        maxima.push(maximum);
        if maximum == 0.0 {
            continue;
        }
        let inverse = 1.0 / maximum;
        for (code, value) in codes.iter_mut().zip(values) {
            *code = CODE_OF_POINT[grid_point(value * inverse)];
        }
    }
    (codes, maxima)
}

/// The mean of the scales, accumulated in double precision and rounded once. 0 for no scales.
///
/// bitsandbytes takes torch's single-precision mean, whose summation order depends on the
/// machine; this one is within an ulp or two of it, and stays finite where a single-precision
/// sum would overflow.
pub(crate) fn mean(values: &[f32]) -> f32 {
    if values.is_empty() {
        return 0.0;
    }
    let sum: f64 = values.iter().map(|&v| f64::from(v)).sum();
    (sum / values.len() as f64) as f32
}

impl Absmax {
    /// Double-quantizes scales: their distances from `offset` (by default their mean) in 8-bit
    /// blocks of [`NESTED_BLOCKSIZE`] with [`DYNAMIC_MAP`].
    ///
    /// One NaN or infinite scale makes the mean NaN or infinite and with it every scale of the
    /// tensor, as in bitsandbytes.
    pub fn nest(scales: &[f32], offset: Option<f32>) -> Absmax {
        let offset = offset.unwrap_or_else(|| mean(scales));
        let distances: Vec<f32> = scales.iter().map(|scale| scale - offset).collect();
        let (codes, absmax) = quantize_dynamic(&distances, NESTED_BLOCKSIZE);
        Absmax::Nested { codes, absmax, offset, code: Box::new(DYNAMIC_MAP), blocksize: NESTED_BLOCKSIZE }
    }
}
