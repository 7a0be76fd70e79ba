//! Expressions: taking values apart and putting them together, and arithmetic by scalars.

use super::types::Arrangement;
use super::{Frame, Lowering, Refusal, Value};
use crate::code::{Binary, Node, Op, Pointer, Root, Row, Ternary, Unary};
use naga::{
    ArraySize, BinaryOperator, Expression, Handle, RelationalFunction, ScalarKind, TypeInner, UnaryOperator,
};
use std::sync::Arc;

impl<'a> Lowering<'a> {
    pub(super) fn type_of(&self, frame: &Frame<'a>, handle: Handle<Expression>) -> &'a TypeInner {
        frame.info[handle].ty.inner_with(&self.module.types)
    }

    /// The kind of a value's scalars.
    pub(super) fn kind(&self, frame: &Frame<'a>, handle: Handle<Expression>) -> Result<ScalarKind, Refusal> {
        let inner = self.type_of(frame, handle);
        let scalar = inner.scalar().ok_or_else(|| format!("arithmetic on {inner:?} is not implemented"))?;
        self.check_scalar(scalar)?;
        Ok(scalar.kind)
    }

    /// The value of an expression that was emitted, or needs not be.
    pub(super) fn value(
        &mut self,
        frame: &mut Frame<'a>,
        handle: Handle<Expression>,
    ) -> Result<Value, Refusal> {
        if let Some(value) = &frame.values[handle.index()] {
            return Ok(value.clone());
        }
        let value = match &frame.function.expressions[handle] {
            Expression::Literal(literal) => {
                let word = self.literal(literal)?;
                Value::Rows(vec![self.constant(word)].into())
            }
            Expression::Constant(constant) => {
                Value::Rows(self.global_expression(self.module.constants[*constant].init)?)
            }
            Expression::ZeroValue(ty) => {
                let words = self.words(self.inner(*ty))?;
                Value::Rows(vec![self.constant(0); words as usize].into())
            }
            Expression::FunctionArgument(index) => {
                frame.arguments.get(*index as usize).cloned().ok_or("an argument that was not given")?
            }
            Expression::GlobalVariable(variable) => Value::Pointer(Arc::new(self.variable(*variable)?)),
            Expression::LocalVariable(variable) => {
                let rows = frame.locals.get(variable).cloned().ok_or("a local variable that is not known")?;
                let name = frame.function.local_variables[*variable].name.as_deref().unwrap_or("?");
                Value::Pointer(Arc::new(Pointer {
                    root: Root::Own(rows),
                    name: name.into(),
                    offset: 0,
                    terms: Vec::new(),
                    atomic: false,
                }))
            }
            Expression::Compose { .. } | Expression::Splat { .. } => {
                self.evaluate(frame, handle, &mut Vec::new())?
            }
            other => return Err(format!("{other:?} is used before it is emitted")),
        };
        frame.values[handle.index()] = Some(value.clone());
        Ok(value)
    }

    pub(super) fn rows_of(
        &mut self,
        frame: &mut Frame<'a>,
        handle: Handle<Expression>,
    ) -> Result<Arc<[Row]>, Refusal> {
        match self.value(frame, handle)? {
            Value::Rows(rows) => Ok(rows),
            Value::Pointer(_) => Err("a pointer where a value is wanted".into()),
        }
    }

    pub(super) fn scalar(
        &mut self,
        frame: &mut Frame<'a>,
        handle: Handle<Expression>,
    ) -> Result<Row, Refusal> {
        self.rows_of(frame, handle)?.first().copied().ok_or_else(|| "a value without scalars".into())
    }

    /// Emits an expression.
    pub(super) fn evaluate(
        &mut self,
        frame: &mut Frame<'a>,
        handle: Handle<Expression>,
        out: &mut Vec<Node>,
    ) -> Result<Value, Refusal> {
        let rows: Arc<[Row]> = match &frame.function.expressions[handle] {
            Expression::Compose { components, .. } => {
                let mut rows = Vec::new();
                for &component in components {
                    rows.extend_from_slice(&self.rows_of(frame, component)?);
                }
                rows.into()
            }
            Expression::Splat { size, value } => {
                let row = self.scalar(frame, *value)?;
                vec![row; *size as usize].into()
            }
            Expression::Swizzle { size, vector, pattern } => {
                let rows = self.rows_of(frame, *vector)?;
                pattern[..*size as usize].iter().map(|&component| rows[component as usize]).collect()
            }
            Expression::AccessIndex { base, index } => match self.value(frame, *base)? {
                Value::Pointer(pointer) => {
                    let pointee = self.pointee(self.type_of(frame, *base))?;
                    return Ok(Value::Pointer(Arc::new(self.index(&pointer, &pointee, Ok(*index))?)));
                }
                Value::Rows(rows) => {
                    let inner = self.type_of(frame, *base);
                    let (element, first) = self.element(inner, *index, Arrangement::Packed)?;
                    let words = self.words(&element)?;
                    rows[first as usize..(first + words) as usize].into()
                }
            },
            Expression::Access { base, index } => {
                let index = self.scalar(frame, *index)?;
                match self.value(frame, *base)? {
                    Value::Pointer(pointer) => {
                        let pointee = self.pointee(self.type_of(frame, *base))?;
                        return Ok(Value::Pointer(Arc::new(self.index(&pointer, &pointee, Err(index))?)));
                    }
                    Value::Rows(from) => {
                        let inner = self.type_of(frame, *base);
                        let (element, _) = self.element(inner, 0, Arrangement::Packed)?;
                        let words = self.words(&element)?;
                        let to = self.rows(words);
                        let op = Op::Pick {
                            to: to.to_vec(),
                            bound: from.len() as u32 / words.max(1),
                            from: from.to_vec(),
                            index,
                            what: "a value".into(),
                        };
                        self.push(out, op);
                        to
                    }
                }
            }
            Expression::Load { pointer } => self.load(frame, *pointer, out)?,
            Expression::ArrayLength(pointer) => {
                let base = self.pointer(frame, *pointer)?;
                let pointee = self.pointee(self.type_of(frame, *pointer))?;
                let (Root::Buffer(buffer), TypeInner::Array { size: ArraySize::Dynamic, .. }) =
                    (&base.root, &pointee)
                else {
                    return Err(format!("the length of {pointee:?} is not implemented"));
                };
                let stride = self.stride(&pointee, Arrangement::Aligned)?;
                let to = self.row();
                self.push(out, Op::Length { to, buffer: *buffer, first: base.offset, stride });
                vec![to].into()
            }
            Expression::Unary { op, expr } => {
                let f = match (op, self.kind(frame, *expr)?) {
                    (UnaryOperator::Negate, ScalarKind::Float) => Unary::NegF,
                    (UnaryOperator::Negate, _) => Unary::NegI,
                    (UnaryOperator::LogicalNot, _) | (UnaryOperator::BitwiseNot, ScalarKind::Bool) => {
                        Unary::NotBool
                    }
                    (UnaryOperator::BitwiseNot, _) => Unary::NotBits,
                };
                let rows = self.rows_of(frame, *expr)?;
                self.unary(out, f, &rows)
            }
            Expression::Binary { op, left, right } => {
                self.binary_expression(frame, *op, *left, *right, out)?
            }
            Expression::Select { condition, accept, reject } => {
                let conditions = self.rows_of(frame, *condition)?;
                let accept = self.rows_of(frame, *accept)?;
                let reject = self.rows_of(frame, *reject)?;
                let to = self.rows(accept.len() as u32);
                for (i, &to) in to.iter().enumerate() {
                    let a = conditions[if conditions.len() == 1 { 0 } else { i }];
                    self.push(out, Op::Ternary { f: Ternary::Select, to, a, b: accept[i], c: reject[i] });
                }
                to
            }
            Expression::Relational { fun, argument } => {
                let rows = self.rows_of(frame, *argument)?;
                match fun {
                    RelationalFunction::All => self.fold(out, Binary::And, &rows),
                    RelationalFunction::Any => self.fold(out, Binary::Or, &rows),
                    RelationalFunction::IsNan => self.unary(out, Unary::IsNan, &rows),
                    RelationalFunction::IsInf => self.unary(out, Unary::IsInf, &rows),
                }
            }
            Expression::Math { fun, arg, arg1, arg2, arg3 } => {
                self.math(frame, *fun, [Some(*arg), *arg1, *arg2, *arg3], out)?
            }
            Expression::As { expr, kind, convert } => {
                let from = self.kind(frame, *expr)?;
                let rows = self.rows_of(frame, *expr)?;
                match convert {
                    None if self.is_half(frame, *expr) || self.is_half(frame, handle) => {
                        return Err("the bits of an f16 are not implemented".into());
                    }
                    None => rows,
                    Some(width) => {
                        self.check_scalar(naga::Scalar { kind: *kind, width: *width })?;
                        match conversion(from, *kind)? {
                            Some(f) => self.unary(out, f, &rows),
                            None => rows,
                        }
                    }
                }
            }
            Expression::Literal(_)
            | Expression::Constant(_)
            | Expression::ZeroValue(_)
            | Expression::FunctionArgument(_)
            | Expression::GlobalVariable(_)
            | Expression::LocalVariable(_)
            | Expression::CallResult(_)
            | Expression::AtomicResult { .. }
            | Expression::WorkGroupUniformLoadResult { .. }
            | Expression::SubgroupBallotResult
            | Expression::SubgroupOperationResult { .. } => return self.value(frame, handle),
            other => return Err(format!("the expression {other:?} is not implemented")),
        };
        let rounds = matches!(
            frame.function.expressions[handle],
            Expression::Binary { .. } | Expression::Math { .. } | Expression::As { .. }
        );
        Ok(Value::Rows(if rounds && self.is_half(frame, handle) {
            self.unary(out, Unary::ToF16, &rows)
        } else {
            rows
        }))
    }

    /// Whether a value's scalars are f16: f32 here, that are rounded after each operation. Sums, products,
    /// quotients and roots of two f16 are exactly rounded so (Figueroa 1995).
    pub(super) fn is_half(&self, frame: &Frame<'a>, handle: Handle<Expression>) -> bool {
        self.type_of(frame, handle).scalar() == Some(naga::Scalar { kind: ScalarKind::Float, width: 2 })
    }

    pub(super) fn unary(&mut self, out: &mut Vec<Node>, f: Unary, rows: &[Row]) -> Arc<[Row]> {
        let to = self.rows(rows.len() as u32);
        for (&to, &a) in to.iter().zip(rows) {
            self.push(out, Op::Unary { f, to, a });
        }
        to
    }

    /// By scalars; a single one on one side meets all of the other.
    pub(super) fn binary(&mut self, out: &mut Vec<Node>, f: Binary, a: &[Row], b: &[Row]) -> Arc<[Row]> {
        let to = self.rows(a.len().max(b.len()) as u32);
        for (i, &to) in to.iter().enumerate() {
            let (a, b) = (a[i.min(a.len() - 1)], b[i.min(b.len() - 1)]);
            self.push(out, Op::Binary { f, to, a, b });
        }
        to
    }

    /// All rows in one.
    pub(super) fn fold(&mut self, out: &mut Vec<Node>, f: Binary, rows: &[Row]) -> Arc<[Row]> {
        let mut sum: Arc<[Row]> = vec![rows[0]].into();
        for &row in &rows[1..] {
            sum = self.binary(out, f, &sum, &[row]);
        }
        sum
    }

    /// The sum of products.
    pub(super) fn dot(&mut self, out: &mut Vec<Node>, float: bool, a: &[Row], b: &[Row]) -> Arc<[Row]> {
        let (times, plus) = if float { (Binary::MulF, Binary::AddF) } else { (Binary::MulI, Binary::AddI) };
        let products = self.binary(out, times, a, b);
        self.fold(out, plus, &products)
    }

    fn binary_expression(
        &mut self,
        frame: &mut Frame<'a>,
        op: BinaryOperator,
        left: Handle<Expression>,
        right: Handle<Expression>,
        out: &mut Vec<Node>,
    ) -> Result<Arc<[Row]>, Refusal> {
        let kind = self.kind(frame, left)?;
        let (a, b) = (self.rows_of(frame, left)?, self.rows_of(frame, right)?);
        if op == BinaryOperator::Multiply {
            let (left, right) = (self.type_of(frame, left), self.type_of(frame, right));
            if let Some(product) = self.matrix_product(out, left, &a, right, &b) {
                return Ok(product);
            }
        }
        let (f, swapped) = operator(op, kind)?;
        Ok(if swapped { self.binary(out, f, &b, &a) } else { self.binary(out, f, &a, &b) })
    }

    /// The product if one of both is a matrix and the other a matrix or a vector.
    fn matrix_product(
        &mut self,
        out: &mut Vec<Node>,
        left: &TypeInner,
        a: &[Row],
        right: &TypeInner,
        b: &[Row],
    ) -> Option<Arc<[Row]>> {
        // A vector is one column on the right and one row on the left.
        let (rows, inner) = match (left, right) {
            (
                TypeInner::Matrix { rows, columns, .. },
                TypeInner::Matrix { .. } | TypeInner::Vector { .. },
            ) => (*rows as usize, *columns as usize),
            (TypeInner::Vector { size, .. }, TypeInner::Matrix { .. }) => (1, *size as usize),
            _ => return None,
        };
        let mut product = Vec::new();
        for column in b.chunks(inner) {
            for row in 0..rows {
                let line: Vec<Row> = (0..inner).map(|k| a[k * rows + row]).collect();
                product.extend_from_slice(&self.dot(out, true, &line, column));
            }
        }
        Some(product.into())
    }
}

/// The operation and whether its sides change places.
fn operator(op: BinaryOperator, kind: ScalarKind) -> Result<(Binary, bool), Refusal> {
    use BinaryOperator as B;
    use ScalarKind::{Bool, Float, Sint, Uint};
    let f = match (op, kind) {
        (B::Add, Float) => Binary::AddF,
        (B::Add, _) => Binary::AddI,
        (B::Subtract, Float) => Binary::SubF,
        (B::Subtract, _) => Binary::SubI,
        (B::Multiply, Float) => Binary::MulF,
        (B::Multiply, _) => Binary::MulI,
        (B::Divide, Float) => Binary::DivF,
        (B::Divide, Uint) => Binary::DivU,
        (B::Divide, Sint) => Binary::DivI,
        (B::Modulo, Float) => Binary::RemF,
        (B::Modulo, Uint) => Binary::RemU,
        (B::Modulo, Sint) => Binary::RemI,
        (B::Equal, Float) => Binary::EqF,
        (B::Equal, _) => Binary::EqI,
        (B::NotEqual, Float) => Binary::NeF,
        (B::NotEqual, _) => Binary::NeI,
        (B::Less | B::Greater, Float) => Binary::LtF,
        (B::Less | B::Greater, Uint) => Binary::LtU,
        (B::Less | B::Greater, Sint) => Binary::LtI,
        (B::LessEqual | B::GreaterEqual, Float) => Binary::LeF,
        (B::LessEqual | B::GreaterEqual, Uint) => Binary::LeU,
        (B::LessEqual | B::GreaterEqual, Sint) => Binary::LeI,
        (B::And, Bool | Uint | Sint) | (B::LogicalAnd, Bool) => Binary::And,
        (B::InclusiveOr, Bool | Uint | Sint) | (B::LogicalOr, Bool) => Binary::Or,
        (B::ExclusiveOr, Uint | Sint | Bool) => Binary::Xor,
        (B::ShiftLeft, Uint | Sint) => Binary::Shl,
        (B::ShiftRight, Uint) => Binary::ShrU,
        (B::ShiftRight, Sint) => Binary::ShrI,
        (op, kind) => return Err(format!("{op:?} of {kind:?} is not implemented")),
    };
    Ok((f, matches!(op, B::Greater | B::GreaterEqual)))
}

/// The conversion between kinds of scalars; `None` where the bits stay.
fn conversion(from: ScalarKind, to: ScalarKind) -> Result<Option<Unary>, Refusal> {
    use ScalarKind::{Bool, Float, Sint, Uint};
    Ok(match (from, to) {
        (Float, Uint) => Some(Unary::FToU),
        (Float, Sint) => Some(Unary::FToI),
        (Uint, Float) => Some(Unary::UToF),
        (Sint, Float) => Some(Unary::IToF),
        (Float, Bool) => Some(Unary::FToBool),
        (Uint | Sint, Bool) => Some(Unary::IToBool),
        (Bool, Float) => Some(Unary::BoolToF),
        (Bool | Uint | Sint, Uint | Sint) | (Float, Float) | (Bool, Bool) => None,
        (from, to) => return Err(format!("the conversion from {from:?} to {to:?} is not implemented")),
    })
}
