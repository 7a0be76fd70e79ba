//! Runs one thread of a compute shader and writes down what it touches.
//!
//! Storage holds what a function says, workgroup memory what this thread wrote; a subgroup's results are the
//! thread's own. That is enough where addresses follow from thread ids, sizes and storage, as they do here;
//! it computes nothing.

mod memory;

use super::arithmetic::{binary, math, relational, unary};
use super::value::{Number, Origin, Pointer, Root, Scalar, Value, access, compose, select};
use naga::{
    Binding, Block, BuiltIn, Expression, Function, GatherMode, GlobalVariable, Handle, Module, Statement,
};
use std::collections::HashMap;

/// A read of a variable in memory.
#[derive(Debug, Clone, Copy)]
pub struct Read {
    pub variable: Handle<GlobalVariable>,
    /// Of its first byte in the variable.
    pub at: u32,
    pub bytes: u32,
    /// What the index was made of.
    pub by: Origin,
}

/// Which thread runs.
#[derive(Debug, Clone, Copy)]
pub struct Thread {
    pub index: u32,
    pub workgroup: [u32; 3],
    pub subgroup_size: u32,
}

/// What a run touched.
#[derive(Debug, Default)]
pub struct Trace {
    pub reads: Vec<Read>,
    pub barriers: usize,
    /// Entries of other lanes, or of private and local tables, that were looked up by an index made of codes.
    pub asked: usize,
}

/// The word at a byte of a storage buffer, by the buffer's name.
pub type Contents<'a> = &'a dyn Fn(&str, u32) -> u32;

pub struct Machine<'a> {
    module: &'a Module,
    contents: Contents<'a>,
    thread: Thread,
    memory: HashMap<Root, Value>,
    constants: HashMap<Handle<Expression>, Value>,
    calls: usize,
    trace: Trace,
}

/// A call: its function and what its expressions came to.
struct Frame<'a> {
    call: usize,
    function: &'a Function,
    arguments: Vec<Value>,
    values: HashMap<Handle<Expression>, Value>,
}

enum Flow {
    Next,
    Break,
    Continue,
    Return(Option<Value>),
}

/// More steps than this are a loop without end.
const PATIENCE: usize = 1 << 22;

impl<'a> Machine<'a> {
    /// What `thread` touches from the entry point's start to its end. The module has no overrides left.
    pub fn run(module: &'a Module, contents: Contents<'a>, thread: Thread) -> Trace {
        let mut machine = Machine {
            module,
            contents,
            thread,
            memory: HashMap::new(),
            constants: HashMap::new(),
            calls: 0,
            trace: Trace::default(),
        };
        for (handle, _) in module.global_expressions.iter() {
            let value = machine.constant(handle);
            machine.constants.insert(handle, value);
        }
        let entry = &module.entry_points[0];
        let arguments = entry.function.arguments.iter().map(|argument| machine.builtin(argument)).collect();
        machine.call(&entry.function, arguments);
        machine.trace
    }

    fn builtin(&self, argument: &naga::FunctionArgument) -> Value {
        let Some(Binding::BuiltIn(builtin)) = argument.binding else {
            panic!("an argument without a builtin")
        };
        let size = self.module.entry_points[0].workgroup_size;
        let threads: u32 = size.iter().product();
        let Thread { index, workgroup, subgroup_size } = self.thread;
        let local = [index % size[0], index / size[0] % size[1], index / size[0] / size[1]];
        let vector = |values: [u32; 3]| Value::Many(values.into_iter().map(Value::u32).collect());
        match builtin {
            BuiltIn::LocalInvocationIndex => Value::u32(index),
            BuiltIn::LocalInvocationId => vector(local),
            BuiltIn::WorkGroupId => vector(workgroup),
            BuiltIn::GlobalInvocationId => {
                vector(std::array::from_fn(|axis| workgroup[axis] * size[axis] + local[axis]))
            }
            BuiltIn::NumWorkGroups => vector([64, 64, 64]),
            BuiltIn::SubgroupSize => Value::u32(subgroup_size),
            BuiltIn::SubgroupInvocationId => Value::u32(index % subgroup_size),
            BuiltIn::SubgroupId => Value::u32(index / subgroup_size),
            BuiltIn::NumSubgroups => Value::u32(threads.div_ceil(subgroup_size)),
            other => panic!("the builtin {other:?}"),
        }
    }

