//! From naga's IR to [`Code`].

mod expression;
mod math;
mod pointer;
mod statement;
mod types;

use crate::code::{BufferUse, Builtin, Code, Node, Op, Root, Row, Shared, Unary};
use crate::finding::Place;
use naga::valid::{FunctionInfo, ModuleInfo};
use naga::{AddressSpace, Arena, BuiltIn, Expression, Function, GlobalVariable, Handle, Module, TypeInner};
use std::collections::HashMap;
use std::sync::Arc;

/// Why a shader cannot be run: what is missing, by name.
pub(crate) type Refusal = String;

/// The value of an expression.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    /// A row for each scalar of it.
    Rows(Arc<[Row]>),
    Pointer(Arc<crate::code::Pointer>),
}

/// A function that is being lowered, at one place from which it is called.
struct Frame<'a> {
    function: &'a Function,
    info: &'a FunctionInfo,
    values: Vec<Option<Value>>,
    arguments: Vec<Value>,
    locals: HashMap<Handle<naga::LocalVariable>, Arc<[Row]>>,
    result: Arc<[Row]>,
}

/// The state of lowering.
struct Lowering<'a> {
    module: &'a Module,
    info: &'a ModuleInfo,
    rows: u32,
    free: Vec<Row>,
    /// Rows to be freed at the end of each open block.
    scopes: Vec<Vec<Row>>,
    constants: HashMap<u32, Row>,
    globals: HashMap<Handle<GlobalVariable>, Root>,
    /// Where a variable starts in workgroup memory.
    first_words: HashMap<Handle<GlobalVariable>, u32>,
    code: Code,
    layouter: naga::proc::Layouter,
    /// The place of the statement or expression that is being lowered.
    at: Place,
}

/// Lowers entry point `index` of a module without overrides.
pub(crate) fn lower(module: &Module, info: &ModuleInfo, index: usize) -> Result<Code, Refusal> {
    let entry = module.entry_points.get(index).ok_or("no such entry point")?;
    let mut layouter = naga::proc::Layouter::default();
    layouter.update(module.to_ctx()).map_err(|error| error.to_string())?;
    let mut lowering = Lowering {
        module,
        layouter,
        info,
        rows: 0,
        free: Vec::new(),
        scopes: vec![Vec::new()],
        constants: HashMap::new(),
        globals: HashMap::new(),
        first_words: HashMap::new(),
        code: Code {
            size: entry.workgroup_size,
            rows: 0,
            constants: Vec::new(),
            builtins: Vec::new(),
            body: Vec::new(),
            buffers: Vec::new(),
            shared: Vec::new(),
            shared_words: 0,
            shared_bytes: 0,
            immediate_bytes: 0,
        },
        at: 0,
    };
    let mut body = Vec::new();
    let function_info = info.get_entry_point(index);
    for (handle, variable) in module.global_variables.iter() {
        if !function_info[handle].is_empty() {
            lowering.global(handle, variable, &mut body)?;
        }
    }
    let arguments = lowering.arguments(&entry.function)?;
    let main = lowering.function(&entry.function, function_info, arguments, Arc::new([]))?;
    body.push(Node::Call(main));
    let mut code = lowering.code;
    code.body = body;
    code.rows = lowering.rows;
    code.constants = lowering.constants.iter().map(|(&word, &row)| (row, word)).collect();
    Ok(code)
}

impl<'a> Lowering<'a> {
    /// A row that lives as long as the innermost open block.
    fn row(&mut self) -> Row {
        let row = self.free.pop().unwrap_or_else(|| self.fresh());
        if let Some(scope) = self.scopes.last_mut() {
            scope.push(row);
        }
        row
    }

    fn fresh(&mut self) -> Row {
        self.rows += 1;
        self.rows - 1
    }

    fn rows(&mut self, count: u32) -> Arc<[Row]> {
        (0..count).map(|_| self.row()).collect()
    }

    fn constant(&mut self, word: u32) -> Row {
        if let Some(&row) = self.constants.get(&word) {
            return row;
        }
        let row = self.fresh();
        self.constants.insert(word, row);
        row
    }

    /// Lowers with rows that are free again afterwards.
    fn scoped<T>(&mut self, lower: impl FnOnce(&mut Self) -> Result<T, Refusal>) -> Result<T, Refusal> {
        self.scopes.push(Vec::new());
        let result = lower(self);
        self.free.extend(self.scopes.pop().unwrap_or_default());
        result
    }

