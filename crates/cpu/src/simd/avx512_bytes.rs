//! Products of bytes with AVX-512's VNNI, looked up with VBMI: Intel since Ice Lake, AMD since Zen 4.

use super::Lanes;
use super::avx512::Avx512;
use super::bytes::Bytes;
use crate::kernels::Fast;
use crate::lines::{LANES, Line};
use crate::program::Kernels;
use std::arch::x86_64::*;

/// `vpdpbusd` multiplies unsigned bytes with signed ones: weights are held this much higher.
const RAISED: i32 = 128;

impl Avx512 {
    /// The kernels with fast arithmetic, if this processor can run them.
    pub fn fast_kernels() -> Option<&'static dyn Kernels> {
        let has = is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512vbmi");
        // SAFETY of all methods below: whoever uses `Bytes` came here.
        (Avx512::kernels().is_some() && has).then_some(&Fast::<Avx512, true>(Avx512(())))
    }
}

/// The values of 8-bit codes in f16, times a power of two. To look up all four bytes of each would take time that memory
/// does not leave, for bits that activations in bytes do not have.
pub(crate) struct Halves {
    /// Byte `b` of value `64 q + i` is byte `i` of `[b][q]`.
    planes: [[__m512i; 4]; 2],
    /// The inverse of that power.
    unit: f32,
}

#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512vnni,avx512vbmi,fma")]
fn enabled<R>(work: impl FnOnce() -> R) -> R {
    work()
}

impl Bytes for Avx512 {
    type Sums = __m512i;
    type Weights = __m512i;
    type Levels = __m512i;
    type Map = Halves;

    #[inline(always)]
    fn run_bytes<R>(self, work: impl FnOnce() -> R) -> R {
        // SAFETY: `fast_kernels` has found all of `enabled`'s features; no other kernels call this.
        unsafe { enabled(work) }
    }