    fn constant(&self, handle: Handle<Expression>) -> Value {
        let known = |handle| self.constants.get(&handle).cloned().unwrap_or_else(|| self.constant(handle));
        match &self.module.global_expressions[handle] {
            Expression::Literal(literal) => Value::new(Number::of(*literal)),
            Expression::Constant(constant) => known(self.module.constants[*constant].init),
            Expression::ZeroValue(ty) => Value::zero(self.module, *ty),
            Expression::Compose { ty, components } => {
                compose(&self.module.types[*ty].inner, components.iter().map(|&one| known(one)).collect())
            }
            Expression::Splat { size, value } => Value::Many(vec![known(*value); *size as usize]),
            other => panic!("a constant {other:?}"),
        }
    }

    fn call(&mut self, function: &'a Function, arguments: Vec<Value>) -> Option<Value> {
        self.calls += 1;
        let mut frame = Frame { call: self.calls, function, arguments, values: HashMap::new() };
        // Where a local variable's initial value is an expression that no statement emits.
        for (handle, variable) in function.local_variables.iter() {
            let value = match variable.init {
                Some(init) => self.value(&mut frame, init),
                None => Value::zero(self.module, variable.ty),
            };
            self.memory.insert(Root::Local(frame.call, handle), value);
        }
        let result = match self.block(&mut frame, &function.body) {
            Flow::Return(value) => value,
            _ => None,
        };
        for (handle, _) in function.local_variables.iter() {
            self.memory.remove(&Root::Local(frame.call, handle));
        }
        result
    }

    fn block(&mut self, frame: &mut Frame<'a>, block: &'a Block) -> Flow {
        for statement in block.iter() {
            match self.statement(frame, statement) {
                Flow::Next => {}
                other => return other,
            }
        }
        Flow::Next
    }

    fn truth(&mut self, frame: &mut Frame<'a>, condition: Handle<Expression>) -> bool {
        self.value(frame, condition).scalar().number == Number::Bool(true)
    }

    fn statement(&mut self, frame: &mut Frame<'a>, statement: &'a Statement) -> Flow {
        match statement {
            Statement::Emit(range) => {
                for handle in range.clone() {
                    frame.values.remove(&handle);
                    let value = self.expression(frame, handle);
                    frame.values.insert(handle, value);
                }
            }
            Statement::Block(block) => return self.block(frame, block),
            Statement::If { condition, accept, reject } => {
                let block = if self.truth(frame, *condition) { accept } else { reject };
                return self.block(frame, block);
            }
            Statement::Switch { selector, cases } => return self.switch(frame, *selector, cases),
            Statement::Loop { body, continuing, break_if } => {
                for turn in 0.. {
                    assert!(turn < PATIENCE, "a loop without end");
                    match self.block(frame, body) {
                        Flow::Break => break,
                        Flow::Return(value) => return Flow::Return(value),
                        Flow::Next | Flow::Continue => {}
                    }
                    self.block(frame, continuing);
                    if break_if.is_some_and(|condition| self.truth(frame, condition)) {
                        break;
                    }
                }
            }
            Statement::Break => return Flow::Break,
            Statement::Continue => return Flow::Continue,
            Statement::Return { value } => {
                return Flow::Return(value.map(|value| self.value(frame, value)));
            }
            Statement::ControlBarrier(_) => self.trace.barriers += 1,
            Statement::MemoryBarrier(_) => {}
            Statement::Store { pointer, value } => {
                let (pointer, value) = (self.pointer(frame, *pointer), self.value(frame, *value));
                self.store(&pointer, value);
            }
            Statement::Call { function, arguments, result } => {
                let arguments = arguments.iter().map(|&one| self.value(frame, one)).collect();
                let module = self.module;
                let value = self.call(&module.functions[*function], arguments);
                if let (Some(result), Some(value)) = (result, value) {
                    frame.values.insert(*result, value);
                }
            }
            Statement::WorkGroupUniformLoad { pointer, result } => {
                self.trace.barriers += 2;
                let value = self.load(frame, *pointer);
                frame.values.insert(*result, value);
            }
            Statement::Atomic { pointer, result, .. } => {
                let value = self.load(frame, *pointer);
                result.map(|result| frame.values.insert(result, value));
            }
            Statement::SubgroupCollectiveOperation { argument, result, .. } => {
                let value = self.value(frame, *argument);
                frame.values.insert(*result, value);
            }
            Statement::SubgroupGather { mode, argument, result } => {
                let mut value = self.value(frame, *argument);
                if let GatherMode::Shuffle(lane) | GatherMode::ShuffleXor(lane) = mode {
                    let by = self.value(frame, *lane).origin();
                    self.trace.asked += usize::from(by.codes);
                    value = value.tinted(by);
                }
                frame.values.insert(*result, value);
            }
            other => panic!("the statement {other:?}: add it"),
        }
        Flow::Next
    }

