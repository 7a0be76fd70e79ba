//! Activations as bytes.
//!
//! Each block of 64 has a scale of its own, `absmax / 127`. Language models have channels whose activations are a
//! hundred and more times as large as the others (Dettmers et al. 2022, arXiv:2208.07339): in their blocks everything
//! else would round to nothing. So a block that is much larger than its row's others, or has a value much larger than
//! its others, is held twice: `q1 * s1 + q2 * s2`, where `q2` is what `q1` left over, in steps fine enough for the
//! small values: 1/127 of the largest rest among them. The rests of outliers may be larger and are cut, which is a
//! small part of an outlier. There are few such blocks, and sixteen bits for them cost
//! next to nothing.

use crate::buffer::{Shortage, zeroed};
use crate::lines::BLOCK;
use std::hint::black_box;

/// Bytes of a line of the cache.
const LINE: usize = 64;

/// A block is held twice if its largest value is more than this many times the harmonic mean of its row's. Blocks
/// of 64 normal values differ by 1.5 at most times; a second byte never harms, so that this is low.
const LARGE: f32 = 4.0;

/// A block is held twice, too, if its largest value is more than this many times its mean magnitude: for normal values
/// that is 3, for one value that dwarfs all others 64.
const UNEVEN: f32 = 10.0;

/// A value of so many coarse steps is an outlier: without its rest, at most half a step, it is off by 3 % at most.
const OUTLIER: i8 = 16;

/// Rows of activations as bytes.
#[derive(Debug)]
pub(crate) struct Quants {
    /// `[rows, cols]`
    coarse: Vec<i8>,
    /// `[rows, cols]`: meaningful in blocks with a second scale.
    fine: Vec<i8>,
    /// `[rows, blocks]`
    scales: Vec<BlockScale>,
}

/// What turns the bytes of a block into numbers.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct BlockScale {
    /// Of the coarse bytes.
    pub coarse: f32,
    /// Of the fine bytes; 0 where there are none.
    pub fine: f32,
    /// Sum of the coarse bytes.
    pub coarse_sum: i32,
    /// Sum of the fine bytes.
    pub fine_sum: i32,
}

/// One row of [`Quants`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct QuantRow<'a> {
    /// `[blocks]`
    pub coarse: &'a [[i8; BLOCK]],
    /// `[blocks]`
    pub fine: &'a [[i8; BLOCK]],
    /// `[blocks]`
    pub scales: &'a [BlockScale],
}

impl QuantRow<'_> {
    /// Brings it into this thread's cache, all lines at once: met one by one among the weights, each would be waited for.
    /// Prefetches would be dropped where memory is busy.
    #[inline(always)]
    pub fn load(&self) {
        self.coarse.iter().for_each(|block| _ = black_box(block[0]));
        let lines = self.scales.iter().step_by(LINE / size_of::<BlockScale>());
        lines.for_each(|scale| _ = black_box(scale.coarse));
        // Most rows have few second bytes.
        let twice = self.fine.iter().zip(self.scales).filter(|(_, scale)| scale.fine != 0.0);
        twice.for_each(|(block, _)| _ = black_box(block[0]));
    }
}

/// Bytes of [`Quants`] for `elements`.
pub(crate) fn bytes(elements: usize) -> usize {
    2 * elements + elements / BLOCK * size_of::<BlockScale>()
}

impl Quants {
    /// Room for rows of `elements` in all, a multiple of [`BLOCK`].
    pub fn reserve(elements: usize) -> Result<Self, Shortage> {
        Ok(Self { coarse: zeroed(elements)?, fine: zeroed(elements)?, scales: zeroed(elements / BLOCK)? })
    }

    /// The first `rows` rows of `cols`, to fill: the coarse bytes, the fine ones, and the scales of each row.
    pub fn parts(&mut self, rows: usize, cols: usize) -> (&mut [i8], &mut [i8], &mut [BlockScale]) {
        let (len, blocks) = (rows * cols, rows * cols / BLOCK);
        (&mut self.coarse[..len], &mut self.fine[..len], &mut self.scales[..blocks])
    }

