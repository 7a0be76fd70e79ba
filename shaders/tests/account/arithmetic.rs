//! Operators and functions on numbers, as WGSL defines them as far as the shaders use them.

use super::value::{Number, Scalar, Value};
use naga::{BinaryOperator, MathFunction, RelationalFunction, UnaryOperator};

pub fn unary(op: UnaryOperator, value: Value) -> Value {
    value.map(&mut |scalar| {
        let number = match (op, scalar.number) {
            (UnaryOperator::Negate, Number::F32(x)) => Number::F32(-x),
            (UnaryOperator::Negate, Number::I32(x)) => Number::I32(x.wrapping_neg()),
            (UnaryOperator::LogicalNot, Number::Bool(x)) => Number::Bool(!x),
            (UnaryOperator::BitwiseNot, Number::U32(x)) => Number::U32(!x),
            (UnaryOperator::BitwiseNot, Number::I32(x)) => Number::I32(!x),
            (op, number) => panic!("{op:?} of {number:?}"),
        };
        Scalar { number, ..scalar }
    })
}

/// Applies `f` to pairs; a scalar goes with every component of the other side.
fn pairs(left: &Value, right: &Value, f: &dyn Fn(Number, Number) -> Number) -> Value {
    match (left, right) {
        (Value::Scalar(a), Value::Scalar(b)) => {
            Value::Scalar(Scalar { number: f(a.number, b.number), origin: a.origin.and(b.origin) })
        }
        (Value::Many(a), Value::Many(b)) => {
            Value::Many(a.iter().zip(b).map(|(a, b)| pairs(a, b, f)).collect())
        }
        (Value::Many(a), b) => Value::Many(a.iter().map(|a| pairs(a, b, f)).collect()),
        (a, Value::Many(b)) => Value::Many(b.iter().map(|b| pairs(a, b, f)).collect()),
        other => panic!("an operator on {other:?}"),
    }
}

fn is_matrix(value: &Value) -> bool {
    matches!(value, Value::Many(columns) if matches!(columns.first(), Some(Value::Many(_))))
}

pub fn transpose(matrix: &Value) -> Value {
    let columns = matrix.many();
    let row = |i: usize| Value::Many(columns.iter().map(|column| column.many()[i].clone()).collect());
    Value::Many((0..columns[0].many().len()).map(row).collect())
}

fn dot(left: &Value, right: &Value) -> Value {
    let products = binary(BinaryOperator::Multiply, left, right);
    let mut terms = products.many().iter().cloned();
    let first = terms.next().expect("vectors have components");
    terms.fold(first, |sum, term| binary(BinaryOperator::Add, &sum, &term))
}

pub fn binary(op: BinaryOperator, left: &Value, right: &Value) -> Value {
    if op == BinaryOperator::Multiply {
        match (is_matrix(left), is_matrix(right)) {
            (true, true) => {
                return Value::Many(right.many().iter().map(|column| binary(op, left, column)).collect());
            }
            (true, false) if matches!(right, Value::Many(_)) => return binary(op, right, &transpose(left)),
            (false, true) if matches!(left, Value::Many(_)) => {
                return Value::Many(right.many().iter().map(|column| dot(left, column)).collect());
            }
            _ => {}
        }
    }
    pairs(left, right, &|a, b| number(op, a, b))
}

fn number(op: BinaryOperator, a: Number, b: Number) -> Number {
    use BinaryOperator as Op;
    use Number::{Bool, F32, I32, U32};
    match (op, a, b) {
        (Op::Add, F32(a), F32(b)) => F32(a + b),
        (Op::Subtract, F32(a), F32(b)) => F32(a - b),
        (Op::Multiply, F32(a), F32(b)) => F32(a * b),
        (Op::Divide, F32(a), F32(b)) => F32(a / b),
        (Op::Add, U32(a), U32(b)) => U32(a.wrapping_add(b)),
        (Op::Subtract, U32(a), U32(b)) => U32(a.wrapping_sub(b)),
        (Op::Multiply, U32(a), U32(b)) => U32(a.wrapping_mul(b)),
        (Op::Divide, U32(a), U32(b)) => U32(a.checked_div(b).unwrap_or(a)),
        (Op::Modulo, U32(a), U32(b)) => U32(a.checked_rem(b).unwrap_or(0)),
        (Op::Add, I32(a), I32(b)) => I32(a.wrapping_add(b)),
        (Op::Subtract, I32(a), I32(b)) => I32(a.wrapping_sub(b)),
        (Op::Multiply, I32(a), I32(b)) => I32(a.wrapping_mul(b)),
        (Op::Equal, a, b) => Bool(a == b),
        (Op::NotEqual, a, b) => Bool(a != b),
        (Op::Less, a, b) => Bool(less(a, b)),
        (Op::Greater, a, b) => Bool(less(b, a)),
        (Op::LessEqual, a, b) => Bool(less(a, b) || a == b),
        (Op::GreaterEqual, a, b) => Bool(less(b, a) || a == b),
        (Op::And | Op::LogicalAnd, Bool(a), Bool(b)) => Bool(a & b),
        (Op::InclusiveOr | Op::LogicalOr, Bool(a), Bool(b)) => Bool(a | b),
        (Op::And, U32(a), U32(b)) => U32(a & b),
        (Op::InclusiveOr, U32(a), U32(b)) => U32(a | b),
        (Op::ExclusiveOr, U32(a), U32(b)) => U32(a ^ b),
        (Op::ShiftLeft, U32(a), U32(b)) => U32(a << (b & 31)),
        (Op::ShiftRight, U32(a), U32(b)) => U32(a >> (b & 31)),
        (Op::ShiftLeft, I32(a), U32(b)) => I32(a << (b & 31)),
        (Op::ShiftRight, I32(a), U32(b)) => I32(a >> (b & 31)),
        other => panic!("{other:?}"),
    }
}

