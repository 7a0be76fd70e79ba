//! Values of the interpreter. Each number remembers whether it was made of codes or of scales.

use naga::proc::IndexableLength;
use naga::{Handle, Literal, Module, ScalarKind, Type, TypeInner, VectorSize};

/// A number; f16 is computed in f32, whose rounding decides nothing here.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    Bool(bool),
    U32(u32),
    I32(i32),
    F32(f32),
}

/// What a number was made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Origin {
    /// Bits of the weights' binding.
    pub codes: bool,
    /// Bits of the scales' binding.
    pub scales: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scalar {
    pub number: Number,
    pub origin: Origin,
}

/// Where a variable is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Root {
    Global(Handle<naga::GlobalVariable>),
    /// Of the call with this number.
    Local(usize, Handle<naga::LocalVariable>),
}

/// A variable, or what indices lead to in it, and what these were made of.
#[derive(Debug, Clone, PartialEq)]
pub struct Pointer {
    pub root: Root,
    pub path: Vec<u32>,
    pub origin: Origin,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Scalar(Scalar),
    /// Components of a vector, columns of a matrix, elements, members.
    Many(Vec<Value>),
    Pointer(Pointer),
}

impl Origin {
    pub fn and(self, other: Origin) -> Origin {
        Origin { codes: self.codes | other.codes, scales: self.scales | other.scales }
    }
}

impl Number {
    pub fn of(literal: Literal) -> Number {
        match literal {
            Literal::Bool(value) => Number::Bool(value),
            Literal::U32(value) => Number::U32(value),
            Literal::I32(value) => Number::I32(value),
            Literal::F32(value) => Number::F32(value),
            Literal::F16(value) => Number::F32(value.to_f32()),
            other => panic!("a literal {other:?}"),
        }
    }

    /// 32 bits as a number of `kind`.
    pub fn of_bits(kind: ScalarKind, bits: u32) -> Number {
        match kind {
            ScalarKind::Bool => Number::Bool(bits != 0),
            ScalarKind::Uint => Number::U32(bits),
            ScalarKind::Sint => Number::I32(bits as i32),
            ScalarKind::Float => Number::F32(f32::from_bits(bits)),
            other => panic!("a scalar of kind {other:?}"),
        }
    }

    pub fn bits(self) -> u32 {
        match self {
            Number::Bool(value) => u32::from(value),
            Number::U32(value) => value,
            Number::I32(value) => value as u32,
            Number::F32(value) => value.to_bits(),
        }
    }

    /// The value converted, not its bits.
    pub fn to(self, kind: ScalarKind) -> Number {
        let float = match self {
            Number::Bool(value) => f64::from(u8::from(value)),
            Number::U32(value) => f64::from(value),
            Number::I32(value) => f64::from(value),
            Number::F32(value) => f64::from(value),
        };
        match (self, kind) {
            (Number::I32(value), ScalarKind::Uint) => Number::U32(value as u32),
            (Number::U32(value), ScalarKind::Sint) => Number::I32(value as i32),
            (_, ScalarKind::Bool) => Number::Bool(float != 0.0),
            (_, ScalarKind::Uint) => Number::U32(float as u32),
            (_, ScalarKind::Sint) => Number::I32(float as i32),
            (_, ScalarKind::Float) => Number::F32(float as f32),
            (_, other) => panic!("a conversion to {other:?}"),
        }
    }
}

impl Value {
    pub fn new(number: Number) -> Value {
        Value::Scalar(Scalar { number, origin: Origin::default() })
    }

    pub fn u32(value: u32) -> Value {
        Value::new(Number::U32(value))
    }

    pub fn scalar(&self) -> Scalar {
        match self {
            Value::Scalar(scalar) => *scalar,
            other => panic!("{other:?} is no scalar"),
        }
    }

    pub fn many(&self) -> &[Value] {
        match self {
            Value::Many(values) => values,
            other => panic!("{other:?} has no components"),
        }
    }

    pub fn index(&self) -> u32 {
        self.scalar().number.bits()
    }

    /// What all numbers in it were made of.
    pub fn origin(&self) -> Origin {
        match self {
            Value::Scalar(scalar) => scalar.origin,
            Value::Many(values) => {
                values.iter().fold(Origin::default(), |origin, value| origin.and(value.origin()))
            }
            Value::Pointer(pointer) => pointer.origin,
        }
    }

