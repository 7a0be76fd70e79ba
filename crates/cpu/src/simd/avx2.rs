//! AVX2 with FMA and F16C: sixteen floats are two registers.

use super::Lanes;
use crate::kernels::tile::{self, Panel};
use crate::program::Kernels;
use std::arch::x86_64::*;

/// Proof that the processor has AVX2, FMA and F16C. Made by [`Avx2::kernels`] alone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2(pub(super) ());

impl Avx2 {
    /// The kernels, if this processor can run them.
    pub fn kernels() -> Option<&'static dyn Kernels> {
        let has = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has.then_some(&crate::kernels::Fast::<Avx2, false>(Avx2(())))
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn enabled<R>(work: impl FnOnce() -> R) -> R {
    work()
}

/// Converts eight codes, less 8, to floats.
#[inline(always)]
fn less_eight(codes: __m256i) -> __m256 {
    // SAFETY: called with an `Avx2` at hand only.
    unsafe { _mm256_cvtepi32_ps(_mm256_sub_epi32(codes, _mm256_set1_epi32(8))) }
}

/// Looks eight codes up: the permutation takes three bits of each, the fourth chooses the half.
#[inline(always)]
fn choose(codes: __m256i, book: (__m256, __m256)) -> __m256 {
    // SAFETY: called with an `Avx2` at hand only.
    unsafe {
        let low = _mm256_permutevar8x32_ps(book.0, codes);
        let high = _mm256_permutevar8x32_ps(book.1, codes);
        _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(codes)))
    }
}

impl Lanes for Avx2 {
    type V = (__m256, __m256);
    type Book = (__m256, __m256);
    const GROUP: usize = 2;

