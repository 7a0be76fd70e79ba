//! The element types that tensors come in and go out as.

use bytemuck::Pod;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

mod sealed {
    /// Bit patterns of magnitudes. Keeps [`Element`](super::Element) to the three types whose
    /// rounding is specified here.
    pub trait Magnitude: Sized {
        /// An unsigned integer as wide as the element.
        type Bits: Ord + Copy + Default;

        /// The bits without the sign. They order as magnitudes do, NaN above infinity.
        fn magnitude(self) -> Self::Bits;

        /// The non-negative element with these bits.
        fn from_magnitude(bits: Self::Bits) -> Self;
    }

    macro_rules! magnitude {
        ($element:ty, $bits:ty) => {
            impl Magnitude for $element {
                type Bits = $bits;

                #[inline(always)]
                fn magnitude(self) -> $bits {
                    self.to_bits() & (<$bits>::MAX >> 1)
                }

                #[inline(always)]
                fn from_magnitude(bits: $bits) -> Self {
                    Self::from_bits(bits)
                }
            }
        };
    }
    magnitude!(f32, u32);
    magnitude!(half::f16, u16);
    magnitude!(half::bf16, u16);
}

/// An element type of unquantized tensors: `f32`, [`f16`](half::f16) or [`bf16`](half::bf16).
pub trait Element: sealed::Magnitude + Pod + Send + Sync {
    /// The exact value in single precision. Compiles to branch-free code, so loops vectorize.
    fn widen(self) -> f32;

    /// Rounds once, to nearest even; beyond the largest finite value comes infinity.
    fn narrow(value: f32) -> Self;

    /// [`Element::narrow`] of sixteen values: all that a block can have.
    fn narrow_all(values: [f32; 16]) -> [Self; 16];

    /// The largest magnitude in single precision; NaN if there is any NaN, 0 for no values.
    #[inline(always)]
    fn largest_magnitude(values: &[Self]) -> f32 {
        let mut largest = Self::Bits::default();
        for value in values {
            largest = largest.max(value.magnitude());
        }
        let largest = Self::from_magnitude(largest).widen();
        if largest.is_nan() { f32::NAN } else { largest }
    }

    /// Reads one element from exactly `size_of::<Self>()` little-endian bytes.
    fn from_le(bytes: &[u8]) -> Self;
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        value
    }

    #[inline(always)]
    fn narrow_all(values: [f32; 16]) -> [Self; 16] {
        values
    }

    #[inline(always)]
    fn from_le(bytes: &[u8]) -> Self {
        f32::from_bits(u32::from_le(bytemuck::pod_read_unaligned(bytes)))
    }
}

impl Element for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        // Exponent and mantissa shifted into place leave an exponent bias of 15 where 127 is
        // due: multiplying by 2^112 mends it, subnormals included. Infinity and NaN keep an
        // exponent of all ones instead.
        let bits = u32::from(self.to_bits());
        let magnitude = (bits & 0x7fff) << 13;
        let finite = (f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23)).to_bits();
        let special = magnitude | 0x7f80_0000;
        let chosen = if magnitude >= 0x7c00 << 13 { special } else { finite };
        f32::from_bits(chosen | ((bits & 0x8000) << 16))
    }

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        f16::from_f32(value)
    }

    #[inline(always)]
    fn narrow_all(values: [f32; 16]) -> [Self; 16] {
        let mut narrow = [f16::ZERO; 16];
        narrow.convert_from_f32_slice(&values);
        narrow
    }

    #[inline(always)]
    fn from_le(bytes: &[u8]) -> Self {
        f16::from_bits(u16::from_le(bytemuck::pod_read_unaligned(bytes)))
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        bf16::from_f32(value)
    }

    #[inline(always)]
    fn narrow_all(values: [f32; 16]) -> [Self; 16] {
        let mut narrow = [bf16::ZERO; 16];
        narrow.convert_from_f32_slice(&values);
        narrow
    }

    #[inline(always)]
    fn from_le(bytes: &[u8]) -> Self {
        bf16::from_bits(u16::from_le(bytemuck::pod_read_unaligned(bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_widens_as_the_half_crate_says() {
        for bits in 0..=u16::MAX {
            let (f, b) = (f16::from_bits(bits), bf16::from_bits(bits));
            if f.is_nan() {
                assert!(f.widen().is_nan(), "{bits:04x}");
            } else {
                assert_eq!(f.widen().to_bits(), f.to_f32().to_bits(), "{bits:04x}");
            }
            if b.is_nan() {
                assert!(b.widen().is_nan(), "{bits:04x}");
            } else {
                assert_eq!(b.widen().to_bits(), b.to_f32().to_bits(), "{bits:04x}");
            }
        }
    }
}