    fn inner(&self, ty: Handle<naga::Type>) -> &'a TypeInner {
        &self.module.types[ty].inner
    }

    fn push(&mut self, out: &mut Vec<Node>, op: Op) {
        out.push(Node::Op(op, self.at));
    }

    /// Registers a global variable and, if it is private, initializes it.
    fn global(
        &mut self,
        handle: Handle<GlobalVariable>,
        variable: &GlobalVariable,
        out: &mut Vec<Node>,
    ) -> Result<(), Refusal> {
        let name = variable.name.clone().unwrap_or_else(|| "a variable without a name".into());
        let inner = self.inner(variable.ty);
        let root = match variable.space {
            AddressSpace::Private => {
                let words = self.words(inner)?;
                let rows: Arc<[Row]> = (0..words).map(|_| self.fresh()).collect();
                let values = match variable.init {
                    Some(init) => self.global_expression(init)?,
                    None => vec![self.constant(0); words as usize].into(),
                };
                for (&to, &a) in rows.iter().zip(values.iter()) {
                    self.push(out, Op::Unary { f: Unary::Copy, to, a });
                }
                Root::Own(rows)
            }
            AddressSpace::WorkGroup => {
                let words = self.words(inner)?;
                let first = self.code.shared_words;
                self.code.shared.push(Shared { name, first, words });
                self.code.shared_words += words;
                self.code.shared_bytes += self.layouter[variable.ty].size.next_multiple_of(16);
                self.first_words.insert(handle, first);
                Root::Workgroup
            }
            AddressSpace::Storage { .. } | AddressSpace::Uniform => {
                let binding = variable.binding.ok_or_else(|| format!("{name} has no binding"))?;
                let writable = matches!(variable.space, AddressSpace::Storage { access } if access.contains(naga::StorageAccess::STORE));
                self.code.buffers.push(BufferUse {
                    group: binding.group,
                    binding: binding.binding,
                    writable,
                    uniform: variable.space == AddressSpace::Uniform,
                    least: u64::from(self.least_bytes(inner)?),
                    name,
                });
                Root::Buffer(self.code.buffers.len() - 1)
            }
            AddressSpace::Immediate => {
                self.code.immediate_bytes = self.least_bytes(inner)?;
                Root::Immediate
            }
            space => return Err(format!("{name} is in {space:?}, which is not implemented")),
        };
        self.globals.insert(handle, root);
        Ok(())
    }

    /// The built-in values that the entry point takes.
    fn arguments(&mut self, function: &Function) -> Result<Vec<Value>, Refusal> {
        let mut values = Vec::new();
        for argument in &function.arguments {
            let mut rows = Vec::new();
            match (&argument.binding, self.inner(argument.ty)) {
                (Some(binding), inner) => self.builtin(binding, inner, &mut rows)?,
                (None, TypeInner::Struct { members, .. }) => {
                    for member in members {
                        let binding = member.binding.as_ref().ok_or("an argument without a binding")?;
                        self.builtin(binding, self.inner(member.ty), &mut rows)?;
                    }
                }
                _ => return Err("an argument without a binding".into()),
            }
            values.push(Value::Rows(rows.into()));
        }
        Ok(values)
    }

    fn builtin(
        &mut self,
        binding: &naga::Binding,
        inner: &TypeInner,
        rows: &mut Vec<Row>,
    ) -> Result<(), Refusal> {
        let naga::Binding::BuiltIn(builtin) = binding else {
            return Err(format!("{binding:?} is not implemented"));
        };
        for part in 0..self.words(inner)? {
            let value = match builtin {
                BuiltIn::GlobalInvocationId => Builtin::GlobalInvocationId(part),
                BuiltIn::LocalInvocationId => Builtin::LocalInvocationId(part),
                BuiltIn::LocalInvocationIndex => Builtin::LocalInvocationIndex,
                BuiltIn::WorkGroupId => Builtin::WorkgroupId(part),
                BuiltIn::WorkGroupSize => Builtin::WorkgroupSize(part),
                BuiltIn::NumWorkGroups => Builtin::NumWorkgroups(part),
                BuiltIn::NumSubgroups => Builtin::NumSubgroups,
                BuiltIn::SubgroupId => Builtin::SubgroupId,
                BuiltIn::SubgroupSize => Builtin::SubgroupSize,
                BuiltIn::SubgroupInvocationId => Builtin::SubgroupInvocationId,
                other => return Err(format!("the built-in value {other:?} is not implemented")),
            };
            let row = self.fresh();
            self.code.builtins.push((row, value));
            rows.push(row);
        }
        Ok(())
    }

    /// The body of a function, called with `arguments`; what it returns goes to `result`.
    fn function(
        &mut self,
        function: &'a Function,
        info: &'a FunctionInfo,
        arguments: Vec<Value>,
        result: Arc<[Row]>,
    ) -> Result<Vec<Node>, Refusal> {
        self.scoped(|lowering| {
            let mut frame = Frame {
                function,
                info,
                values: vec![None; function.expressions.len()],
                arguments,
                locals: HashMap::new(),
                result,
            };
            let mut out = Vec::new();
            for (handle, variable) in function.local_variables.iter() {
                let words = lowering.words(lowering.inner(variable.ty))?;
                let rows = lowering.rows(words);
                let values = match variable.init {
                    Some(init) => lowering.rows_of(&mut frame, init)?,
                    None => vec![lowering.constant(0); words as usize].into(),
                };
                for (&to, &from) in rows.iter().zip(values.iter()) {
                    lowering.push(&mut out, Op::Set { to, from });
                }
                frame.locals.insert(handle, rows);
            }
            lowering.block(&mut frame, &function.body, &mut out)?;
            Ok(out)
        })
    }

    /// The rows of a constant expression of the module.
    fn global_expression(&mut self, handle: Handle<Expression>) -> Result<Arc<[Row]>, Refusal> {
        let expressions: &'a Arena<Expression> = &self.module.global_expressions;
        Ok(match &expressions[handle] {
            Expression::Literal(literal) => {
                let word = self.literal(literal)?;
                vec![self.constant(word)].into()
            }
            Expression::Constant(constant) => {
                return self.global_expression(self.module.constants[*constant].init);
            }
            Expression::ZeroValue(ty) => {
                let words = self.words(self.inner(*ty))?;
                vec![self.constant(0); words as usize].into()
            }
            Expression::Compose { components, .. } => {
                let mut rows = Vec::new();
                for &component in components {
                    rows.extend_from_slice(&self.global_expression(component)?);
                }
                rows.into()
            }
            Expression::Splat { size, value } => {
                let value = self.global_expression(*value)?;
                vec![value[0]; *size as usize].into()
            }
            other => return Err(format!("the constant expression {other:?} is not implemented")),
        })
    }
}
