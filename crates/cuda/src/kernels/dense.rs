//! Weights that are not quantized.

use super::Quad;
use super::variant::Elements;
use cubecl::prelude::*;

/// Columns `4 q .. 4 q + 4` of a dense group.
#[cube]
pub(crate) fn dense_quad(
    codes: &Array<Quad<u32>>,
    group: usize,
    #[comptime] q: usize,
    #[comptime] elements: Elements,
) -> Quad<f32> {
    let mut weight = Quad::<f32>::empty();
    if comptime!(elements == Elements::F32) {
        let words = codes[group * 8 + q];
        #[unroll]
        for i in 0..4usize {
            weight[i] = f32::reinterpret(words[i]);
        }
    } else {
        let words = codes[group * 4 + q / 2];
        #[unroll]
        for i in 0..4usize {
            let word = words[comptime!(q % 2 * 2 + i / 2)];
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
fn widen_f16(bits: u32) -> f32 {
    let magnitude = bits & 0x7FFFu32;
    let sign = (bits & 0x8000u32) << 16u32;
    let subnormal = f32::cast_from(magnitude) * 5.960_464_5e-8f32;
    // 112 is the difference of the exponents' biases; infinities and NaNs keep all ones.
    let rebias = select(magnitude >= 0x7C00u32, 224u32 << 23u32, 112u32 << 23u32);
    let normal = f32::reinterpret((magnitude << 13u32) + rebias);
    let positive = select(magnitude < 0x400u32, subnormal, normal);
    select(sign == 0u32, positive, -positive)
}
