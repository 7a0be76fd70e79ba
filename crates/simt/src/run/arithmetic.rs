//! Arithmetic on rows, as WGSL defines it: integers wrap, conversions saturate, division by zero gives
//! the dividend.

use crate::code::{Binary, Ternary, Unary};
use half::f16;

#[inline(always)]
fn each(to: &mut [u32], a: &[u32], f: impl Fn(u32) -> u32) {
    for (to, &a) in to.iter_mut().zip(a) {
        *to = f(a);
    }
}

#[inline(always)]
fn float(to: &mut [u32], a: &[u32], f: impl Fn(f32) -> f32) {
    each(to, a, |a| f(f32::from_bits(a)).to_bits());
}

#[inline(always)]
fn pairs(to: &mut [u32], a: &[u32], b: &[u32], f: impl Fn(u32, u32) -> u32) {
    for ((to, &a), &b) in to.iter_mut().zip(a).zip(b) {
        *to = f(a, b);
    }
}

#[inline(always)]
fn floats(to: &mut [u32], a: &[u32], b: &[u32], f: impl Fn(f32, f32) -> f32) {
    pairs(to, a, b, |a, b| f(f32::from_bits(a), f32::from_bits(b)).to_bits());
}

#[inline(always)]
fn compare(to: &mut [u32], a: &[u32], b: &[u32], f: impl Fn(f32, f32) -> bool) {
    pairs(to, a, b, |a, b| f(f32::from_bits(a), f32::from_bits(b)).into());
}

#[inline(always)]
fn signed(to: &mut [u32], a: &[u32], b: &[u32], f: impl Fn(i32, i32) -> i32) {
    pairs(to, a, b, |a, b| f(a as i32, b as i32) as u32);
}

fn sign(a: f32) -> f32 {
    if a > 0.0 {
        1.0
    } else if a < 0.0 {
        -1.0
    } else {
        0.0
    }
}

/// `to = f(a)`, lane by lane.
pub(super) fn unary(f: Unary, to: &mut [u32], a: &[u32]) {
    match f {
        Unary::Copy => to.copy_from_slice(a),
        Unary::NegF => each(to, a, |a| a ^ 0x8000_0000),
        Unary::NegI => each(to, a, u32::wrapping_neg),
        Unary::NotBool => each(to, a, |a| a ^ 1),
        Unary::NotBits => each(to, a, |a| !a),
        Unary::AbsF => each(to, a, |a| a & 0x7fff_ffff),
        Unary::AbsI => each(to, a, |a| (a as i32).unsigned_abs()),
        Unary::SignF => float(to, a, sign),
        Unary::SignI => each(to, a, |a| (a as i32).signum() as u32),
        Unary::Ceil => float(to, a, f32::ceil),
        Unary::Floor => float(to, a, f32::floor),
        Unary::Round => float(to, a, f32::round_ties_even),
        Unary::Trunc => float(to, a, f32::trunc),
        Unary::Exp => float(to, a, f32::exp),
        Unary::Exp2 => float(to, a, f32::exp2),
        Unary::Log => float(to, a, f32::ln),
        Unary::Log2 => float(to, a, f32::log2),
        Unary::Sqrt => float(to, a, f32::sqrt),
        Unary::InverseSqrt => float(to, a, |a| 1.0 / a.sqrt()),
        Unary::Sin => float(to, a, f32::sin),
        Unary::Cos => float(to, a, f32::cos),
        Unary::Tan => float(to, a, f32::tan),
        Unary::Asin => float(to, a, f32::asin),
        Unary::Acos => float(to, a, f32::acos),
        Unary::Atan => float(to, a, f32::atan),
        Unary::Sinh => float(to, a, f32::sinh),
        Unary::Cosh => float(to, a, f32::cosh),
        Unary::Tanh => float(to, a, f32::tanh),
        Unary::FToU => each(to, a, |a| f32::from_bits(a) as u32),
        Unary::FToI => each(to, a, |a| f32::from_bits(a) as i32 as u32),
        Unary::UToF => each(to, a, |a| (a as f32).to_bits()),
        Unary::IToF => each(to, a, |a| (a as i32 as f32).to_bits()),
        Unary::FToBool => each(to, a, |a| (f32::from_bits(a) != 0.0).into()),
        Unary::IToBool => each(to, a, |a| (a != 0).into()),
        Unary::BoolToF => each(to, a, |a| f32::from(a as u8).to_bits()),
        Unary::ToF16 => float(to, a, |a| f16::from_f32(a).to_f32()),
        Unary::HalfOf(half) => {
            each(to, a, |a| f16::from_bits((a >> (16 * half)) as u16).to_f32().to_bits());
        }
        Unary::ByteOf(byte) => each(to, a, |a| a >> (8 * byte) & 255),
        Unary::SignedByteOf(byte) => each(to, a, |a| (a >> (8 * byte)) as i8 as u32),
        Unary::CountOnes => each(to, a, u32::count_ones),
        Unary::LeadingZeros => each(to, a, u32::leading_zeros),
        Unary::TrailingZeros => each(to, a, u32::trailing_zeros),
        Unary::ReverseBits => each(to, a, u32::reverse_bits),
        // No bit at all is the largest word.
        Unary::FirstLeadingU => each(to, a, |a| 31u32.wrapping_sub(a.leading_zeros())),
        Unary::FirstLeadingI => {
            let spread = |a: u32| if (a as i32) < 0 { !a } else { a };
            each(to, a, |a| 31u32.wrapping_sub(spread(a).leading_zeros()));
        }
        Unary::FirstTrailing => each(to, a, |a| if a == 0 { u32::MAX } else { a.trailing_zeros() }),
        Unary::IsNan => each(to, a, |a| f32::from_bits(a).is_nan().into()),
        Unary::IsInf => each(to, a, |a| f32::from_bits(a).is_infinite().into()),
    }
}

