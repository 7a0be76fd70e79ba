//! Weights that are not quantized.

use super::Quad;
use super::codebook::word_of;
use super::variant::Elements;
use cubecl::prelude::*;

/// Quad `at` of a dense matrix whose rows are padded to whole quads: four elements.
#[cube]
pub(crate) fn dense_quad(codes: &Array<Quad<u32>>, at: usize, #[comptime] elements: Elements) -> Quad<f32> {
    let mut weight = Quad::<f32>::empty();
    if comptime!(elements == Elements::F32) {
        let words = codes[at];
        #[unroll]
        for i in 0..4usize {
            weight[i] = f32::reinterpret(words[i]);
        }
    } else {
        let words = codes[at / 2];
        #[unroll]
        for i in 0..4usize {
            let word = word_of(words, at % 2 * 2 + comptime!(i / 2));
            let bits = (word >> comptime!(i as u32 % 2 * 16)) & 0xFFFFu32;
            if comptime!(elements == Elements::Bf16) {
                weight[i] = f32::reinterpret(bits << 16u32);
            } else {
                weight[i] = widen_f16(bits);
            }
        }
    }
    weight
}

/// A binary16 number as f32, by its bits: not every runtime has the type. Subnormal ones go through an
/// integer, since GPUs may flush them.
#[cube]
pub(crate) fn widen_f16(bits: u32) -> f32 {
    let magnitude = bits & 0x7FFFu32;
    let sign = (bits & 0x8000u32) << 16u32;
    let subnormal = f32::cast_from(magnitude) * 5.960_464_5e-8f32;
    // 112 is the difference of the exponents' biases; infinities and NaNs keep all ones.
    let rebias = select(magnitude >= 0x7C00u32, 224u32 << 23u32, 112u32 << 23u32);
    let normal = f32::reinterpret((magnitude << 13u32) + rebias);
    let positive = select(magnitude < 0x400u32, subnormal, normal);
    select(sign == 0u32, positive, -positive)
}

/// The nearest binary16 number's bits, ties to even.
#[cube]
pub(crate) fn narrow_f16(value: f32) -> u32 {
    let bits = u32::reinterpret(value);
    let sign = (bits >> 16u32) & 0x8000u32;
    let magnitude = bits & 0x7FFF_FFFFu32;
    let special = select(magnitude > 0x7F80_0000u32, 0x7E00u32, 0x7C00u32);
    // Below the least normal half: in steps of 2^-24.
    let small = min(f32::reinterpret(magnitude), 1.0f32) * 16_777_216.0f32;
    let subnormal = u32::cast_from(f32::round(select(magnitude < 0x3880_0000u32, small, 0.0f32)));
    // Wraps below the least normal half, where it is not used.
    let shifted = magnitude + 0xFFFu32 + ((magnitude >> 13u32) & 1u32);
    let normal = (max(shifted, 0x3800_0000u32) - 0x3800_0000u32) >> 13u32;
    let finite = select(magnitude < 0x3880_0000u32, subnormal, normal);
    sign | select(magnitude >= 0x4780_0000u32, special, finite)
}
