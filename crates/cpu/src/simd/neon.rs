//! NEON: sixteen floats are four registers.

use super::{Lanes, portable::Portable};
use crate::kernels::tile::{self, Panel};
use crate::program::Kernels;
use std::arch::aarch64::*;
use std::array::from_fn;

/// Proof that the processor has NEON, and with `DOT` the dot product of bytes. Made by [`Neon::kernels`] and
/// [`Neon::fast_kernels`] alone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Neon<const DOT: bool = false>(pub(super) ());

impl Neon {
    /// The kernels, if this processor can run them.
    pub fn kernels() -> Option<&'static dyn Kernels> {
        std::arch::is_aarch64_feature_detected!("neon")
            .then_some(&crate::kernels::Fast::<Neon, false>(Neon(())))
    }
}

#[target_feature(enable = "neon")]
fn enabled<R>(work: impl FnOnce() -> R) -> R {
    work()
}

/// A codebook, byte by byte: `planes[b]` holds byte `b` of each of the sixteen floats, so that one table
/// look-up of sixteen codes yields byte `b` of sixteen results.
#[derive(Clone, Copy)]
pub(crate) struct Planes([uint8x16_t; 4]);

/// Sixteen floats from the four bytes of each.
#[inline(always)]
fn gather(codes: uint8x16_t, planes: [uint8x16_t; 4]) -> [float32x4_t; 4] {
    // SAFETY: called with a `Neon` at hand only.
    unsafe {
        let bytes = planes.map(|plane| vqtbl1q_u8(plane, codes));
        // Lower and upper halves of each float, then the floats.
        let lower = [vzip1q_u8(bytes[0], bytes[1]), vzip2q_u8(bytes[0], bytes[1])];
        let upper = [vzip1q_u8(bytes[2], bytes[3]), vzip2q_u8(bytes[2], bytes[3])];
        from_fn(|i| {
            let low = vreinterpretq_u16_u8(lower[i / 2]);
            let high = vreinterpretq_u16_u8(upper[i / 2]);
            let floats = if i % 2 == 0 { vzip1q_u16(low, high) } else { vzip2q_u16(low, high) };
            vreinterpretq_f32_u16(floats)
        })
    }
}

/// Signed bytes to floats.
#[inline(always)]
fn convert(bytes: int8x16_t) -> [float32x4_t; 4] {
    // SAFETY: called with a `Neon` at hand only.
    unsafe {
        let words = [vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes)];
        from_fn(|i| {
            let word = words[i / 2];
            let long = if i % 2 == 0 { vmovl_s16(vget_low_s16(word)) } else { vmovl_high_s16(word) };
            vcvtq_f32_s32(long)
        })
    }
}

impl<const DOT: bool> Lanes for Neon<DOT> {
    type V = [float32x4_t; 4];
    type Book = Planes;
    const GROUP: usize = 2;