    fn switch(
        &mut self,
        frame: &mut Frame<'a>,
        selector: Handle<Expression>,
        cases: &'a [naga::SwitchCase],
    ) -> Flow {
        let chosen = self.value(frame, selector).index();
        let fits = |case: &naga::SwitchCase| match case.value {
            naga::SwitchValue::U32(value) => value == chosen,
            naga::SwitchValue::I32(value) => value as u32 == chosen,
            naga::SwitchValue::Default => false,
        };
        let default = cases.iter().position(|case| case.value == naga::SwitchValue::Default);
        let Some(first) = cases.iter().position(fits).or(default) else { return Flow::Next };
        for case in &cases[first..] {
            match self.block(frame, &case.body) {
                Flow::Break => return Flow::Next,
                Flow::Next if case.fall_through => {}
                other => return other,
            }
        }
        Flow::Next
    }

    fn value(&mut self, frame: &mut Frame<'a>, handle: Handle<Expression>) -> Value {
        if let Some(value) = frame.values.get(&handle) {
            return value.clone();
        }
        // Constants, arguments and variables are emitted by no statement and always the same.
        let value = self.expression(frame, handle);
        frame.values.insert(handle, value.clone());
        value
    }

    fn pointer(&mut self, frame: &mut Frame<'a>, handle: Handle<Expression>) -> Pointer {
        match self.value(frame, handle) {
            Value::Pointer(pointer) => pointer,
            other => panic!("{other:?} is no pointer"),
        }
    }

    fn expression(&mut self, frame: &mut Frame<'a>, handle: Handle<Expression>) -> Value {
        let variable = |root| Value::Pointer(Pointer { root, path: Vec::new(), origin: Origin::default() });
        match frame.function.expressions[handle] {
            Expression::Literal(literal) => Value::new(Number::of(literal)),
            Expression::Constant(constant) => self.constant(self.module.constants[constant].init),
            Expression::ZeroValue(ty) => Value::zero(self.module, ty),
            Expression::Compose { ty, ref components } => {
                let components = components.iter().map(|&one| self.value(frame, one)).collect();
                compose(&self.module.types[ty].inner, components)
            }
            Expression::Access { base, index } => {
                let (base, index) = (self.value(frame, base), self.value(frame, index));
                access(base, index.index(), index.origin())
            }
            Expression::AccessIndex { base, index } => {
                access(self.value(frame, base), index, Origin::default())
            }
            Expression::Splat { size, value } => Value::Many(vec![self.value(frame, value); size as usize]),
            Expression::Swizzle { size, vector, pattern } => {
                let vector = self.value(frame, vector);
                let chosen = pattern[..size as usize].iter().map(|&one| vector.many()[one as usize].clone());
                Value::Many(chosen.collect())
            }
            Expression::FunctionArgument(index) => frame.arguments[index as usize].clone(),
            Expression::GlobalVariable(handle) => variable(Root::Global(handle)),
            Expression::LocalVariable(handle) => variable(Root::Local(frame.call, handle)),
            Expression::Load { pointer } => self.load(frame, pointer),
            Expression::Unary { op, expr } => unary(op, self.value(frame, expr)),
            Expression::Binary { op, left, right } => {
                let (left, right) = (self.value(frame, left), self.value(frame, right));
                binary(op, &left, &right)
            }
            Expression::Select { condition, accept, reject } => {
                let condition = self.value(frame, condition);
                let (accept, reject) = (self.value(frame, accept), self.value(frame, reject));
                select(&condition, accept, reject)
            }
            Expression::Relational { fun, argument } => relational(fun, &self.value(frame, argument)),
            Expression::Math { fun, arg, arg1, arg2, arg3 } => {
                let arguments: Vec<Value> = [Some(arg), arg1, arg2, arg3]
                    .into_iter()
                    .flatten()
                    .map(|one| self.value(frame, one))
                    .collect();
                math(fun, &arguments)
            }
            Expression::As { expr, kind, convert } => self.value(frame, expr).map(&mut |scalar| {
                let number = match convert {
                    Some(_) => scalar.number.to(kind),
                    None => Number::of_bits(kind, scalar.number.bits()),
                };
                Scalar { number, ..scalar }
            }),
            Expression::ArrayLength(_) => Value::u32(1 << 20),
            ref other => panic!("the expression {other:?}: add it"),
        }
    }
}