    #[inline(always)]
    fn run<R>(self, work: impl FnOnce() -> R) -> R {
        // SAFETY: `self` proves that the processor has AVX2, FMA and F16C.
        unsafe { enabled(work) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::V {
        // SAFETY: `self` proves AVX2, FMA and F16C, here and in all methods below.
        unsafe { (_mm256_set1_ps(value), _mm256_set1_ps(value)) }
    }

    #[inline(always)]
    fn load(self, from: &[f32; 16]) -> Self::V {
        let (low, high) = from.split_at(8);
        // SAFETY: AVX; each half is 32 readable bytes.
        unsafe { (_mm256_loadu_ps(low.as_ptr()), _mm256_loadu_ps(high.as_ptr())) }
    }

    #[inline(always)]
    fn store(self, v: Self::V, to: &mut [f32; 16]) {
        let (low, high) = to.split_at_mut(8);
        // SAFETY: AVX; each half is 32 writable bytes.
        unsafe {
            _mm256_storeu_ps(low.as_mut_ptr(), v.0);
            _mm256_storeu_ps(high.as_mut_ptr(), v.1);
        }
    }

    #[inline(always)]
    fn load_f32(self, from: &[u8; 64]) -> Self::V {
        let (low, high) = from.split_at(32);
        // SAFETY: AVX; each half is 32 readable bytes, and the loads need no alignment.
        unsafe { (_mm256_loadu_ps(low.as_ptr().cast()), _mm256_loadu_ps(high.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_f16(self, from: &[u8; 32]) -> Self::V {
        let (low, high) = from.split_at(16);
        // SAFETY: F16C; each half is 16 readable bytes.
        unsafe {
            let widen = |half: &[u8]| _mm256_cvtph_ps(_mm_loadu_si128(half.as_ptr().cast()));
            (widen(low), widen(high))
        }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u8; 32]) -> Self::V {
        let (low, high) = from.split_at(16);
        // SAFETY: AVX2; each half is 16 readable bytes.
        unsafe {
            let widen = |half: &[u8]| {
                let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(half.as_ptr().cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
            };
            (widen(low), widen(high))
        }
    }

    #[inline(always)]
    fn load_i8(self, from: &[u8; 16]) -> Self::V {
        // SAFETY: AVX2; `from` is 16 readable bytes.
        unsafe {
            let bytes = _mm_loadu_si128(from.as_ptr().cast());
            let low = _mm256_cvtepi8_epi32(bytes);
            let high = _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(bytes));
            (_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
        }
    }

    #[inline(always)]
    fn load_nibbles(self, from: &[u8; 16]) -> (Self::V, Self::V) {
        // SAFETY: AVX2; `from` is 16 readable bytes.
        unsafe {
            let bytes = _mm_loadu_si128(from.as_ptr().cast());
            let first = _mm256_cvtepu8_epi32(bytes);
            let second = _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(bytes));
            let mask = _mm256_set1_epi32(15);
            let low = (_mm256_and_si256(first, mask), _mm256_and_si256(second, mask));
            let high = (_mm256_srli_epi32::<4>(first), _mm256_srli_epi32::<4>(second));
            ((less_eight(low.0), less_eight(low.1)), (less_eight(high.0), less_eight(high.1)))
        }
    }

    #[inline(always)]
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: FMA.
        unsafe { (_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1)) }
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: AVX.
        unsafe { (_mm256_add_ps(a.0, b.0), _mm256_add_ps(a.1, b.1)) }
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: AVX.
        unsafe { (_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1)) }
    }

    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        // SAFETY: AVX.
        unsafe {
            let eight = _mm256_add_ps(v.0, v.1);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    fn sums(self, v: &[Self::V; 16]) -> [f32; 16] {
        // Halves of two vectors side by side are added, so that each step leaves half as many vectors; the order is
        // such that they come out in theirs.
        // SAFETY: AVX.
        unsafe {
            let half = |v: Self::V| _mm256_add_ps(v.0, v.1);
            let mut eight = [_mm256_setzero_ps(); 8];
            for (i, sum) in eight.iter_mut().enumerate() {
                // Of the sums 8 j + 4 k + l, which come out as [j][k][l].
                let at = 8 * (i % 2) + [0, 2, 1, 3][i / 2];
                let (a, b) = (half(v[at]), half(v[at + 4]));
                let low = _mm256_permute2f128_ps::<0x20>(a, b);
                *sum = _mm256_add_ps(low, _mm256_permute2f128_ps::<0x31>(a, b));
            }
            let mut four = [_mm256_setzero_ps(); 4];
            for (i, sum) in four.iter_mut().enumerate() {
                let (a, b) = (eight[i], eight[i + 4]);
                let low = _mm256_shuffle_ps::<0b01_00_01_00>(a, b);
                *sum = _mm256_add_ps(low, _mm256_shuffle_ps::<0b11_10_11_10>(a, b));
            }
            let mut to = [[0.0; 8]; 2];
            for (i, to) in to.iter_mut().enumerate() {
                let (a, b) = (four[i], four[i + 2]);
                let even = _mm256_shuffle_ps::<0b10_00_10_00>(a, b);
                let sums = _mm256_add_ps(even, _mm256_shuffle_ps::<0b11_01_11_01>(a, b));
                _mm256_storeu_ps(to.as_mut_ptr(), sums);
            }
            let mut sums = [0.0; 16];
            sums.copy_from_slice(to.as_flattened());
            sums
        }
    }

    #[inline(always)]
    fn book(self, code: &[f32; 16], scale: f32) -> Self::Book {
        self.mul(self.load(code), self.splat(scale))
    }

    #[inline(always)]
    fn look_up(self, codes: &[u8; 16], book: Self::Book) -> (Self::V, Self::V) {
        // SAFETY: AVX2; `codes` is 16 readable bytes.
        unsafe {
            let bytes = _mm_loadu_si128(codes.as_ptr().cast());
            let first = _mm256_cvtepu8_epi32(bytes);
            let second = _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(bytes));
            let shifted = (_mm256_srli_epi32::<4>(first), _mm256_srli_epi32::<4>(second));
            let even = (choose(shifted.0, book), choose(shifted.1, book));
            (even, (choose(first, book), choose(second, book)))
        }
    }

    #[inline(always)]
    fn multiply(self, panel: Panel<'_>, y: &mut [f32]) {
        // 6 sums of two registers each, and what is multiplied, in 16 registers.
        tile::multiply::<Self, 2, 3>(self, panel, y);
    }
}