    #[inline(always)]
    fn run<R>(self, work: impl FnOnce() -> R) -> R {
        // SAFETY: `self` proves that the processor has NEON.
        unsafe { enabled(work) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::V {
        // SAFETY: `self` proves NEON, here and in all methods below.
        [unsafe { vdupq_n_f32(value) }; 4]
    }

    #[inline(always)]
    fn load(self, from: &[f32; 16]) -> Self::V {
        // SAFETY: NEON; floats `4i..4i + 4` of sixteen are readable.
        from_fn(|i| unsafe { vld1q_f32(from.as_ptr().add(4 * i)) })
    }

    #[inline(always)]
    fn store(self, v: Self::V, to: &mut [f32; 16]) {
        for (i, v) in v.into_iter().enumerate() {
            // SAFETY: NEON; floats `4i..4i + 4` of sixteen are writable.
            unsafe { vst1q_f32(to.as_mut_ptr().add(4 * i), v) };
        }
    }

    #[inline(always)]
    fn load_f32(self, from: &[u8; 64]) -> Self::V {
        // SAFETY: NEON; bytes `16i..16i + 16` of 64 are readable, and the load needs no alignment.
        from_fn(|i| unsafe { vreinterpretq_f32_u8(vld1q_u8(from.as_ptr().add(16 * i))) })
    }

    #[inline(always)]
    fn load_f16(self, from: &[u8; 32]) -> Self::V {
        // Integer arithmetic that the compiler vectorizes; the instruction needs a type that Rust has not
        // stabilized.
        self.load(&Portable.load_f16(from))
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u8; 32]) -> Self::V {
        // SAFETY: NEON; bytes `8i..8i + 8` of 32 are readable.
        from_fn(|i| unsafe {
            let halves = vreinterpret_u16_u8(vld1_u8(from.as_ptr().add(8 * i)));
            vreinterpretq_f32_u32(vshll_n_u16::<16>(halves))
        })
    }

    #[inline(always)]
    fn load_i8(self, from: &[u8; 16]) -> Self::V {
        // SAFETY: NEON; `from` is 16 readable bytes.
        convert(unsafe { vld1q_s8(from.as_ptr().cast()) })
    }

    #[inline(always)]
    fn load_nibbles(self, from: &[u8; 16]) -> (Self::V, Self::V) {
        // SAFETY: NEON; `from` is 16 readable bytes.
        unsafe {
            let bytes = vld1q_u8(from.as_ptr());
            let less_eight = |codes| vsubq_s8(vreinterpretq_s8_u8(codes), vdupq_n_s8(8));
            let low = less_eight(vandq_u8(bytes, vdupq_n_u8(15)));
            (convert(low), convert(less_eight(vshrq_n_u8::<4>(bytes))))
        }
    }

    #[inline(always)]
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: NEON.
        from_fn(|i| unsafe { vfmaq_f32(c[i], a[i], b[i]) })
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: NEON.
        from_fn(|i| unsafe { vaddq_f32(a[i], b[i]) })
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: NEON.
        from_fn(|i| unsafe { vmulq_f32(a[i], b[i]) })
    }

    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        // SAFETY: NEON.
        unsafe { vaddvq_f32(vaddq_f32(vaddq_f32(v[0], v[2]), vaddq_f32(v[1], v[3]))) }
    }

    #[inline(always)]
    fn sums(self, v: &[Self::V; 16]) -> [f32; 16] {
        let mut sums = [0.0; 16];
        for (sums, v) in sums.as_chunks_mut::<4>().0.iter_mut().zip(v.as_chunks::<4>().0) {
            // SAFETY: NEON; 16 writable bytes.
            unsafe {
                let four = v.map(|v| vaddq_f32(vaddq_f32(v[0], v[2]), vaddq_f32(v[1], v[3])));
                let two = [vpaddq_f32(four[0], four[1]), vpaddq_f32(four[2], four[3])];
                vst1q_f32(sums.as_mut_ptr(), vpaddq_f32(two[0], two[1]));
            }
        }
        sums
    }

    #[inline(always)]
    fn book(self, code: &[f32; 16], scale: f32) -> Self::Book {
        let scaled = self.mul(self.load(code), self.splat(scale));
        // SAFETY: NEON.
        unsafe {
            let bytes = scaled.map(|four| vreinterpretq_u8_f32(four));
            // The even bytes are bytes 0 and 2 of each float in turn; their even bytes are bytes 0.
            let even = [vuzp1q_u8(bytes[0], bytes[1]), vuzp1q_u8(bytes[2], bytes[3])];
            let odd = [vuzp2q_u8(bytes[0], bytes[1]), vuzp2q_u8(bytes[2], bytes[3])];
            Planes([
                vuzp1q_u8(even[0], even[1]),
                vuzp1q_u8(odd[0], odd[1]),
                vuzp2q_u8(even[0], even[1]),
                vuzp2q_u8(odd[0], odd[1]),
            ])
        }
    }

    #[inline(always)]
    fn look_up(self, codes: &[u8; 16], book: Self::Book) -> (Self::V, Self::V) {
        // SAFETY: NEON; `codes` is 16 readable bytes.
        let (high, low) = unsafe {
            let bytes = vld1q_u8(codes.as_ptr());
            (vshrq_n_u8::<4>(bytes), vandq_u8(bytes, vdupq_n_u8(15)))
        };
        (gather(high, book.0), gather(low, book.0))
    }

    #[inline(always)]
    fn multiply(self, panel: Panel<'_>, y: &mut [f32]) {
        // 4 sums of four registers each, and what is multiplied, in 32 registers.
        tile::multiply::<Self, 2, 2>(self, panel, y);
    }
}
