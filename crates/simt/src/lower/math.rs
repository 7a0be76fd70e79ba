//! WGSL's built-in functions, by scalars.

use super::{Frame, Lowering, Refusal};
use crate::code::{Binary, Node, Op, Row, Ternary, Unary};
use naga::{Expression, Handle, MathFunction as M, ScalarKind, TypeInner};
use std::sync::Arc;

impl<'a> Lowering<'a> {
    pub(super) fn math(
        &mut self,
        frame: &mut Frame<'a>,
        fun: M,
        arguments: [Option<Handle<Expression>>; 4],
        out: &mut Vec<Node>,
    ) -> Result<Arc<[Row]>, Refusal> {
        let first = arguments[0].ok_or("a function without arguments")?;
        let kind = self.kind(frame, first)?;
        let mut rows: Vec<Arc<[Row]>> = Vec::new();
        for argument in arguments.into_iter().flatten() {
            rows.push(self.rows_of(frame, argument)?);
        }
        let missing = || format!("{fun:?} of {kind:?} is not implemented");
        let a = rows[0].clone();
        let b = rows.get(1).cloned().unwrap_or_else(|| a.clone());
        let c = rows.get(2).cloned().unwrap_or_else(|| a.clone());
        if let Some(f) = simple(fun, kind) {
            return Ok(self.unary(out, f, &a));
        }
        if let Some(f) = pair(fun, kind) {
            return Ok(self.binary(out, f, &a, &b));
        }
        let float = kind == ScalarKind::Float;
        Ok(match (fun, float) {
            (M::Abs, false) => a,
            (M::Clamp, _) => {
                let low = pair(M::Max, kind).ok_or_else(missing)?;
                let high = pair(M::Min, kind).ok_or_else(missing)?;
                let raised = self.binary(out, low, &a, &b);
                self.binary(out, high, &raised, &c)
            }
            (M::Saturate, true) => {
                let (zero, one) = (self.constant(0), self.constant(1.0f32.to_bits()));
                let raised = self.binary(out, Binary::MaxF, &a, &[zero]);
                self.binary(out, Binary::MinF, &raised, &[one])
            }
            (M::Fract, true) => {
                let floor = self.unary(out, Unary::Floor, &a);
                self.binary(out, Binary::SubF, &a, &floor)
            }
            (M::Radians | M::Degrees, true) => {
                let factor = if fun == M::Radians { 1f32.to_radians() } else { 1f32.to_degrees() };
                let factor = self.constant(factor.to_bits());
                self.binary(out, Binary::MulF, &a, &[factor])
            }
            (M::Step, true) => {
                let (zero, one) = (self.constant(0), self.constant(1.0f32.to_bits()));
                let reached = self.binary(out, Binary::LeF, &a, &b);
                self.ternary(out, Ternary::Select, &reached, &[one], &[zero])
            }
            (M::Mix, true) => {
                let one = self.constant(1.0f32.to_bits());
                let rest = self.binary(out, Binary::SubF, &[one], &c);
                let left = self.binary(out, Binary::MulF, &a, &rest);
                let right = self.binary(out, Binary::MulF, &b, &c);
                self.binary(out, Binary::AddF, &left, &right)
            }
            (M::SmoothStep, true) => {
                let (zero, one) = (self.constant(0), self.constant(1.0f32.to_bits()));
                let (two, three) = (self.constant(2.0f32.to_bits()), self.constant(3.0f32.to_bits()));
                let way = self.binary(out, Binary::SubF, &c, &a);
                let whole = self.binary(out, Binary::SubF, &b, &a);
                let part = self.binary(out, Binary::DivF, &way, &whole);
                let part = self.binary(out, Binary::MaxF, &part, &[zero]);
                let part = self.binary(out, Binary::MinF, &part, &[one]);
                let twice = self.binary(out, Binary::MulF, &part, &[two]);
                let rest = self.binary(out, Binary::SubF, &[three], &twice);
                let square = self.binary(out, Binary::MulF, &part, &part);
                self.binary(out, Binary::MulF, &square, &rest)
            }
            (M::Fma, true) => self.ternary(out, Ternary::Fma, &a, &b, &c),
            (M::Dot, _) => self.dot(out, float, &a, &b),
            (M::Cross, true) => {
                let part = |lowering: &mut Self, out: &mut Vec<Node>, i: usize, j: usize| {
                    let left = lowering.binary(out, Binary::MulF, &[a[i]], &[b[j]]);
                    let right = lowering.binary(out, Binary::MulF, &[a[j]], &[b[i]]);
                    lowering.binary(out, Binary::SubF, &left, &right)[0]
                };
                [(1, 2), (2, 0), (0, 1)].map(|(i, j)| part(self, out, i, j)).into()
            }
            (M::Length | M::Distance | M::Normalize, true) => {
                let line = if fun == M::Distance { self.binary(out, Binary::SubF, &a, &b) } else { a };
                let square = self.dot(out, true, &line, &line);
                let length = self.unary(out, Unary::Sqrt, &square);
                if fun == M::Normalize { self.binary(out, Binary::DivF, &line, &length) } else { length }
            }
            (M::Transpose, true) => {
                let TypeInner::Matrix { columns, rows, .. } = self.type_of(frame, first) else {
                    return Err(missing());
                };
                let (columns, rows) = (*columns as usize, *rows as usize);
                (0..rows)
                    .flat_map(|row| (0..columns).map(move |column| (column, row)))
                    .map(|(column, row)| a[column * rows + row])
                    .collect()
            }
            (M::Outer, true) => {
                let mut product = Vec::new();
                for &column in b.iter() {
                    product.extend_from_slice(&self.binary(out, Binary::MulF, &a, &[column]));
                }
                product.into()
            }
            (M::Ldexp, true) => {
                let power = self.unary(out, Unary::IToF, &b);
                let power = self.unary(out, Unary::Exp2, &power);
                self.binary(out, Binary::MulF, &a, &power)
            }
            (M::ExtractBits, false) => {
                let signed = kind == ScalarKind::Sint;
                let f = if signed { Ternary::ExtractI } else { Ternary::ExtractU };
                self.ternary(out, f, &a, &b, &c)
            }
            (M::Pack2x16float, _) => self.binary(out, Binary::PackHalves, &[a[0]], &[a[1]]),
            (M::Unpack2x16float, _) => [0, 1].map(|half| self.unary(out, Unary::HalfOf(half), &a)[0]).into(),
            (M::Unpack4xU8, _) => [0, 1, 2, 3].map(|byte| self.unary(out, Unary::ByteOf(byte), &a)[0]).into(),
            (M::Unpack4xI8, _) => {
                [0, 1, 2, 3].map(|byte| self.unary(out, Unary::SignedByteOf(byte), &a)[0]).into()
            }
            (M::Unpack4x8unorm, _) => {
                let scale = self.constant(255.0f32.to_bits());
                let bytes = [0, 1, 2, 3].map(|byte| self.unary(out, Unary::ByteOf(byte), &a)[0]);
                let floats = self.unary(out, Unary::UToF, &bytes);
                self.binary(out, Binary::DivF, &floats, &[scale])
            }
            (M::Pack4xU8 | M::Pack4xI8 | M::Pack4xU8Clamp | M::Pack4xI8Clamp, _) => {
                let (low, high) = match fun {
                    M::Pack4xU8Clamp => (Some((Binary::MaxU, 0)), Some((Binary::MinU, 255))),
                    M::Pack4xI8Clamp => (Some((Binary::MaxI, -128i32 as u32)), Some((Binary::MinI, 127))),
                    _ => (None, None),
                };
                let mut bytes = a;
                for (f, limit) in [low, high].into_iter().flatten() {
                    let limit = self.constant(limit);
                    bytes = self.binary(out, f, &bytes, &[limit]);
                }
                let mask = self.constant(255);
                let bytes = self.binary(out, Binary::And, &bytes, &[mask]);
                let mut words = Vec::new();
                for (i, &byte) in bytes.iter().enumerate() {
                    let shift = self.constant(8 * i as u32);
                    words.push(self.binary(out, Binary::Shl, &[byte], &[shift])[0]);
                }
                self.fold(out, Binary::Or, &words)
            }
            _ => return Err(missing()),
        })
    }