    /// Row `row` of rows of `cols`.
    pub fn row(&self, row: usize, cols: usize) -> QuantRow<'_> {
        let blocks = cols / BLOCK;
        QuantRow {
            coarse: self.coarse[row * cols..][..cols].as_chunks().0,
            fine: self.fine[row * cols..][..cols].as_chunks().0,
            scales: &self.scales[row * blocks..][..blocks],
        }
    }
}

/// Fills one row from `x`, `[cols]`, every block held twice if `all_twice` says so. What is not finite makes a scale
/// that is not, and so reaches the result.
#[inline(always)]
pub(crate) fn quantize_row(
    x: &[f32],
    all_twice: bool,
    coarse: &mut [i8],
    fine: &mut [i8],
    scales: &mut [BlockScale],
) {
    quantize_blocks(x, all_twice, coarse, fine, scales);
    hold_large_twice(x, coarse, fine, scales);
}

/// The first pass, over any blocks of a row: all but the second bytes of blocks that are larger than their row's others.
#[inline(always)]
pub(crate) fn quantize_blocks(
    x: &[f32],
    all_twice: bool,
    coarse: &mut [i8],
    fine: &mut [i8],
    scales: &mut [BlockScale],
) {
    let (x, coarse, fine) = (x.as_chunks::<BLOCK>().0, coarse.as_chunks_mut().0, fine.as_chunks_mut().0);
    for (((x, coarse), fine), scale) in x.iter().zip(coarse).zip(fine).zip(scales) {
        let (largest, mean) = magnitudes(x);
        *scale = BlockScale { coarse: largest / 127.0, ..BlockScale::default() };
        let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        scale.coarse_sum = round(x, inverse, coarse);
        if all_twice || largest > UNEVEN * mean {
            hold_twice(x, coarse, fine, scale);
        }
    }
}

/// The second pass, over all blocks of a row.
#[inline(always)]
pub(crate) fn hold_large_twice(x: &[f32], coarse: &[i8], fine: &mut [i8], scales: &mut [BlockScale]) {
    let (mut inverses, mut blocks) = (0.0f32, 0.0f32);
    for scale in &*scales {
        if scale.coarse > 0.0 {
            inverses += 1.0 / scale.coarse;
            blocks += 1.0;
        }
    }
    let large = LARGE * blocks / inverses;
    let (x, coarse, fine) = (x.as_chunks::<BLOCK>().0, coarse.as_chunks().0, fine.as_chunks_mut().0);
    for (((x, coarse), fine), scale) in x.iter().zip(coarse).zip(fine).zip(scales) {
        if scale.coarse > large && scale.fine == 0.0 {
            hold_twice(x, coarse, fine, scale);
        }
    }
}

/// The second bytes of a block.
#[inline(always)]
fn hold_twice(x: &[f32; BLOCK], coarse: &[i8; BLOCK], fine: &mut [i8; BLOCK], scale: &mut BlockScale) {
    let mut rests = [0.0f32; BLOCK];
    let mut largest = 0.0f32;
    for ((rest, x), &coarse) in rests.iter_mut().zip(x).zip(coarse) {
        *rest = x - f32::from(coarse) * scale.coarse;
        if coarse.abs() < OUTLIER {
            largest = largest.max(rest.abs());
        }
    }
    if largest > 0.0 {
        scale.fine = largest / 127.0;
        scale.fine_sum = round(&rests, 127.0 / largest, fine);
    }
}

/// The largest magnitude (NaN or infinity if there is one), and the mean.
#[inline(always)]
fn magnitudes(x: &[f32; BLOCK]) -> (f32, f32) {
    // As bits, magnitudes order like whole numbers, those that are not finite above all others.
    let mut lanes = [0u32; 16];
    let mut sums = [0.0f32; 16];
    for x in x.as_chunks::<16>().0 {
        for ((lane, sum), x) in lanes.iter_mut().zip(&mut sums).zip(x) {
            *lane = (*lane).max(x.to_bits() & 0x7fff_ffff);
            *sum += x.abs();
        }
    }
    let largest = lanes.iter().fold(0, |max, &lane| max.max(lane));
    (f32::from_bits(largest), sums.iter().sum::<f32>() / BLOCK as f32)
}