fn less(a: Number, b: Number) -> bool {
    match (a, b) {
        (Number::F32(a), Number::F32(b)) => a < b,
        (Number::U32(a), Number::U32(b)) => a < b,
        (Number::I32(a), Number::I32(b)) => a < b,
        other => panic!("a comparison of {other:?}"),
    }
}

pub fn relational(fun: RelationalFunction, value: &Value) -> Value {
    let truth = |value: &Value| value.scalar().number == Number::Bool(true);
    let result = match (fun, value) {
        (RelationalFunction::All, Value::Many(values)) => values.iter().all(truth),
        (RelationalFunction::Any, Value::Many(values)) => values.iter().any(truth),
        (RelationalFunction::All | RelationalFunction::Any, value) => truth(value),
        (other, _) => panic!("the function {other:?}"),
    };
    Value::new(Number::Bool(result)).tinted(value.origin())
}

/// Built-in functions. What only rounds or approximates a float is its plain `f32` counterpart.
pub fn math(fun: MathFunction, arguments: &[Value]) -> Value {
    use MathFunction as Fun;
    let first = &arguments[0];
    let float = |f: fn(f32) -> f32| {
        first.clone().map(&mut |scalar| match scalar.number {
            Number::F32(x) => Scalar { number: Number::F32(f(x)), ..scalar },
            other => panic!("{fun:?} of {other:?}"),
        })
    };
    let smaller = |a: Number, b: Number| if less(b, a) { b } else { a };
    let larger = |a: Number, b: Number| if less(a, b) { b } else { a };
    match fun {
        Fun::Min => pairs(first, &arguments[1], &smaller),
        Fun::Max => pairs(first, &arguments[1], &larger),
        Fun::Clamp => pairs(&pairs(first, &arguments[1], &larger), &arguments[2], &smaller),
        Fun::Abs => float(f32::abs),
        Fun::Exp => float(f32::exp),
        Fun::Exp2 => float(f32::exp2),
        Fun::Log => float(f32::ln),
        Fun::Sqrt => float(f32::sqrt),
        Fun::InverseSqrt => float(|x| 1.0 / x.sqrt()),
        Fun::Tanh => float(f32::tanh),
        Fun::Round => float(f32::round_ties_even),
        Fun::Floor => float(f32::floor),
        Fun::Ceil => float(f32::ceil),
        Fun::Sign => float(f32::signum),
        Fun::Cos => float(f32::cos),
        Fun::Sin => float(f32::sin),
        Fun::Fma => {
            let product = binary(BinaryOperator::Multiply, first, &arguments[1]);
            binary(BinaryOperator::Add, &product, &arguments[2])
        }
        Fun::Pow => pairs(first, &arguments[1], &|a, b| match (a, b) {
            (Number::F32(a), Number::F32(b)) => Number::F32(a.powf(b)),
            other => panic!("a power of {other:?}"),
        }),
        Fun::Dot => dot(first, &arguments[1]),
        Fun::Transpose => transpose(first),
        Fun::Unpack4xU8 => fields(first, 4, &|bits| Number::U32(bits & 255)),
        Fun::Unpack4xI8 => fields(first, 4, &|bits| Number::I32(bits as u8 as i8 as i32)),
        Fun::Unpack2x16float => fields(first, 2, &|bits| Number::F32(half(bits as u16))),
        Fun::Pack4xU8 => packed(first, 8),
        Fun::Pack2x16float => packed(first, 16),
        Fun::CountOneBits | Fun::FirstLeadingBit | Fun::FirstTrailingBit | Fun::CountLeadingZeros => {
            first.clone().map(&mut |scalar| {
                let bits = scalar.number.bits();
                let counted = match fun {
                    Fun::CountOneBits => bits.count_ones(),
                    Fun::CountLeadingZeros => bits.leading_zeros(),
                    Fun::FirstTrailingBit => bits.trailing_zeros(),
                    _ => 31u32.wrapping_sub(bits.leading_zeros()),
                };
                Scalar { number: Number::U32(counted), ..scalar }
            })
        }
        Fun::Dot4U8Packed | Fun::Dot4I8Packed => pairs(first, &arguments[1], &|_, _| match fun {
            Fun::Dot4U8Packed => Number::U32(0),
            _ => Number::I32(0),
        }),
        Fun::ExtractBits => {
            let (offset, count) = (arguments[1].index(), arguments[2].index());
            first.clone().map(&mut |scalar| {
                let bits = (u64::from(scalar.number.bits()) >> offset) & ((1u64 << count) - 1);
                Scalar { number: Number::U32(bits as u32), ..scalar }
            })
        }
        other => panic!("the function {other:?}: add it"),
    }
}

/// `count` fields of a word, lowest first.
fn fields(word: &Value, count: u32, field: &dyn Fn(u32) -> Number) -> Value {
    let Scalar { number, origin } = word.scalar();
    let one = |i: u32| Value::Scalar(Scalar { number: field(number.bits() >> (i * 32 / count)), origin });
    Value::Many((0..count).map(one).collect())
}

/// A word whose value decides nothing.
fn packed(values: &Value, width: u32) -> Value {
    let mut bits = 0;
    for (i, value) in values.many().iter().enumerate() {
        if let Number::U32(field) = value.scalar().number {
            bits |= field << (i as u32 * width);
        }
    }
    Value::u32(bits).tinted(values.origin())
}

/// An f16 as f32.
fn half(bits: u16) -> f32 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023));
    match exponent {
        0 => sign * fraction * 2f32.powi(-24),
        31 => sign * f32::INFINITY,
        _ => sign * (1.0 + fraction / 1024.0) * 2f32.powi(exponent - 15),
    }
}
