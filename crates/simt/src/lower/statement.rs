//! Statements.

use super::{Frame, Lowering, Refusal, Value};
use crate::code::{Atomic, Binary, Case, Extent, Gather, Node, Op, Pointer, Root, Row, Unary};
use naga::{
    AtomicFunction, Barrier, Block, CollectiveOperation, Direction, Expression, GatherMode, Handle,
    ScalarKind, Statement, SubgroupOperation, SwitchValue,
};
use std::sync::Arc;

impl<'a> Lowering<'a> {
    pub(super) fn block(
        &mut self,
        frame: &mut Frame<'a>,
        block: &'a Block,
        out: &mut Vec<Node>,
    ) -> Result<(), Refusal> {
        for (statement, span) in block.span_iter() {
            self.at = place(span);
            self.statement(frame, statement, out)?;
        }
        Ok(())
    }

    fn inner_block(&mut self, frame: &mut Frame<'a>, block: &'a Block) -> Result<Vec<Node>, Refusal> {
        self.scoped(|lowering| {
            let mut out = Vec::new();
            lowering.block(frame, block, &mut out)?;
            Ok(out)
        })
    }

    fn statement(
        &mut self,
        frame: &mut Frame<'a>,
        statement: &'a Statement,
        out: &mut Vec<Node>,
    ) -> Result<(), Refusal> {
        match statement {
            Statement::Emit(range) => {
                for handle in range.clone() {
                    self.at = place(&frame.function.expressions.get_span(handle));
                    let value = self.evaluate(frame, handle, out)?;
                    frame.values[handle.index()] = Some(value);
                }
            }
            Statement::Block(block) => {
                let nodes = self.inner_block(frame, block)?;
                out.extend(nodes);
            }
            Statement::If { condition, accept, reject } => {
                let condition = self.scalar(frame, *condition)?;
                let accept = self.inner_block(frame, accept)?;
                let reject = self.inner_block(frame, reject)?;
                out.push(Node::If { condition, accept, reject });
            }
            Statement::Switch { selector, cases } => {
                let selector = self.scalar(frame, *selector)?;
                let mut lowered = Vec::new();
                for case in cases {
                    lowered.push(Case {
                        value: match case.value {
                            SwitchValue::I32(value) => Some(value as u32),
                            SwitchValue::U32(value) => Some(value),
                            SwitchValue::Default => None,
                        },
                        body: self.inner_block(frame, &case.body)?,
                        falls_through: case.fall_through,
                    });
                }
                out.push(Node::Switch { selector, cases: lowered });
            }
            Statement::Loop { body, continuing, break_if } => {
                let at = self.at;
                let node = self.scoped(|lowering| {
                    let mut nodes = Vec::new();
                    lowering.block(frame, body, &mut nodes)?;
                    let mut after = Vec::new();
                    lowering.block(frame, continuing, &mut after)?;
                    let break_if = match break_if {
                        Some(handle) => Some(lowering.scalar(frame, *handle)?),
                        None => None,
                    };
                    Ok(Node::Loop { body: nodes, continuing: after, break_if, at })
                })?;
                out.push(node);
            }
            Statement::Break => out.push(Node::Break),
            Statement::Continue => out.push(Node::Continue),
            Statement::Return { value } => {
                if let Some(value) = value {
                    let values = self.rows_of(frame, *value)?;
                    let result = frame.result.clone();
                    for (&to, &from) in result.iter().zip(values.iter()) {
                        self.push(out, Op::Set { to, from });
                    }
                }
                out.push(Node::Return);
            }
            Statement::ControlBarrier(barrier) => {
                if !(Barrier::WORK_GROUP | Barrier::STORAGE).contains(*barrier) {
                    return Err(format!("the barrier {barrier:?} is not implemented"));
                }
                let workgroup = barrier.contains(Barrier::WORK_GROUP);
                let storage = barrier.contains(Barrier::STORAGE);
                self.push(out, Op::Barrier { workgroup, storage });
            }
            Statement::Store { pointer, value } => self.store(frame, *pointer, *value, out)?,
            Statement::Atomic { pointer, fun, value, result } => {
                self.atomic(frame, *pointer, *fun, *value, *result, out)?;
            }
            Statement::WorkGroupUniformLoad { pointer, result } => {
                let barrier = Op::Barrier { workgroup: true, storage: false };
                self.push(out, barrier.clone());
                let loaded = self.load(frame, *pointer, out)?;
                let rows = self.rows(loaded.len() as u32);
                for (&a, &to) in loaded.iter().zip(rows.iter()) {
                    self.push(out, Op::Uniform { to, a });
                }
                self.push(out, barrier);
                frame.values[result.index()] = Some(Value::Rows(rows));
            }
            Statement::Call { function, arguments, result } => {
                let mut values = Vec::new();
                for &argument in arguments {
                    values.push(self.value(frame, argument)?);
                }
                let callee = &self.module.functions[*function];
                let words = match &callee.result {
                    Some(result) => self.words(self.inner(result.ty))?,
                    None => 0,
                };
                let rows = self.rows(words);
                let body = self.function(callee, &self.info[*function], values, rows.clone())?;
                out.push(Node::Call(body));
                if let Some(result) = result {
                    frame.values[result.index()] = Some(Value::Rows(rows));
                }
            }
            Statement::SubgroupBallot { result, predicate } => {
                let a = match predicate {
                    Some(handle) => Some(self.scalar(frame, *handle)?),
                    None => None,
                };
                let rows = self.rows(4);
                self.push(out, Op::Ballot { to: [rows[0], rows[1], rows[2], rows[3]], a });
                frame.values[result.index()] = Some(Value::Rows(rows));
            }
            Statement::SubgroupGather { mode, argument, result } => {
                let from = self.gather(frame, *mode)?;
                let values = self.rows_of(frame, *argument)?;
                let rows = self.rows(values.len() as u32);
                for (&a, &to) in values.iter().zip(rows.iter()) {
                    self.push(out, Op::Gather { from, to, a });
                }
                frame.values[result.index()] = Some(Value::Rows(rows));
            }
            Statement::SubgroupCollectiveOperation { op, collective_op, argument, result } => {
                let kind = self.kind(frame, *argument)?;
                let (f, empty) = collective(*op, kind)?;
                let extent = match collective_op {
                    CollectiveOperation::Reduce => Extent::All,
                    CollectiveOperation::InclusiveScan => Extent::Inclusive,
                    CollectiveOperation::ExclusiveScan => Extent::Exclusive,
                };
                let values = self.rows_of(frame, *argument)?;
                let rows = self.rows(values.len() as u32);
                for (&a, &to) in values.iter().zip(rows.iter()) {
                    self.push(out, Op::Collect { f, extent, empty, to, a });
                }
                let half = self.is_half(frame, *argument);
                let rows = if half { self.unary(out, Unary::ToF16, &rows) } else { rows };
                frame.values[result.index()] = Some(Value::Rows(rows));
            }
            other => return Err(format!("the statement {other:?} is not implemented")),
        }
        Ok(())
    }