/// Rounds to the nearest of ±127, ties to even; returns the sum.
#[inline(always)]
fn round(x: &[f32; BLOCK], inverse: f32, to: &mut [i8; BLOCK]) -> i32 {
    // 1.5 * 2^23: the sum has its whole number in the low bits of its mantissa.
    const MAGIC: f32 = 12_582_912.0;
    let mut sum = 0;
    for (to, x) in to.iter_mut().zip(x) {
        let scaled = (x * inverse).clamp(-127.0, 127.0);
        let whole = (scaled + MAGIC).to_bits() as i32 - MAGIC.to_bits() as i32;
        *to = whole as i8;
        sum += i32::from(*to);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use halfbyte_backend::random::Stream;

    fn round_trip(x: &[f32]) -> (Vec<f32>, usize) {
        round_trip_of(x, false)
    }

    fn round_trip_of(x: &[f32], all_twice: bool) -> (Vec<f32>, usize) {
        let mut quants = Quants::reserve(x.len()).unwrap();
        let (coarse, fine, scales) = quants.parts(1, x.len());
        quantize_row(x, all_twice, coarse, fine, scales);
        let row = quants.row(0, x.len());
        let mut out = Vec::new();
        for (block, scale) in row.scales.iter().enumerate() {
            let sum: i32 = row.coarse[block].iter().map(|&q| i32::from(q)).sum();
            assert_eq!(sum, scale.coarse_sum);
            for i in 0..BLOCK {
                let fine = if scale.fine == 0.0 { 0.0 } else { f32::from(row.fine[block][i]) * scale.fine };
                out.push(f32::from(row.coarse[block][i]) * scale.coarse + fine);
            }
        }
        (out, row.scales.iter().filter(|scale| scale.fine != 0.0).count())
    }

    #[test]
    fn neighbours_of_an_outlier_keep_their_values() {
        let mut stream = Stream::new(9);
        let mut x: Vec<f32> = (0..1024).map(|_| stream.normal()).collect();
        let (found, twice) = round_trip(&x);
        let error = |x: &[f32], found: &[f32]| {
            let difference: f32 = x.iter().zip(found).map(|(a, b)| (a - b).powi(2)).sum();
            (difference / 1024.0).sqrt()
        };
        assert_eq!(twice, 0);
        assert!(error(&x, &found) < 0.01, "{}", error(&x, &found));
        let (found, twice) = round_trip_of(&x, true);
        assert_eq!(twice, 16);
        // Cut rests of the largest values are most of it.
        assert!(error(&x, &found) < 0.004, "{}", error(&x, &found));
        for channel in [70, 500, 501] {
            x[channel] *= 1000.0;
        }
        let (found, twice) = round_trip(&x);
        assert_eq!(twice, 2);
        assert!(error(&x, &found) < 0.015, "{}", error(&x, &found));
        // One in every block: none is larger than the others.
        for block in x.chunks_exact_mut(BLOCK) {
            block[9] = 1000.0;
        }
        let (found, twice) = round_trip(&x);
        assert_eq!(twice, 16);
        assert!(error(&x, &found) < 0.015, "{}", error(&x, &found));
    }

    #[test]
    fn zeros_stay_and_what_is_not_finite_shows() {
        let mut x = vec![0.0; 128];
        x[3] = 2.0;
        assert_eq!(round_trip(&x).0, x);
        x[100] = f32::NAN;
        assert!(round_trip(&x).0[64..].iter().any(|value| value.is_nan()));
        x[100] = f32::INFINITY;
        assert!(round_trip(&x).0[64..].iter().any(|value| !value.is_finite()));
    }
}
