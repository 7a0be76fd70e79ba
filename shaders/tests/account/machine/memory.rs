//! Loads and stores of the machine: variables, and where pointers lead in them.

use super::{Frame, Machine, Read};
use crate::value::{Origin, Pointer, Root, Value};
use naga::{AddressSpace, ArraySize, Expression, Handle, TypeInner};

impl<'a> Machine<'a> {
    /// What a pointer leads to; reads of memory are written down.
    pub(super) fn load(&mut self, frame: &mut Frame<'a>, handle: Handle<Expression>) -> Value {
        let pointer = self.pointer(frame, handle);
        // Private and local tables are memory too, once they are indexed by data.
        let variable = match pointer.root {
            Root::Global(variable) => variable,
            Root::Local(..) => {
                self.trace.asked += usize::from(pointer.origin.codes);
                return self.inside(&pointer).tinted(pointer.origin);
            }
        };
        let global = &self.module.global_variables[variable];
        if global.space == AddressSpace::Private {
            self.trace.asked += usize::from(pointer.origin.codes);
            return self.inside(&pointer).tinted(pointer.origin);
        }
        let (inner, at) = self.place(&pointer);
        let bytes = inner.size(self.module.to_ctx());
        self.trace.reads.push(Read { variable, at, bytes, by: pointer.origin });
        if !matches!(global.space, AddressSpace::Storage { .. } | AddressSpace::Uniform) {
            return self.inside(&pointer).tinted(pointer.origin);
        }
        let name = global.name.as_deref().unwrap_or_default();
        let origin = Origin { codes: name == "weights", scales: name == "absmax" };
        let mut word = |at: u32| (self.contents)(name, at);
        Value::build(self.module, &inner, at, &mut word).tinted(origin.and(pointer.origin))
    }

    /// The type that a pointer leads to, and its first byte in the variable.
    fn place(&self, pointer: &Pointer) -> (TypeInner, u32) {
        let Root::Global(variable) = pointer.root else { panic!("a local variable has no place") };
        let types = &self.module.types;
        let mut inner = types[self.module.global_variables[variable].ty].inner.clone();
        let mut at = 0;
        for &index in &pointer.path {
            (inner, at) = match inner {
                TypeInner::Array { base, stride, .. } => (types[base].inner.clone(), at + index * stride),
                TypeInner::Vector { scalar, .. } => {
                    (TypeInner::Scalar(scalar), at + index * u32::from(scalar.width))
                }
                TypeInner::Struct { ref members, .. } => {
                    let member = &members[index as usize];
                    (types[member.ty].inner.clone(), at + member.offset)
                }
                other => panic!("an index into {other:?} in memory"),
            };
        }
        (inner, at)
    }

    pub(super) fn variable(&mut self, root: Root) -> &mut Value {
        let module = self.module;
        self.memory.entry(root).or_insert_with(|| match root {
            Root::Global(handle) => Value::zero(module, module.global_variables[handle].ty),
            Root::Local(..) => panic!("a local variable of no call"),
        })
    }

    /// What the variable holds where the pointer leads; nothing is there beyond its end.
    pub(super) fn inside(&mut self, pointer: &Pointer) -> Value {
        let mut value = &*self.variable(pointer.root);
        for &index in &pointer.path {
            let many = value.many();
            value = many.get(index as usize).unwrap_or_else(|| &many[many.len() - 1]);
        }
        value.clone()
    }

    /// Puts a value where a pointer leads.
    pub(super) fn store(&mut self, pointer: &Pointer, value: Value) {
        if let Root::Global(handle) = pointer.root {
            let global = &self.module.global_variables[handle];
            if matches!(global.space, AddressSpace::Storage { .. }) {
                return;
            }
            let inner = &self.module.types[global.ty].inner;
            assert!(!matches!(inner, TypeInner::Array { size: ArraySize::Dynamic, .. }));
        }
        let mut at = self.variable(pointer.root);
        for &index in &pointer.path {
            let Value::Many(many) = at else { panic!("an index into a scalar") };
            let Some(element) = many.get_mut(index as usize) else { return };
            at = element;
        }
        *at = value;
    }
}
