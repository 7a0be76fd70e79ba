//! Pointers: a root, an offset, and indices that only run time knows.

use super::types::Arrangement;
use super::{Frame, Lowering, Refusal, Value};
use crate::code::{Bound, Pointer, Root, Row, Term};
use naga::{ArraySize, Expression, Handle, TypeInner};
use std::sync::Arc;

impl<'a> Lowering<'a> {
    /// What a pointer expression points to.
    pub(super) fn pointee(&self, inner: &TypeInner) -> Result<TypeInner, Refusal> {
        Ok(match inner {
            TypeInner::Pointer { base, .. } => self.inner(*base).clone(),
            TypeInner::ValuePointer { size: Some(size), scalar, .. } => {
                TypeInner::Vector { size: *size, scalar: *scalar }
            }
            TypeInner::ValuePointer { size: None, scalar, .. } => TypeInner::Scalar(*scalar),
            other => return Err(format!("{other:?} is not a pointer")),
        })
    }

    pub(super) fn arrangement(pointer: &Pointer) -> Arrangement {
        match pointer.root {
            Root::Own(_) | Root::Workgroup => Arrangement::Packed,
            Root::Buffer(_) | Root::Immediate => Arrangement::Aligned,
        }
    }

    pub(super) fn pointer(
        &mut self,
        frame: &mut Frame<'a>,
        handle: Handle<Expression>,
    ) -> Result<Arc<Pointer>, Refusal> {
        match self.value(frame, handle)? {
            Value::Pointer(pointer) => Ok(pointer),
            Value::Rows(_) => Err("a value where a pointer is wanted".into()),
        }
    }

    pub(super) fn variable(&self, handle: Handle<naga::GlobalVariable>) -> Result<Pointer, Refusal> {
        let variable = &self.module.global_variables[handle];
        let root = self.globals.get(&handle).cloned();
        Ok(Pointer {
            root: root.ok_or_else(|| format!("{:?} is used and not known", variable.name))?,
            name: variable.name.as_deref().unwrap_or("?").into(),
            offset: self.first_words.get(&handle).copied().unwrap_or(0),
            terms: Vec::new(),
            atomic: matches!(self.inner(variable.ty), TypeInner::Atomic(_)),
        })
    }

    /// The pointer to element `index`, known now or a row, of what `base` points to.
    pub(super) fn index(
        &mut self,
        base: &Pointer,
        pointee: &TypeInner,
        index: Result<u32, Row>,
    ) -> Result<Pointer, Refusal> {
        let arrangement = Self::arrangement(base);
        let dynamic = matches!(pointee, TypeInner::Array { size: ArraySize::Dynamic, .. });
        let mut pointer = base.clone();
        let known = index.ok().filter(|_| !dynamic);
        let (element, first) = self.element(pointee, known.unwrap_or(0), arrangement)?;
        pointer.atomic = matches!(element, TypeInner::Atomic(_));
        if known.is_some() {
            pointer.offset += first;
            return Ok(pointer);
        }
        let stride = self.stride(pointee, arrangement)?;
        let bound = match (pointee, &base.root) {
            (TypeInner::Vector { size, .. }, _) => Bound::Fixed(*size as u32),
            (TypeInner::Matrix { columns, .. }, _) => Bound::Fixed(*columns as u32),
            (TypeInner::Array { size: ArraySize::Dynamic, .. }, Root::Buffer(buffer)) => {
                Bound::Length { buffer: *buffer, first: base.offset, stride }
            }
            (TypeInner::Array { size, .. }, _) => Bound::Fixed(self.length(*size)?),
            (other, _) => return Err(format!("indices into {other:?} are not implemented")),
        };
        let index = match index {
            Ok(known) => self.constant(known),
            Err(row) => row,
        };
        pointer.terms.push(Term { index, stride, bound });
        Ok(pointer)
    }
}
