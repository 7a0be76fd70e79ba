//! Plain arrays, for the compiler to vectorize with what every processor has.

use super::Lanes;
use crate::kernels::tile::{self, Panel};
use crate::program::Kernels;
use std::array::from_fn;

/// No instructions beyond the target's own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Portable;

impl Portable {
    /// The kernels over arrays.
    pub fn kernels() -> Option<&'static dyn Kernels> {
        Some(&crate::kernels::Fast::<Portable, false>(Portable))
    }
}

/// f16 to f32 by integers: exact for subnormals, infinities and NaN too, and free of branches.
#[inline(always)]
pub(crate) fn widen_f16(bits: u16) -> f32 {
    // 2^112 moves the exponent's bias from 15 to 127.
    const REBIAS: f32 = f32::from_bits((112 + 127) << 23);
    let magnitude = u32::from(bits & 0x7fff);
    let finite = (f32::from_bits(magnitude << 13) * REBIAS).to_bits();
    let special = (magnitude << 13) | 0x7f80_0000;
    let value = if magnitude >= 0x7c00 { special } else { finite };
    f32::from_bits(value | u32::from(bits & 0x8000) << 16)
}

impl Lanes for Portable {
    type V = [f32; 16];
    type Book = [f32; 16];
    const GROUP: usize = 1;

    #[inline(always)]
    fn run<R>(self, work: impl FnOnce() -> R) -> R {
        work()
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::V {
        [value; 16]
    }

    #[inline(always)]
    fn load(self, from: &[f32; 16]) -> Self::V {
        *from
    }

    #[inline(always)]
    fn store(self, v: Self::V, to: &mut [f32; 16]) {
        *to = v;
    }

    #[inline(always)]
    fn load_f32(self, from: &[u8; 64]) -> Self::V {
        from_fn(|i| f32::from_le_bytes([from[4 * i], from[4 * i + 1], from[4 * i + 2], from[4 * i + 3]]))
    }

    #[inline(always)]
    fn load_f16(self, from: &[u8; 32]) -> Self::V {
        from_fn(|i| widen_f16(u16::from_le_bytes([from[2 * i], from[2 * i + 1]])))
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u8; 32]) -> Self::V {
        from_fn(|i| f32::from_bits(u32::from(u16::from_le_bytes([from[2 * i], from[2 * i + 1]])) << 16))
    }

    #[inline(always)]
    fn load_i8(self, from: &[u8; 16]) -> Self::V {
        from_fn(|i| f32::from(from[i] as i8))
    }

    #[inline(always)]
    fn load_nibbles(self, from: &[u8; 16]) -> (Self::V, Self::V) {
        (from_fn(|i| f32::from(from[i] & 15) - 8.0), from_fn(|i| f32::from(from[i] >> 4) - 8.0))
    }

    #[inline(always)]
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // Not `f32::mul_add`: without an instruction for it, that is a call into the math library.
        from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        let eight: [f32; 8] = from_fn(|i| v[i] + v[i + 8]);
        let four: [f32; 4] = from_fn(|i| eight[i] + eight[i + 4]);
        (four[0] + four[2]) + (four[1] + four[3])
    }

    #[inline(always)]
    fn book(self, code: &[f32; 16], scale: f32) -> Self::Book {
        code.map(|value| value * scale)
    }

    #[inline(always)]
    fn look_up(self, codes: &[u8; 16], book: Self::Book) -> (Self::V, Self::V) {
        (from_fn(|i| book[usize::from(codes[i] >> 4)]), from_fn(|i| book[usize::from(codes[i] & 15)]))
    }

    #[inline(always)]
    fn multiply(self, panel: Panel<'_>, y: &mut [f32]) {
        tile::multiply::<Self, 2, 2>(self, panel, y);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    #[test]
    fn every_f16_widens_exactly() {
        for bits in 0..=u16::MAX {
            let wanted = f16::from_bits(bits).to_f32();
            let found = widen_f16(bits);
            assert!(found == wanted || (found.is_nan() && wanted.is_nan()), "{bits:#06x}: {found}");
            assert_eq!(found.is_sign_negative(), wanted.is_sign_negative());
        }
    }
}
