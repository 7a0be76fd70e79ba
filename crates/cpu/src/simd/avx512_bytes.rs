//! Products of bytes with AVX-512's VNNI, looked up with VBMI: Intel since Ice Lake, AMD since Zen 4.

use super::avx512::Avx512;
use super::bytes::Bytes;
use crate::kernels::Fast;
use crate::lines::Line;
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

#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512vnni,avx512vbmi,fma")]
fn enabled<R>(work: impl FnOnce() -> R) -> R {
    work()
}

impl Bytes for Avx512 {
    type Sums = __m512i;
    type Weights = __m512i;
    type Levels = __m512i;
    /// Byte `b` of value `64 q + i` is byte `i` of `[b][q]`.
    type Map = [[__m512i; 4]; 4];

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
    fn map(self, values: &[f32; 256]) -> Self::Map {
        let mut planes = [[Line::default(); 4]; 4];
        for (at, sixteen) in values.as_chunks::<16>().0.iter().enumerate() {
            // SAFETY: AVX-512F; 64 readable bytes, and 16 writable ones for each plane.
            unsafe {
                let bits = _mm512_loadu_si512(sixteen.as_ptr().cast());
                let mut put = |plane: usize, bits: __m512i| {
                    let to = &mut planes[plane][at / 4].0[at % 4 * 16..at % 4 * 16 + 16];
                    _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(bits));
                };
                put(0, bits);
                put(1, _mm512_srli_epi32::<8>(bits));
                put(2, _mm512_srli_epi32::<16>(bits));
                put(3, _mm512_srli_epi32::<24>(bits));
            }
        }
        let mut map = [[self.nothing(); 4]; 4];
        for (map, planes) in map.as_flattened_mut().iter_mut().zip(planes.as_flattened()) {
            *map = self.take(planes);
        }
        map
    }

    #[inline(always)]
    fn scales(self, map: &Self::Map, codes: &[u8; 64]) -> [__m512; 4] {
        // A gather is microcode here, which stops everything else; permutations of bytes are not. Each plane of the
        // map is looked up for all 64 codes, then the four bytes of each value are put together.
        // SAFETY: AVX-512 BW and VBMI; 64 readable bytes.
        unsafe {
            let codes = _mm512_loadu_si512(codes.as_ptr().cast());
            let upper = _mm512_movepi8_mask(codes);
            let plane = |plane: &[__m512i; 4]| {
                let low = _mm512_permutex2var_epi8(plane[0], codes, plane[1]);
                let high = _mm512_permutex2var_epi8(plane[2], codes, plane[3]);
                _mm512_mask_blend_epi8(upper, low, high)
            };
            let bytes = [plane(&map[0]), plane(&map[1]), plane(&map[2]), plane(&map[3])];
            let first = [_mm512_unpacklo_epi8(bytes[0], bytes[1]), _mm512_unpackhi_epi8(bytes[0], bytes[1])];
            let second = [_mm512_unpacklo_epi8(bytes[2], bytes[3]), _mm512_unpackhi_epi8(bytes[2], bytes[3])];
            // Lane `l` of `quarters[i]` is values `4 i ..` of block `l`.
            let quarters = [
                _mm512_unpacklo_epi16(first[0], second[0]),
                _mm512_unpackhi_epi16(first[0], second[0]),
                _mm512_unpacklo_epi16(first[1], second[1]),
                _mm512_unpackhi_epi16(first[1], second[1]),
            ];
            // A transposition of 4 by 4 lanes.
            let a = _mm512_shuffle_i32x4::<0x44>(quarters[0], quarters[1]);
            let b = _mm512_shuffle_i32x4::<0xee>(quarters[0], quarters[1]);
            let c = _mm512_shuffle_i32x4::<0x44>(quarters[2], quarters[3]);
            let d = _mm512_shuffle_i32x4::<0xee>(quarters[2], quarters[3]);
            [
                _mm512_castsi512_ps(_mm512_shuffle_i32x4::<0x88>(a, c)),
                _mm512_castsi512_ps(_mm512_shuffle_i32x4::<0xdd>(a, c)),
                _mm512_castsi512_ps(_mm512_shuffle_i32x4::<0x88>(b, d)),
                _mm512_castsi512_ps(_mm512_shuffle_i32x4::<0xdd>(b, d)),
            ]
        }
    }
}