    fn gather(&mut self, frame: &mut Frame<'a>, mode: GatherMode) -> Result<Gather, Refusal> {
        let mut row = |handle| self.scalar(frame, handle);
        Ok(match mode {
            GatherMode::BroadcastFirst => Gather::First,
            GatherMode::Broadcast(handle) => Gather::Broadcast(row(handle)?),
            GatherMode::Shuffle(handle) => Gather::Shuffle(row(handle)?),
            GatherMode::ShuffleDown(handle) => Gather::Down(row(handle)?),
            GatherMode::ShuffleUp(handle) => Gather::Up(row(handle)?),
            GatherMode::ShuffleXor(handle) => Gather::Xor(row(handle)?),
            GatherMode::QuadBroadcast(handle) => Gather::QuadBroadcast(row(handle)?),
            GatherMode::QuadSwap(Direction::X) => Gather::QuadSwap(1),
            GatherMode::QuadSwap(Direction::Y) => Gather::QuadSwap(2),
            GatherMode::QuadSwap(Direction::Diagonal) => Gather::QuadSwap(3),
        })
    }

    fn store(
        &mut self,
        frame: &mut Frame<'a>,
        pointer: Handle<Expression>,
        value: Handle<Expression>,
        out: &mut Vec<Node>,
    ) -> Result<(), Refusal> {
        let pointee = self.pointee(self.type_of(frame, pointer))?;
        let from = self.rows_of(frame, value)?;
        let to = self.pointer(frame, pointer)?;
        let parts = self.parts(&pointee, Self::arrangement(&to))?;
        if let (Root::Own(rows), true) = (&to.root, to.terms.is_empty()) {
            for (part, &from) in parts.iter().zip(from.iter()) {
                self.push(out, Op::Set { to: rows[(to.offset + part) as usize], from });
            }
            return Ok(());
        }
        self.push(out, Op::Store { to: Pointer::clone(&to), parts, from: from.to_vec() });
        Ok(())
    }

