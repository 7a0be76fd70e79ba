//! Control flow: which lanes run what.

use super::arithmetic;
use super::memory::Store;
use super::shadow::SharedWord;
use crate::code::{Builtin, Case, Code, Node, Op, Row};
use crate::finding::{Findings, Kind, Place, Source};
use crate::lanes::Lanes;

/// Rounds that the loops of one workgroup may take: more than any kernel needs, few enough to wait for.
const MOST_ROUNDS: u64 = 1 << 20;

/// What uninitialized memory holds: a NaN, or an index far out of bounds.
const POISON: u32 = 0x7fc0_dead;

/// A run that was given up; a finding says why.
#[derive(Debug)]
pub(crate) struct Stopped;

/// A binding: a part of a store.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bound {
    pub(crate) store: usize,
    /// The first word.
    pub(crate) first: u32,
    pub(crate) words: u32,
}

/// A dispatch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grid {
    pub(crate) size: [u32; 3],
    /// Tells dispatches apart, from 1.
    pub(crate) serial: u32,
    /// Lanes of a subgroup.
    pub(crate) subgroup: usize,
    /// Whether workgroup memory begins with zeros.
    pub(crate) zeroed: bool,
}

/// The state of a dispatch.
pub(crate) struct Machine<'a> {
    pub(super) code: &'a Code,
    pub(super) source: &'a Source,
    pub(super) findings: &'a mut Findings,
    pub(super) stores: &'a mut [Store],
    pub(super) bound: &'a [Bound],
    pub(super) immediates: &'a [u32],
    pub(super) grid: Grid,
    pub(super) rows: Vec<Vec<u32>>,
    /// All lanes of the workgroup.
    pub(super) all: Lanes,
    pub(super) shared: Vec<u32>,
    pub(super) shadow: Vec<SharedWord>,
    /// Workgroup barriers passed so far.
    pub(super) epoch: u64,
    /// The epoch in which this workgroup began.
    pub(super) first_epoch: u64,
    /// Storage barriers that this workgroup has passed.
    pub(super) storage_epoch: u32,
    /// Its number, x fastest.
    pub(super) workgroup: u32,
    /// Word addresses of the operation at hand.
    pub(super) address: Vec<u32>,
    breaks: Vec<Lanes>,
    continues: Vec<Lanes>,
    rounds: u64,
    operations: u64,
}

impl<'a> Machine<'a> {
    /// A machine for one dispatch of `code` over `stores`, of which `bound` are bound.
    pub(crate) fn new(
        code: &'a Code,
        source: &'a Source,
        findings: &'a mut Findings,
        stores: &'a mut [Store],
        bound: &'a [Bound],
        immediates: &'a [u32],
        grid: Grid,
    ) -> Self {
        let lanes = code.size.iter().product::<u32>() as usize;
        let mut rows = vec![vec![0; lanes]; code.rows as usize];
        for &(row, word) in &code.constants {
            rows[row as usize].fill(word);
        }
        Self {
            code,
            source,
            findings,
            stores,
            bound,
            immediates,
            grid,
            rows,
            all: Lanes::first(lanes),
            shared: vec![0; code.shared_words as usize],
            shadow: vec![SharedWord::default(); code.shared_words as usize],
            epoch: 0,
            first_epoch: 1,
            storage_epoch: 0,
            workgroup: 0,
            address: vec![0; lanes],
            breaks: Vec::new(),
            continues: Vec::new(),
            rounds: 0,
            operations: 0,
        }
    }

    /// Runs workgroup `id`.
    pub(crate) fn run(&mut self, id: [u32; 3]) -> Result<(), Stopped> {
        let [x, y, _] = self.grid.size;
        self.workgroup = (id[2] * y + id[1]) * x + id[0];
        self.epoch += 1;
        self.first_epoch = self.epoch;
        self.storage_epoch = 0;
        self.rounds = 0;
        self.shared.fill(if self.grid.zeroed { 0 } else { POISON });
        for &(row, builtin) in &self.code.builtins {
            let (size, grid) = (self.code.size, self.grid);
            let lanes = self.all.count();
            let mut values = std::mem::take(&mut self.rows[row as usize]);
            for (lane, value) in values.iter_mut().enumerate() {
                *value = builtin_value(builtin, lane as u32, lanes, size, id, grid);
            }
            self.rows[row as usize] = values;
        }
        let mut live = self.all;
        let code = self.code;
        self.nodes(&code.body, &mut live)
    }

