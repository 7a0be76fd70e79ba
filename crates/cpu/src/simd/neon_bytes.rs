//! Products of bytes with NEON: by the dot product, which Arm has had since 2018 (Armv8.2 with `dotprod`), and on older
//! processors by widening products.

use super::bytes::{Bytes, looked_up};
use super::neon::Neon;
use crate::kernels::Fast;
use crate::lines::Line;
use crate::program::Kernels;
use std::arch::aarch64::*;
use std::arch::asm;

impl Neon {
    /// The kernels with fast arithmetic, if this processor can run them.
    pub fn fast_kernels() -> Option<&'static dyn Kernels> {
        Neon::kernels()?;
        if std::arch::is_aarch64_feature_detected!("dotprod") {
            return Some(&Fast::<Neon<true>, true>(Neon(())));
        }
        Some(&Fast::<Neon<false>, true>(Neon(())))
    }
}

#[target_feature(enable = "neon,dotprod")]
fn with_dot_product<R>(work: impl FnOnce() -> R) -> R {
    work()
}

/// Four sums of four products each. The intrinsic is not stable yet.
#[inline(always)]
fn sdot(mut sums: int32x4_t, weights: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: called inside `with_dot_product` only; touches nothing but its registers.
    unsafe {
        asm!("sdot {sums:v}.4s, {weights:v}.16b, {x:v}.16b", sums = inout(vreg) sums, weights = in(vreg) weights,
            x = in(vreg) x, options(pure, nomem, nostack, preserves_flags));
    }
    sums
}

/// The same in four instructions: no sum of two products exceeds 2 * 127², which 16 bits hold.
#[inline(always)]
fn widening(sums: int32x4_t, weights: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: called with a `Neon` at hand only.
    unsafe {
        let low = vmull_s8(vget_low_s8(weights), vget_low_s8(x));
        vpadalq_s16(sums, vpaddq_s16(low, vmull_high_s8(weights, x)))
    }
}

impl<const DOT: bool> Bytes for Neon<DOT> {
    type Sums = [int32x4_t; 4];
    type Weights = [int8x16_t; 4];
    type Levels = int8x16_t;
    type Map = [f32; 256];

    #[inline(always)]
    fn run_bytes<R>(self, work: impl FnOnce() -> R) -> R {
        if DOT {
            // SAFETY: `fast_kernels` has found the features; no other kernels call this.
            return unsafe { with_dot_product(work) };
        }
        super::Lanes::run(self, work)
    }

    #[inline(always)]
    fn levels(self, levels: &[i8; 16]) -> int8x16_t {
        // SAFETY: NEON; 16 readable bytes.
        unsafe { vld1q_s8(levels.as_ptr()) }
    }

    #[inline(always)]
    fn unpack(self, codes: &Line, levels: int8x16_t) -> (Self::Weights, Self::Weights) {
        let (mut low, mut high) = ([levels; 4], [levels; 4]);
        for (i, bytes) in codes.0.as_chunks::<16>().0.iter().enumerate() {
            // SAFETY: NEON; 16 readable bytes.
            unsafe {
                let bytes = vld1q_u8(bytes.as_ptr());
                low[i] = vqtbl1q_s8(levels, vandq_u8(bytes, vdupq_n_u8(15)));
                high[i] = vqtbl1q_s8(levels, vshrq_n_u8::<4>(bytes));
            }
        }
        (low, high)
    }

    #[inline(always)]
    fn signed(self, bytes: &Line) -> Self::Weights {
        self.take(bytes)
    }

    #[inline(always)]
    fn put(self, weights: Self::Weights, to: &mut Line) {
        for (weights, to) in weights.iter().zip(to.0.as_chunks_mut::<16>().0) {
            // SAFETY: NEON; 16 writable bytes.
            unsafe { vst1q_u8(to.as_mut_ptr(), vreinterpretq_u8_s8(*weights)) }
        }
    }

    #[inline(always)]
    fn take(self, from: &Line) -> Self::Weights {
        // SAFETY: NEON; 64 readable bytes.
        unsafe {
            let at = from.0.as_ptr().cast::<i8>();
            [vld1q_s8(at), vld1q_s8(at.add(16)), vld1q_s8(at.add(32)), vld1q_s8(at.add(48))]
        }
    }

    #[inline(always)]
    fn start(self, _: i32) -> Self::Sums {
        self.nothing()
    }

    #[inline(always)]
    fn dot(self, mut sums: Self::Sums, weights: Self::Weights, x: [i8; 4]) -> Self::Sums {
        // SAFETY: NEON.
        let x = unsafe { vreinterpretq_s8_s32(vdupq_n_s32(i32::from_le_bytes(x.map(|x| x as u8)))) };
        for (sum, weights) in sums.iter_mut().zip(weights) {
            *sum = if DOT { sdot(*sum, weights, x) } else { widening(*sum, weights, x) };
        }
        sums
    }

    #[inline(always)]
    fn join(self, a: Self::Sums, b: Self::Sums) -> Self::Sums {
        // SAFETY: NEON.
        unsafe {
            [vaddq_s32(a[0], b[0]), vaddq_s32(a[1], b[1]), vaddq_s32(a[2], b[2]), vaddq_s32(a[3], b[3])]
        }
    }

    #[inline(always)]
    fn nothing(self) -> Self::Sums {
        // SAFETY: NEON.
        unsafe { [vdupq_n_s32(0); 4] }
    }

    #[inline(always)]
    fn floats(self, sums: Self::Sums) -> Self::V {
        // SAFETY: NEON.
        unsafe {
            [vcvtq_f32_s32(sums[0]), vcvtq_f32_s32(sums[1]), vcvtq_f32_s32(sums[2]), vcvtq_f32_s32(sums[3])]
        }
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
        let mut chosen = before;
        for quarter in 0..4 {
            // SAFETY: NEON.
            unsafe {
                let later = vcleq_f32(change[quarter], vdupq_n_f32(at));
                chosen[quarter] = vbslq_f32(later, after[quarter], before[quarter]);
            }
        }
        chosen
    }
}
