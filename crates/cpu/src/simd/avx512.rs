//! AVX-512: sixteen floats are one register, and a codebook is another.

use super::Lanes;
use crate::kernels::tile::{self, Panel};
use crate::program::Kernels;
use std::arch::x86_64::*;

/// Proof that the processor has AVX-512 F, VL, BW and DQ. Made by [`Avx512::kernels`] alone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512(pub(crate) ());

impl Avx512 {
    /// The kernels, if this processor can run them.
    pub fn kernels() -> Option<&'static dyn Kernels> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("fma");
        has.then_some(&crate::kernels::Fast::<Avx512, false>(Avx512(())))
    }
}

// Intrinsics here are AVX-512F; without VL, compilers leave half of the registers unused.
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,fma")]
fn enabled<R>(work: impl FnOnce() -> R) -> R {
    work()
}

impl Lanes for Avx512 {
    type V = __m512;
    type Book = __m512;
    const GROUP: usize = 4;

    #[inline(always)]
    fn run<R>(self, work: impl FnOnce() -> R) -> R {
        // SAFETY: `self` proves that the processor has all of `enabled`'s features.
        unsafe { enabled(work) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::V {
        // SAFETY: `self` proves AVX-512F, here and in all methods below.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    fn load(self, from: &[f32; 16]) -> Self::V {
        // SAFETY: AVX-512F; `from` is 64 readable bytes.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, v: Self::V, to: &mut [f32; 16]) {
        // SAFETY: AVX-512F; `to` is 64 writable bytes.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
    }

    #[inline(always)]
    fn load_f32(self, from: &[u8; 64]) -> Self::V {
        // SAFETY: AVX-512F; `from` is 64 readable bytes, and the load needs no alignment.
        unsafe { _mm512_loadu_ps(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn load_f16(self, from: &[u8; 32]) -> Self::V {
        // SAFETY: AVX-512F; `from` is 32 readable bytes.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u8; 32]) -> Self::V {
        // SAFETY: AVX-512F; `from` is 32 readable bytes.
        unsafe {
            let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
        }
    }

    #[inline(always)]
    fn load_i8(self, from: &[u8; 16]) -> Self::V {
        // SAFETY: AVX-512F; `from` is 16 readable bytes.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast()))) }
    }

    #[inline(always)]
    fn load_nibbles(self, from: &[u8; 16]) -> (Self::V, Self::V) {
        // SAFETY: AVX-512F; `from` is 16 readable bytes.
        unsafe {
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.as_ptr().cast()));
            let low = _mm512_and_si512(bytes, _mm512_set1_epi32(15));
            let high = _mm512_srli_epi32::<4>(bytes);
            let eight = _mm512_set1_epi32(8);
            let convert = |codes| _mm512_cvtepi32_ps(_mm512_sub_epi32(codes, eight));
            (convert(low), convert(high))
        }
    }

    #[inline(always)]
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: AVX-512F.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: AVX-512F.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: AVX-512F.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        // SAFETY: AVX-512F.
        unsafe { _mm512_reduce_add_ps(v) }
    }

    #[inline(always)]
    fn sums(self, v: &[Self::V; 16]) -> [f32; 16] {
        // Halves of two vectors side by side are added, so that each step leaves half as many vectors; the order is
        // such that they come out in theirs.
        // SAFETY: AVX-512F.
        unsafe {
            let mut eight = [self.splat(0.0); 8];
            for (i, sum) in eight.iter_mut().enumerate() {
                // Twos of a four change places in the third step, fours in the second.
                let at = [0, 2, 1, 3][i % 4] + 8 * (i / 4);
                let (a, b) = (v[at], v[at + 4]);
                let low = _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b);
                *sum = _mm512_add_ps(low, _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b));
            }
            let mut four = [self.splat(0.0); 4];
            for (i, sum) in four.iter_mut().enumerate() {
                let (a, b) = (eight[i], eight[i + 4]);
                let low = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
                *sum = _mm512_add_ps(low, _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b));
            }
            let mut two = [self.splat(0.0); 2];
            for (i, sum) in two.iter_mut().enumerate() {
                let (a, b) = (four[i], four[i + 2]);
                let low = _mm512_shuffle_ps::<0b01_00_01_00>(a, b);
                *sum = _mm512_add_ps(low, _mm512_shuffle_ps::<0b11_10_11_10>(a, b));
            }
            let even = _mm512_shuffle_ps::<0b10_00_10_00>(two[0], two[1]);
            let sums = _mm512_add_ps(even, _mm512_shuffle_ps::<0b11_01_11_01>(two[0], two[1]));
            let mut to = [0.0; 16];
            self.store(sums, &mut to);
            to
        }
    }

    #[inline(always)]
    fn book(self, code: &[f32; 16], scale: f32) -> Self::Book {
        self.mul(self.load(code), self.splat(scale))
    }

    #[inline(always)]
    fn look_up(self, codes: &[u8; 16], book: Self::Book) -> (Self::V, Self::V) {
        // SAFETY: AVX-512F; `codes` is 16 readable bytes. The permutation takes its index from the low
        // four bits of each lane, so that nothing has to be masked.
        unsafe {
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(codes.as_ptr().cast()));
            let even = _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(bytes), book);
            (even, _mm512_permutexvar_ps(bytes, book))
        }
    }

    #[inline(always)]
    fn multiply(self, panel: Panel<'_>, y: &mut [f32]) {
        // 16 sums, 4 weights and an activation in 32 registers.
        tile::multiply::<Self, 4, 4>(self, panel, y);
    }
}