/// `to = f(a, b)`, lane by lane.
pub(super) fn binary(f: Binary, to: &mut [u32], a: &[u32], b: &[u32]) {
    match f {
        Binary::AddF => floats(to, a, b, |a, b| a + b),
        Binary::SubF => floats(to, a, b, |a, b| a - b),
        Binary::MulF => floats(to, a, b, |a, b| a * b),
        Binary::DivF => floats(to, a, b, |a, b| a / b),
        Binary::RemF => floats(to, a, b, |a, b| a % b),
        Binary::AddI => pairs(to, a, b, u32::wrapping_add),
        Binary::SubI => pairs(to, a, b, u32::wrapping_sub),
        Binary::MulI => pairs(to, a, b, u32::wrapping_mul),
        Binary::DivU => pairs(to, a, b, |a, b| a.checked_div(b).unwrap_or(a)),
        Binary::RemU => pairs(to, a, b, |a, b| a.checked_rem(b).unwrap_or(0)),
        Binary::DivI => signed(to, a, b, |a, b| a.checked_div(b).unwrap_or(a)),
        Binary::RemI => signed(to, a, b, |a, b| a.checked_rem(b).unwrap_or(0)),
        Binary::And => pairs(to, a, b, |a, b| a & b),
        Binary::Or => pairs(to, a, b, |a, b| a | b),
        Binary::Xor => pairs(to, a, b, |a, b| a ^ b),
        Binary::Shl => pairs(to, a, b, u32::wrapping_shl),
        Binary::ShrU => pairs(to, a, b, u32::wrapping_shr),
        Binary::ShrI => pairs(to, a, b, |a, b| (a as i32).wrapping_shr(b) as u32),
        Binary::EqF => compare(to, a, b, |a, b| a == b),
        Binary::NeF => compare(to, a, b, |a, b| a != b),
        Binary::LtF => compare(to, a, b, |a, b| a < b),
        Binary::LeF => compare(to, a, b, |a, b| a <= b),
        Binary::EqI => pairs(to, a, b, |a, b| (a == b).into()),
        Binary::NeI => pairs(to, a, b, |a, b| (a != b).into()),
        Binary::LtU => pairs(to, a, b, |a, b| (a < b).into()),
        Binary::LeU => pairs(to, a, b, |a, b| (a <= b).into()),
        Binary::LtI => pairs(to, a, b, |a, b| ((a as i32) < b as i32).into()),
        Binary::LeI => pairs(to, a, b, |a, b| ((a as i32) <= b as i32).into()),
        Binary::MinF => floats(to, a, b, f32::min),
        Binary::MaxF => floats(to, a, b, f32::max),
        Binary::MinU => pairs(to, a, b, u32::min),
        Binary::MaxU => pairs(to, a, b, u32::max),
        Binary::MinI => signed(to, a, b, i32::min),
        Binary::MaxI => signed(to, a, b, i32::max),
        Binary::Pow => floats(to, a, b, f32::powf),
        Binary::Atan2 => floats(to, a, b, f32::atan2),
        Binary::PackHalves => {
            let bits = |a: u32| u32::from(f16::from_f32(f32::from_bits(a)).to_bits());
            pairs(to, a, b, |a, b| bits(a) | bits(b) << 16);
        }
        Binary::DotI8 => pairs(to, a, b, |a, b| {
            let byte = |word: u32, i: u32| i32::from((word >> (8 * i)) as i8);
            (0..4).map(|i| byte(a, i) * byte(b, i)).sum::<i32>() as u32
        }),
        Binary::DotU8 => {
            pairs(to, a, b, |a, b| (0..4).map(|i| (a >> (8 * i) & 255) * (b >> (8 * i) & 255)).sum::<u32>())
        }
    }
}