    fn ternary(&mut self, out: &mut Vec<Node>, f: Ternary, a: &[Row], b: &[Row], c: &[Row]) -> Arc<[Row]> {
        let to = self.rows(a.len().max(b.len()).max(c.len()) as u32);
        for (i, &to) in to.iter().enumerate() {
            let at = |rows: &[Row]| rows[i.min(rows.len() - 1)];
            self.push(out, Op::Ternary { f, to, a: at(a), b: at(b), c: at(c) });
        }
        to
    }
}

/// Functions of one scalar.
fn simple(fun: M, kind: ScalarKind) -> Option<Unary> {
    use ScalarKind::{Float, Sint, Uint};
    Some(match (fun, kind) {
        (M::Abs, Float) => Unary::AbsF,
        (M::Abs, Sint) => Unary::AbsI,
        (M::Sign, Float) => Unary::SignF,
        (M::Sign, Sint) => Unary::SignI,
        (M::Ceil, Float) => Unary::Ceil,
        (M::Floor, Float) => Unary::Floor,
        (M::Round, Float) => Unary::Round,
        (M::Trunc, Float) => Unary::Trunc,
        (M::Exp, Float) => Unary::Exp,
        (M::Exp2, Float) => Unary::Exp2,
        (M::Log, Float) => Unary::Log,
        (M::Log2, Float) => Unary::Log2,
        (M::Sqrt, Float) => Unary::Sqrt,
        (M::InverseSqrt, Float) => Unary::InverseSqrt,
        (M::Sin, Float) => Unary::Sin,
        (M::Cos, Float) => Unary::Cos,
        (M::Tan, Float) => Unary::Tan,
        (M::Asin, Float) => Unary::Asin,
        (M::Acos, Float) => Unary::Acos,
        (M::Atan, Float) => Unary::Atan,
        (M::Sinh, Float) => Unary::Sinh,
        (M::Cosh, Float) => Unary::Cosh,
        (M::Tanh, Float) => Unary::Tanh,
        (M::QuantizeToF16, Float) => Unary::ToF16,
        (M::CountOneBits, Sint | Uint) => Unary::CountOnes,
        (M::CountLeadingZeros, Sint | Uint) => Unary::LeadingZeros,
        (M::CountTrailingZeros, Sint | Uint) => Unary::TrailingZeros,
        (M::ReverseBits, Sint | Uint) => Unary::ReverseBits,
        (M::FirstLeadingBit, Uint) => Unary::FirstLeadingU,
        (M::FirstLeadingBit, Sint) => Unary::FirstLeadingI,
        (M::FirstTrailingBit, Sint | Uint) => Unary::FirstTrailing,
        _ => return None,
    })
}

/// Functions of two scalars.
fn pair(fun: M, kind: ScalarKind) -> Option<Binary> {
    use ScalarKind::{Float, Sint, Uint};
    Some(match (fun, kind) {
        (M::Min, Float) => Binary::MinF,
        (M::Min, Uint) => Binary::MinU,
        (M::Min, Sint) => Binary::MinI,
        (M::Max, Float) => Binary::MaxF,
        (M::Max, Uint) => Binary::MaxU,
        (M::Max, Sint) => Binary::MaxI,
        (M::Pow, Float) => Binary::Pow,
        (M::Atan2, Float) => Binary::Atan2,
        (M::Dot4I8Packed, _) => Binary::DotI8,
        (M::Dot4U8Packed, _) => Binary::DotU8,
        _ => return None,
    })
}