    #[inline(always)]
    fn levels(self, levels: &[i8; 16]) -> __m512i {
        let raised = levels.map(|level| (i32::from(level) + RAISED) as u8);
        // SAFETY: AVX-512F; `raised` is 16 readable bytes.
        unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(raised.as_ptr().cast())) }
    }

    #[inline(always)]
    fn unpack(self, codes: &Line, levels: __m512i) -> (__m512i, __m512i) {
        // SAFETY: AVX-512 BW and VBMI; a line is 64 aligned bytes. The permutation reads six bits of an index, and
        // the levels stand there four times, so that what is above the low nibble chooses among equals.
        unsafe {
            let bytes = _mm512_load_si512(codes.0.as_ptr().cast());
            let high = _mm512_srli_epi16::<4>(bytes);
            (_mm512_permutexvar_epi8(bytes, levels), _mm512_permutexvar_epi8(high, levels))
        }
    }

    #[inline(always)]
    fn signed(self, bytes: &Line) -> __m512i {
        // SAFETY: AVX-512F. Adding 128 to a byte turns its highest bit.
        unsafe { _mm512_xor_si512(self.take(bytes), _mm512_set1_epi8(RAISED as u8 as i8)) }
    }

    #[inline(always)]
    fn put(self, weights: __m512i, to: &mut Line) {
        // SAFETY: AVX-512F; a line is 64 aligned bytes.
        unsafe { _mm512_store_si512(to.0.as_mut_ptr().cast(), weights) }
    }

    #[inline(always)]
    fn take(self, from: &Line) -> __m512i {
        // SAFETY: AVX-512F; a line is 64 aligned bytes.
        unsafe { _mm512_load_si512(from.0.as_ptr().cast()) }
    }

    #[inline(always)]
    fn start(self, total: i32) -> __m512i {
        // SAFETY: AVX-512F.
        unsafe { _mm512_set1_epi32(-RAISED * total) }
    }

    #[inline(always)]
    fn dot(self, sums: __m512i, weights: __m512i, x: [i8; 4]) -> __m512i {
        let word = i32::from_le_bytes(x.map(|x| x as u8));
        // SAFETY: AVX-512 VNNI.
        unsafe { _mm512_dpbusd_epi32(sums, weights, _mm512_set1_epi32(word)) }
    }

    #[inline(always)]
    fn join(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: AVX-512F.
        unsafe { _mm512_add_epi32(a, b) }
    }

    #[inline(always)]
    fn nothing(self) -> __m512i {
        // SAFETY: AVX-512F.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    fn floats(self, sums: __m512i) -> __m512 {
        // SAFETY: AVX-512F.
        unsafe { _mm512_cvtepi32_ps(sums) }
    }

    #[inline(always)]
    fn map(self, values: &[f32; 256]) -> Halves {
        // This runs for every step of every thread.
        let mut largest = [f32::MIN_POSITIVE; 16];
        for sixteen in values.as_chunks::<16>().0 {
            for (largest, value) in largest.iter_mut().zip(sixteen) {
                *largest = largest.max(value.abs());
            }
        }
        let largest = largest.iter().fold(f32::MIN_POSITIVE, |max, value| max.max(*value));
        // The power of two that takes the largest value to between 2^13 and 2^14: what is 2^-28 of it is still a normal
        // number. Powers are bounded so that both they and their inverses are finite.
        let power = ((141 + 127 - (largest.to_bits() >> 23) as i32 - 1).clamp(1, 253)) as u32;
        let scale = self.splat(f32::from_bits(power << 23));
        let mut planes = [[Line::default(); 4]; 2];
        for (at, sixteen) in values.as_chunks::<16>().0.iter().enumerate() {
            let to = at % 4 * 16;
            // SAFETY: AVX-512 F, BW and VL; 64 readable bytes, and 16 writable ones in each line.
            unsafe {
                let scaled = _mm512_mul_ps(self.load(sixteen), scale);
                let halves = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(scaled);
                let low = _mm256_cvtepi16_epi8(halves);
                let high = _mm256_cvtepi16_epi8(_mm256_srli_epi16::<8>(halves));
                for (plane, bytes) in planes.iter_mut().zip([low, high]) {
                    _mm_storeu_si128(plane[at / 4].0[to..to + 16].as_mut_ptr().cast(), bytes);
                }
            }
        }
        let take = |[a, b, c, d]: &[Line; 4]| [self.take(a), self.take(b), self.take(c), self.take(d)];
        Halves { planes: [take(&planes[0]), take(&planes[1])], unit: f32::from_bits((254 - power) << 23) }
    }

    #[inline(always)]
    fn unit(self, map: &Halves) -> f32 {
        map.unit
    }

    #[inline(always)]
    fn scales(self, map: &Halves, codes: &[u8; 64]) -> [__m512; 4] {
        // A gather is microcode here, which stops everything else; permutations of bytes are not. Both planes of the
        // map are looked up for all 64 codes, whose order is such that putting the bytes of each value together leaves
        // blocks.
        // SAFETY: AVX-512 BW and VBMI; 64 readable bytes.
        unsafe {
            let codes = _mm512_loadu_si512(codes.as_ptr().cast());
            let upper = _mm512_movepi8_mask(codes);
            let plane = |plane: &[__m512i; 4]| {
                let low = _mm512_permutex2var_epi8(plane[0], codes, plane[1]);
                let high = _mm512_permutex2var_epi8(plane[2], codes, plane[3]);
                _mm512_mask_blend_epi8(upper, low, high)
            };
            let bytes = [plane(&map.planes[0]), plane(&map.planes[1])];
            let first = _mm512_unpacklo_epi8(bytes[0], bytes[1]);
            let second = _mm512_unpackhi_epi8(bytes[0], bytes[1]);
            [
                _mm512_cvtph_ps(_mm512_castsi512_si256(first)),
                _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(first)),
                _mm512_cvtph_ps(_mm512_castsi512_si256(second)),
                _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(second)),
            ]
        }
    }

    #[inline(always)]
    fn pick(self, from: &[f32; LANES], at: &[u32; LANES]) -> __m512 {
        // SAFETY: AVX-512F; 64 readable bytes.
        unsafe { _mm512_permutexvar_ps(_mm512_loadu_si512(at.as_ptr().cast()), self.load(from)) }
    }

    #[inline(always)]
    fn choose(self, change: __m512, at: f32, before: __m512, after: __m512) -> __m512 {
        // SAFETY: AVX-512F.
        unsafe {
            let later = _mm512_cmp_ps_mask::<_CMP_LE_OQ>(change, self.splat(at));
            _mm512_mask_blend_ps(later, before, after)
        }
    }
}