    /// The same with `origin` added to every number.
    pub fn tinted(self, origin: Origin) -> Value {
        self.map(&mut |scalar| Scalar { origin: scalar.origin.and(origin), ..scalar })
    }

    /// `f` of every number.
    pub fn map(self, f: &mut dyn FnMut(Scalar) -> Scalar) -> Value {
        match self {
            Value::Scalar(scalar) => Value::Scalar(f(scalar)),
            Value::Many(values) => Value::Many(values.into_iter().map(|value| value.map(f)).collect()),
            pointer => pointer,
        }
    }

    /// A value of type `inner` whose words are `word(byte offset)`.
    pub fn build(module: &Module, inner: &TypeInner, at: u32, word: &mut dyn FnMut(u32) -> u32) -> Value {
        let vector = |size: VectorSize, kind, width: u8, at: u32, word: &mut dyn FnMut(u32) -> u32| {
            let one = |i: u32| Value::new(Number::of_bits(kind, word(at + i * u32::from(width))));
            Value::Many((0..size as u32).map(one).collect())
        };
        match *inner {
            TypeInner::Scalar(scalar) | TypeInner::Atomic(scalar) => {
                Value::new(Number::of_bits(scalar.kind, word(at)))
            }
            TypeInner::Vector { size, scalar } => vector(size, scalar.kind, scalar.width, at, word),
            TypeInner::Matrix { columns, rows, scalar } => {
                let pitch = if rows == VectorSize::Bi { 2 } else { 4 } * u32::from(scalar.width);
                let column = |i| vector(rows, scalar.kind, scalar.width, at + i * pitch, word);
                Value::Many((0..columns as u32).map(column).collect())
            }
            TypeInner::Array { base, size, stride } => {
                let Ok(IndexableLength::Known(count)) = size.resolve(module.to_ctx()) else {
                    panic!("a value of unknown size");
                };
                let element = &module.types[base].inner;
                let one = |i| Value::build(module, element, at + i * stride, word);
                Value::Many((0..count).map(one).collect())
            }
            TypeInner::Struct { ref members, .. } => {
                let one = |member: &naga::StructMember| {
                    Value::build(module, &module.types[member.ty].inner, at + member.offset, word)
                };
                Value::Many(members.iter().map(one).collect())
            }
            ref other => panic!("a value of type {other:?}"),
        }
    }

    /// Zero of a type.
    pub fn zero(module: &Module, ty: Handle<Type>) -> Value {
        Value::build(module, &module.types[ty].inner, 0, &mut |_| 0)
    }
}

/// Vectors may be composed of vectors.
pub fn compose(inner: &TypeInner, components: Vec<Value>) -> Value {
    let flat = matches!(inner, TypeInner::Vector { .. });
    let one = |component| match component {
        Value::Many(values) if flat => values,
        other => vec![other],
    };
    Value::Many(components.into_iter().flat_map(one).collect())
}

/// The element at `index` of a value, or what a pointer then leads to.
pub fn access(base: Value, index: u32, by: Origin) -> Value {
    match base {
        Value::Pointer(mut pointer) => {
            pointer.path.push(index);
            pointer.origin = pointer.origin.and(by);
            Value::Pointer(pointer)
        }
        Value::Many(values) => values[(index as usize).min(values.len() - 1)].clone().tinted(by),
        scalar => panic!("an index into {scalar:?}"),
    }
}

/// One of two values, component by component.
pub fn select(condition: &Value, accept: Value, reject: Value) -> Value {
    match (condition, accept, reject) {
        (Value::Scalar(condition), accept, reject) => {
            let chosen = if condition.number == Number::Bool(true) { accept } else { reject };
            chosen.tinted(condition.origin)
        }
        (Value::Many(conditions), Value::Many(accept), Value::Many(reject)) => {
            let each = conditions.iter().zip(accept.into_iter().zip(reject));
            Value::Many(each.map(|(condition, (accept, reject))| select(condition, accept, reject)).collect())
        }
        other => panic!("a choice of {other:?}"),
    }
}