    /// Operations so far, each counted for every lane that took part.
    pub(crate) fn operations(&self) -> u64 {
        self.operations
    }

    fn nodes(&mut self, nodes: &'a [Node], live: &mut Lanes) -> Result<(), Stopped> {
        for node in nodes {
            if live.is_empty() {
                return Ok(());
            }
            match node {
                Node::Op(op, at) => {
                    self.operations += live.count() as u64;
                    self.op(op, live, *at);
                }
                Node::If { condition, accept, reject } => {
                    let mut taken = self.test(*condition, live);
                    let mut left = live.without(&taken);
                    self.nodes(accept, &mut taken)?;
                    self.nodes(reject, &mut left)?;
                    *live = taken.or(&left);
                }
                Node::Switch { selector, cases } => self.switch(*selector, cases, live)?,
                Node::Loop { body, continuing, break_if, at } => {
                    self.repeat(body, continuing, *break_if, live, *at)?;
                }
                Node::Call(body) => {
                    let mut inside = *live;
                    self.nodes(body, &mut inside)?;
                }
                Node::Break => {
                    if let Some(broken) = self.breaks.last_mut() {
                        *broken = broken.or(live);
                    }
                    *live = Lanes::default();
                }
                Node::Continue => {
                    if let Some(continued) = self.continues.last_mut() {
                        *continued = continued.or(live);
                    }
                    *live = Lanes::default();
                }
                Node::Return => *live = Lanes::default(),
            }
        }
        Ok(())
    }

    /// Those of `live` in which `row` is true.
    fn test(&self, row: Row, live: &Lanes) -> Lanes {
        let row = &self.rows[row as usize];
        live.filter(|lane| row[lane] != 0)
    }

    fn switch(&mut self, selector: Row, cases: &'a [Case], live: &mut Lanes) -> Result<(), Stopped> {
        let row = self.rows[selector as usize].clone();
        let named = live.filter(|lane| cases.iter().any(|case| case.value == Some(row[lane])));
        self.breaks.push(Lanes::default());
        let (mut done, mut fallen) = (Lanes::default(), Lanes::default());
        for case in cases {
            let own = match case.value {
                Some(value) => live.filter(|lane| row[lane] == value),
                None => live.without(&named),
            };
            let mut inside = own.or(&fallen);
            self.nodes(&case.body, &mut inside)?;
            fallen = Lanes::default();
            if case.falls_through {
                fallen = inside;
            } else {
                done = done.or(&inside);
            }
        }
        let broken = self.breaks.pop().unwrap_or_default();
        *live = done.or(&fallen).or(&broken);
        Ok(())
    }

    fn repeat(
        &mut self,
        body: &'a [Node],
        continuing: &'a [Node],
        break_if: Option<Row>,
        live: &mut Lanes,
        at: Place,
    ) -> Result<(), Stopped> {
        self.breaks.push(Lanes::default());
        let mut inside = *live;
        let mut ended = Lanes::default();
        while !inside.is_empty() {
            self.rounds += 1;
            if self.rounds > MOST_ROUNDS {
                let workgroup = self.workgroup;
                self.findings.add(self.source, at, Kind::Runaway, || {
                    format!("{inside} of workgroup {workgroup} after {MOST_ROUNDS} rounds")
                });
                return Err(Stopped);
            }
            self.continues.push(Lanes::default());
            self.nodes(body, &mut inside)?;
            inside = inside.or(&self.continues.pop().unwrap_or_default());
            self.nodes(continuing, &mut inside)?;
            if let Some(row) = break_if {
                let leaving = self.test(row, &inside);
                ended = ended.or(&leaving);
                inside = inside.without(&leaving);
            }
        }
        *live = ended.or(&self.breaks.pop().unwrap_or_default());
        Ok(())
    }