/// `f(a, b)` of single words.
pub(super) fn combine(f: Binary, a: u32, b: u32) -> u32 {
    let mut to = [0];
    binary(f, &mut to, &[a], &[b]);
    to[0]
}

/// `to = f(a, b, c)`, lane by lane.
pub(super) fn ternary(f: Ternary, to: &mut [u32], a: &[u32], b: &[u32], c: &[u32]) {
    let triples = to.iter_mut().zip(a).zip(b).zip(c);
    match f {
        Ternary::Select => triples.for_each(|(((to, &a), &b), &c)| *to = if a != 0 { b } else { c }),
        Ternary::Fma => triples.for_each(|(((to, &a), &b), &c)| {
            *to = f32::from_bits(a).mul_add(f32::from_bits(b), f32::from_bits(c)).to_bits();
        }),
        Ternary::ExtractU => triples.for_each(|(((to, &a), &b), &c)| {
            let first = b.min(32);
            let count = c.min(32 - first);
            *to = if count == 0 { 0 } else { a << (32 - first - count) >> (32 - count) };
        }),
        Ternary::ExtractI => triples.for_each(|(((to, &a), &b), &c)| {
            let first = b.min(32);
            let count = c.min(32 - first);
            *to = if count == 0 { 0 } else { ((a << (32 - first - count)) as i32 >> (32 - count)) as u32 };
        }),
    }
}

/// Whether `b` is a divisor or a shift that `f` must not have.
pub(super) fn is_broken(f: Binary, b: u32) -> bool {
    match f {
        Binary::DivU | Binary::RemU | Binary::DivI | Binary::RemI => b == 0,
        Binary::Shl | Binary::ShrU | Binary::ShrI => b >= 32,
        _ => false,
    }
}

/// Whether [`is_broken`] can hold at all.
pub(super) fn can_break(f: Binary) -> bool {
    is_broken(f, 0) || is_broken(f, 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_are_those_of_wgsl() {
        let word = |value: f32| value.to_bits();
        for (f, a, b, wanted) in [
            (Binary::DivU, 7, 0, 7),
            (Binary::RemU, 7, 0, 0),
            (Binary::DivI, i32::MIN as u32, -1i32 as u32, i32::MIN as u32),
            (Binary::RemI, i32::MIN as u32, -1i32 as u32, 0),
            (Binary::RemI, -7i32 as u32, 3, -1i32 as u32),
            (Binary::ShrI, -8i32 as u32, 1, -4i32 as u32),
            (Binary::RemF, word(-7.5), word(2.0), word(-1.5)),
            (Binary::DotI8, 0xff02_0304, 0x0101_0101, 8),
            (Binary::DotU8, 0xff02_0304, 0x0101_0101, 264),
            (Binary::PackHalves, word(1.0), word(-2.0), 0xc000_3c00),
        ] {
            assert_eq!(combine(f, a, b), wanted, "{f:?}");
        }
        let one = |f, a| {
            let mut to = [0];
            unary(f, &mut to, &[a]);
            to[0]
        };
        assert_eq!(one(Unary::FToU, word(-1.0)), 0);
        assert_eq!(one(Unary::FToU, word(1e20)), u32::MAX);
        assert_eq!(one(Unary::Round, word(2.5)), word(2.0));
        assert_eq!(one(Unary::FirstLeadingU, 0), u32::MAX);
        assert_eq!(one(Unary::FirstLeadingI, -1i32 as u32), u32::MAX);
        assert_eq!(one(Unary::FirstLeadingI, 0x40), 6);
        let three = |f, a, b, c| {
            let mut to = [0];
            ternary(f, &mut to, &[a], &[b], &[c]);
            to[0]
        };
        assert_eq!(three(Ternary::ExtractU, 0xabcd_1234, 8, 8), 0x12);
        assert_eq!(three(Ternary::ExtractI, 0x0000_ff00, 8, 8), u32::MAX);
        assert_eq!(three(Ternary::ExtractU, 0xabcd_1234, 0, 32), 0xabcd_1234);
    }
}
