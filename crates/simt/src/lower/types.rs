//! How types lie in rows and in buffers.

use super::{Lowering, Refusal};
use naga::proc::IndexableLength;
use naga::{ArraySize, Literal, Scalar, ScalarKind, TypeInner, VectorSize};

/// Where the parts of a type lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrangement {
    /// Word after word, without gaps: rows, workgroup memory.
    Packed,
    /// With WGSL's alignments and strides: buffers.
    Aligned,
}

impl Lowering<'_> {
    pub(super) fn literal(&self, literal: &Literal) -> Result<u32, Refusal> {
        Ok(match *literal {
            Literal::F32(value) => value.to_bits(),
            Literal::F16(value) => value.to_f32().to_bits(),
            Literal::U32(value) => value,
            Literal::I32(value) => value as u32,
            Literal::Bool(value) => value.into(),
            other => return Err(format!("the literal {other:?} is not implemented")),
        })
    }

    pub(super) fn check_scalar(&self, scalar: Scalar) -> Result<(), Refusal> {
        match (scalar.kind, scalar.width) {
            (ScalarKind::Bool, _) | (ScalarKind::Uint | ScalarKind::Sint | ScalarKind::Float, 4) => Ok(()),
            // Kept as the f32 of the same value.
            (ScalarKind::Float, 2) => Ok(()),
            (kind, width) => Err(format!("scalars of type {kind:?} with {width} bytes are not implemented")),
        }
    }

    /// The elements of an array that is not sized at run time.
    pub(super) fn length(&self, size: ArraySize) -> Result<u32, Refusal> {
        match size.resolve(self.module.to_ctx()) {
            Ok(IndexableLength::Known(length)) => Ok(length),
            Ok(IndexableLength::Dynamic) => Err("a runtime-sized array as a value is not implemented".into()),
            Err(error) => Err(format!("an array's size: {error}")),
        }
    }

    /// Scalars of a value of this type.
    pub(super) fn words(&self, inner: &TypeInner) -> Result<u32, Refusal> {
        Ok(match inner {
            TypeInner::Scalar(scalar) | TypeInner::Atomic(scalar) => {
                self.check_scalar(*scalar)?;
                1
            }
            TypeInner::Vector { size, scalar } => {
                self.check_scalar(*scalar)?;
                *size as u32
            }
            TypeInner::Matrix { columns, rows, scalar } => {
                self.check_scalar(*scalar)?;
                *columns as u32 * *rows as u32
            }
            TypeInner::Array { base, size, .. } if *size != ArraySize::Dynamic => {
                self.words(self.inner(*base))? * self.length(*size)?
            }
            TypeInner::Struct { members, .. } => {
                let mut sum = 0;
                for member in members {
                    sum += self.words(self.inner(member.ty))?;
                }
                sum
            }
            other => return Err(format!("values of type {other:?} are not implemented")),
        })
    }

    /// Scalars lie in words of their own, which in buffers only those of four bytes do.
    fn check_words(&self, inner: &TypeInner, arrangement: Arrangement) -> Result<(), Refusal> {
        match inner.scalar() {
            Some(scalar) if arrangement == Arrangement::Aligned && scalar.width != 4 => {
                Err(format!("buffers of {:?} with {} bytes are not implemented", scalar.kind, scalar.width))
            }
            _ => Ok(()),
        }
    }

    /// Bytes that a binding of this type has at least: one element of a runtime-sized array.
    pub(super) fn least_bytes(&self, inner: &TypeInner) -> Result<u32, Refusal> {
        Ok(match inner {
            TypeInner::Array { size: ArraySize::Dynamic, stride, .. } => *stride,
            TypeInner::Array { size, stride, .. } => self.length(*size)? * stride,
            TypeInner::Struct { members, span } => match members.last() {
                Some(last) => {
                    let inner = self.inner(last.ty);
                    let dynamic = matches!(inner, TypeInner::Array { size: ArraySize::Dynamic, .. });
                    if dynamic { last.offset + self.least_bytes(inner)? } else { *span }
                }
                None => *span,
            },
            TypeInner::Matrix { columns, rows, .. } => {
                *columns as u32 * matrix_stride(Arrangement::Aligned, *rows) * 4
            }
            other => self.words(other)? * 4,
        })
    }

    /// The type of element `index` and its first word, `index` 0 for what all elements share.
    pub(super) fn element(
        &self,
        inner: &TypeInner,
        index: u32,
        arrangement: Arrangement,
    ) -> Result<(TypeInner, u32), Refusal> {
        self.check_words(inner, arrangement)?;
        Ok(match inner {
            TypeInner::Vector { scalar, .. } => (TypeInner::Scalar(*scalar), index),
            TypeInner::Matrix { rows, scalar, .. } => (
                TypeInner::Vector { size: *rows, scalar: *scalar },
                index * matrix_stride(arrangement, *rows),
            ),
            TypeInner::Array { base, .. } => {
                (self.inner(*base).clone(), index * self.stride(inner, arrangement)?)
            }
            TypeInner::Struct { members, .. } => {
                let member = members.get(index as usize).ok_or("no such member")?;
                let first = match arrangement {
                    Arrangement::Aligned => member.offset / 4,
                    Arrangement::Packed => {
                        let mut sum = 0;
                        for member in &members[..index as usize] {
                            sum += self.words(self.inner(member.ty))?;
                        }
                        sum
                    }
                };
                (self.inner(member.ty).clone(), first)
            }
            other => return Err(format!("elements of {other:?} are not implemented")),
        })
    }

    /// Words from an element to the next.
    pub(super) fn stride(&self, inner: &TypeInner, arrangement: Arrangement) -> Result<u32, Refusal> {
        Ok(match inner {
            TypeInner::Vector { .. } => 1,
            TypeInner::Matrix { rows, .. } => matrix_stride(arrangement, *rows),
            TypeInner::Array { base, stride, .. } => match arrangement {
                Arrangement::Aligned => stride / 4,
                Arrangement::Packed => self.words(self.inner(*base))?,
            },
            other => return Err(format!("elements of {other:?} are not implemented")),
        })
    }

    /// Where each word of a value of this type lies.
    pub(super) fn parts(&self, inner: &TypeInner, arrangement: Arrangement) -> Result<Vec<u32>, Refusal> {
        self.check_words(inner, arrangement)?;
        let count = match inner {
            TypeInner::Scalar(_) | TypeInner::Atomic(_) => {
                self.words(inner)?;
                return Ok(vec![0]);
            }
            TypeInner::Vector { size, .. } => *size as u32,
            TypeInner::Matrix { columns, .. } => *columns as u32,
            TypeInner::Array { size, .. } => self.length(*size)?,
            TypeInner::Struct { members, .. } => members.len() as u32,
            other => return Err(format!("values of type {other:?} are not implemented")),
        };
        let mut parts = Vec::new();
        for index in 0..count {
            let (element, first) = self.element(inner, index, arrangement)?;
            parts.extend(self.parts(&element, arrangement)?.into_iter().map(|part| first + part));
        }
        Ok(parts)
    }
}

/// Words from a matrix' column to the next.
fn matrix_stride(arrangement: Arrangement, rows: VectorSize) -> u32 {
    match (arrangement, rows) {
        (Arrangement::Aligned, VectorSize::Tri) => 4,
        _ => rows as u32,
    }
}