    fn op(&mut self, op: &'a Op, live: &Lanes, at: Place) {
        let range = live.range();
        match op {
            Op::Unary { f, to, a } => {
                let mut out = std::mem::take(&mut self.rows[*to as usize]);
                arithmetic::unary(*f, &mut out[range.clone()], &self.rows[*a as usize][range]);
                self.rows[*to as usize] = out;
            }
            Op::Binary { f, to, a, b } => {
                let mut out = std::mem::take(&mut self.rows[*to as usize]);
                let (left, right) = (&self.rows[*a as usize], &self.rows[*b as usize]);
                arithmetic::binary(*f, &mut out[range.clone()], &left[range.clone()], &right[range.clone()]);
                if arithmetic::can_break(*f) && right[range].iter().any(|&b| arithmetic::is_broken(*f, b)) {
                    let broken = live.filter(|lane| arithmetic::is_broken(*f, right[lane]));
                    if let Some(lane) = broken.lowest() {
                        let (f, b, workgroup) = (*f, right[lane], self.workgroup);
                        self.findings.add(self.source, at, Kind::Arithmetic, || {
                            format!("{f:?} by {b} in lane {lane} of workgroup {workgroup}")
                        });
                    }
                }
                self.rows[*to as usize] = out;
            }
            Op::Ternary { f, to, a, b, c } => {
                let mut out = std::mem::take(&mut self.rows[*to as usize]);
                let row = |row: &Row| &self.rows[*row as usize][range.clone()];
                arithmetic::ternary(*f, &mut out[range.clone()], row(a), row(b), row(c));
                self.rows[*to as usize] = out;
            }
            Op::Set { to, from } => {
                let mut out = std::mem::take(&mut self.rows[*to as usize]);
                let from = &self.rows[*from as usize];
                if live.is_dense() {
                    out[range.clone()].copy_from_slice(&from[range]);
                } else {
                    live.each(|lane| out[lane] = from[lane]);
                }
                self.rows[*to as usize] = out;
            }
            Op::Pick { to, from, index, bound, what } => self.pick(to, from, *index, *bound, what, live, at),
            Op::Load { to, parts, from } => self.load(to, parts, from, live, at),
            Op::Store { to, parts, from } => self.store(to, parts, from, live, at),
            Op::Length { to, buffer, first, stride } => {
                let words = self.bound[*buffer].words;
                self.rows[*to as usize].fill(words.saturating_sub(*first) / stride);
            }
            Op::Atomic { f, at: pointer, value, old, exchanged } => {
                self.atomic(*f, pointer, *value, *old, *exchanged, live, at);
            }
            Op::Collect { f, extent, empty, to, a } => {
                self.collect(*f, *extent, *empty, *to, *a, live, at);
            }
            Op::Gather { from, to, a } => self.gather(*from, *to, *a, live, at),
            Op::Ballot { to, a } => self.ballot(to, *a, live, at),
            Op::Uniform { to, a } => {
                let row = &self.rows[*a as usize];
                let value = live.lowest().map_or(0, |lane| row[lane]);
                if let Some(lane) = live.filter(|lane| row[lane] != value).lowest() {
                    let (found, workgroup) = (row[lane], self.workgroup);
                    self.findings.add(self.source, at, Kind::NotUniform, || {
                        format!("{found:#x} in lane {lane} of workgroup {workgroup}, {value:#x} in another")
                    });
                }
                self.rows[*to as usize].fill(value);
            }
            Op::Barrier { workgroup, storage } => {
                if *live != self.all {
                    let (missing, id) = (self.all.without(live), self.workgroup);
                    self.findings.add(self.source, at, Kind::DivergentBarrier, || {
                        format!("{missing} of workgroup {id} do not come")
                    });
                }
                self.epoch += u64::from(*workgroup);
                self.storage_epoch += u32::from(*storage);
            }
        }
    }
}

fn builtin_value(builtin: Builtin, lane: u32, lanes: usize, size: [u32; 3], id: [u32; 3], grid: Grid) -> u32 {
    let local = |axis: u32| match axis {
        0 => lane % size[0],
        1 => lane / size[0] % size[1],
        _ => lane / (size[0] * size[1]),
    };
    let subgroup = grid.subgroup as u32;
    match builtin {
        Builtin::GlobalInvocationId(axis) => id[axis as usize] * size[axis as usize] + local(axis),
        Builtin::LocalInvocationId(axis) => local(axis),
        Builtin::LocalInvocationIndex => lane,
        Builtin::WorkgroupId(axis) => id[axis as usize],
        Builtin::WorkgroupSize(axis) => size[axis as usize],
        Builtin::NumWorkgroups(axis) => grid.size[axis as usize],
        Builtin::NumSubgroups => (lanes as u32).div_ceil(subgroup),
        Builtin::SubgroupId => lane / subgroup,
        Builtin::SubgroupSize => subgroup,
        Builtin::SubgroupInvocationId => lane % subgroup,
    }
}
