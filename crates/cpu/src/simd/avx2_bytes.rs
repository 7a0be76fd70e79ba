//! Products of bytes with AVX2: the sign of a weight goes over to the activation, since `vpmaddubsw` wants one
//! unsigned side. Levels and activations within ±127 keep its sums of two products within 16 bits.

use super::avx2::Avx2;
use super::bytes::{Bytes, looked_up};
use crate::kernels::Fast;
use crate::lines::Line;
use crate::program::Kernels;
use std::arch::x86_64::*;

impl Avx2 {
    /// The kernels with fast arithmetic, if this processor can run them.
    pub fn fast_kernels() -> Option<&'static dyn Kernels> {
        Avx2::kernels().is_some().then_some(&Fast::<Avx2, true>(Avx2(())))
    }
}

/// Products of eight rows.
#[inline(always)]
fn dot_half(sums: __m256i, weights: __m256i, x: __m256i) -> __m256i {
    // SAFETY: AVX2, called with an `Avx2` at hand only.
    unsafe {
        let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(x, weights));
        _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }
}

impl Bytes for Avx2 {
    type Sums = (__m256i, __m256i);
    type Weights = (__m256i, __m256i);
    type Levels = __m256i;
    type Map = [f32; 256];

    #[inline(always)]
    fn run_bytes<R>(self, work: impl FnOnce() -> R) -> R {
        super::Lanes::run(self, work)
    }

    #[inline(always)]
    fn levels(self, levels: &[i8; 16]) -> __m256i {
        // SAFETY: AVX2; `levels` is 16 readable bytes. So in all methods below.
        unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(levels.as_ptr().cast())) }
    }

    #[inline(always)]
    fn unpack(self, codes: &Line, levels: __m256i) -> (Self::Weights, Self::Weights) {
        let (first, second) = self.take(codes);
        // SAFETY: AVX2.
        unsafe {
            let mask = _mm256_set1_epi8(15);
            let low = |codes| _mm256_shuffle_epi8(levels, _mm256_and_si256(codes, mask));
            let high = |codes| {
                let codes = _mm256_and_si256(_mm256_srli_epi16::<4>(codes), mask);
                _mm256_shuffle_epi8(levels, codes)
            };
            ((low(first), low(second)), (high(first), high(second)))
        }
    }

    #[inline(always)]
    fn signed(self, bytes: &Line) -> Self::Weights {
        self.take(bytes)
    }

    #[inline(always)]
    fn put(self, weights: Self::Weights, to: &mut Line) {
        let (first, second) = to.0.split_at_mut(32);
        // SAFETY: AVX2; each half is 32 writable bytes.
        unsafe {
            _mm256_storeu_si256(first.as_mut_ptr().cast(), weights.0);
            _mm256_storeu_si256(second.as_mut_ptr().cast(), weights.1);
        }
    }

    #[inline(always)]
    fn take(self, from: &Line) -> Self::Weights {
        let (first, second) = from.0.split_at(32);
        // SAFETY: AVX2; each half is 32 readable bytes.
        unsafe { (_mm256_loadu_si256(first.as_ptr().cast()), _mm256_loadu_si256(second.as_ptr().cast())) }
    }

    #[inline(always)]
    fn start(self, _: i32) -> Self::Sums {
        self.nothing()
    }

    #[inline(always)]
    fn dot(self, sums: Self::Sums, weights: Self::Weights, x: [i8; 4]) -> Self::Sums {
        // SAFETY: AVX2.
        let x = unsafe { _mm256_set1_epi32(i32::from_le_bytes(x.map(|x| x as u8))) };
        (dot_half(sums.0, weights.0, x), dot_half(sums.1, weights.1, x))
    }

    #[inline(always)]
    fn join(self, a: Self::Sums, b: Self::Sums) -> Self::Sums {
        // SAFETY: AVX2.
        unsafe { (_mm256_add_epi32(a.0, b.0), _mm256_add_epi32(a.1, b.1)) }
    }

    #[inline(always)]
    fn nothing(self) -> Self::Sums {
        // SAFETY: AVX2.
        unsafe { (_mm256_setzero_si256(), _mm256_setzero_si256()) }
    }

    #[inline(always)]
    fn floats(self, sums: Self::Sums) -> Self::V {
        // SAFETY: AVX2.
        unsafe { (_mm256_cvtepi32_ps(sums.0), _mm256_cvtepi32_ps(sums.1)) }
    }

    #[inline(always)]
    fn map(self, values: &[f32; 256]) -> [f32; 256] {
        *values
    }

    #[inline(always)]
    fn scales(self, map: &[f32; 256], codes: &[u8; 64]) -> [Self::V; 4] {
        let values = looked_up(map, codes);
        let load = |block: usize| super::Lanes::load(self, &values[block]);
        [load(0), load(1), load(2), load(3)]
    }

    #[inline(always)]
    fn choose(self, change: Self::V, at: f32, before: Self::V, after: Self::V) -> Self::V {
        // SAFETY: AVX.
        let half = |change, before, after| unsafe {
            _mm256_blendv_ps(before, after, _mm256_cmp_ps::<_CMP_LE_OQ>(change, _mm256_set1_ps(at)))
        };
        (half(change.0, before.0, after.0), half(change.1, before.1, after.1))
    }
}