    pub(super) fn load(
        &mut self,
        frame: &mut Frame<'a>,
        pointer: Handle<Expression>,
        out: &mut Vec<Node>,
    ) -> Result<Arc<[Row]>, Refusal> {
        let pointee = self.pointee(self.type_of(frame, pointer))?;
        let from = self.pointer(frame, pointer)?;
        let parts = self.parts(&pointee, Self::arrangement(&from))?;
        let to = self.rows(parts.len() as u32);
        if let (Root::Own(rows), true) = (&from.root, from.terms.is_empty()) {
            for (part, &to) in parts.iter().zip(to.iter()) {
                self.push(out, Op::Unary { f: Unary::Copy, to, a: rows[(from.offset + part) as usize] });
            }
            return Ok(to);
        }
        self.push(out, Op::Load { to: to.to_vec(), parts, from: Pointer::clone(&from) });
        Ok(to)
    }

    fn atomic(
        &mut self,
        frame: &mut Frame<'a>,
        pointer: Handle<Expression>,
        fun: AtomicFunction,
        value: Handle<Expression>,
        result: Option<Handle<Expression>>,
        out: &mut Vec<Node>,
    ) -> Result<(), Refusal> {
        let kind = self.kind(frame, value)?;
        let at = self.pointer(frame, pointer)?;
        let value = self.scalar(frame, value)?;
        let signed = match kind {
            ScalarKind::Sint => true,
            ScalarKind::Uint => false,
            other => return Err(format!("atomics of type {other:?} are not implemented")),
        };
        let f = match fun {
            AtomicFunction::Add => Atomic::Combine(Binary::AddI),
            AtomicFunction::Subtract => Atomic::Combine(Binary::SubI),
            AtomicFunction::And => Atomic::Combine(Binary::And),
            AtomicFunction::ExclusiveOr => Atomic::Combine(Binary::Xor),
            AtomicFunction::InclusiveOr => Atomic::Combine(Binary::Or),
            AtomicFunction::Min => Atomic::Combine(if signed { Binary::MinI } else { Binary::MinU }),
            AtomicFunction::Max => Atomic::Combine(if signed { Binary::MaxI } else { Binary::MaxU }),
            AtomicFunction::Exchange { compare: None } => Atomic::Exchange,
            AtomicFunction::Exchange { compare: Some(compare) } => {
                Atomic::CompareExchange(self.scalar(frame, compare)?)
            }
        };
        let compares = matches!(f, Atomic::CompareExchange(_));
        let rows = self.rows(match result {
            Some(_) if compares => 2,
            Some(_) => 1,
            None => 0,
        });
        let (old, exchanged) = (rows.first().copied(), rows.get(1).copied());
        self.push(out, Op::Atomic { f, at: Pointer::clone(&at), value, old, exchanged });
        if let Some(result) = result {
            frame.values[result.index()] = Some(Value::Rows(rows));
        }
        Ok(())
    }
}

/// The operation of a collective and what it begins with.
fn collective(op: SubgroupOperation, kind: ScalarKind) -> Result<(Binary, u32), Refusal> {
    use ScalarKind::{Bool, Float, Sint, Uint};
    Ok(match (op, kind) {
        (SubgroupOperation::All, Bool) => (Binary::And, 1),
        (SubgroupOperation::Any, Bool) => (Binary::Or, 0),
        (SubgroupOperation::Add, Float) => (Binary::AddF, 0),
        (SubgroupOperation::Add, _) => (Binary::AddI, 0),
        (SubgroupOperation::Mul, Float) => (Binary::MulF, 1.0f32.to_bits()),
        (SubgroupOperation::Mul, _) => (Binary::MulI, 1),
        (SubgroupOperation::Min, Float) => (Binary::MinF, f32::INFINITY.to_bits()),
        (SubgroupOperation::Min, Uint) => (Binary::MinU, u32::MAX),
        (SubgroupOperation::Min, Sint) => (Binary::MinI, i32::MAX as u32),
        (SubgroupOperation::Max, Float) => (Binary::MaxF, f32::NEG_INFINITY.to_bits()),
        (SubgroupOperation::Max, Uint) => (Binary::MaxU, 0),
        (SubgroupOperation::Max, Sint) => (Binary::MaxI, i32::MIN as u32),
        (SubgroupOperation::And, Uint | Sint) => (Binary::And, u32::MAX),
        (SubgroupOperation::Or, Uint | Sint) => (Binary::Or, 0),
        (SubgroupOperation::Xor, Uint | Sint) => (Binary::Xor, 0),
        (op, kind) => return Err(format!("the subgroup operation {op:?} of {kind:?} is not implemented")),
    })
}

/// The first byte of a span, from 1.
fn place(span: &naga::Span) -> u32 {
    span.to_range().map_or(0, |range| range.start as u32 + 1)
}
