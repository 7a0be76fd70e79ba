//! A compiled stretch: registers, the steps in order, and the checks before them.

use crate::bound::{self, AttendView, BoundStep, EmbedView, Epilogue, OneRow, PreView, Product};
use crate::buffer::{Shortage, reserved, zeroed};
use crate::layout::{PASS_ROWS, Sizes};
use crate::matrix::Matrix;
use crate::profile::Clock;
use crate::request::{Limits, Span, spans};
use crate::scratch::Scratch;
use crate::slots::Shared;
use crate::sweep::Sweep;
use crate::team::{Forget, Team};
use crate::unscanned::{self, Unscanned};
use halfbyte_backend::{
    Answer, Attend, Caps, Fault, Fut, Input, Ledger, Output, Program, Reg, Rows, Sampler, StepCost, Ticket,
    argmax,
};
use std::collections::BTreeMap;
use std::future::ready;
use std::rc::Rc;
use std::sync::Arc;

/// The work of each step, as the scalar reference and the fast kernels both do it. Slices hold exactly
/// the rows of one pass.
pub(crate) trait Kernels: Send + Sync {
    /// Whether matrices are to be held for it in the form for products in bytes.
    fn in_bytes(&self) -> bool {
        false
    }

    /// Looks rows up: `out` is `[rows, hidden]`.
    fn embed(&self, team: &Team, view: &EmbedView<'_>, out: &mut [f32]);

    /// Prepares the input of a product: `x` is `[rows, padded(width)]`, its padding zero; `emitted` is
    /// `[rows, width]`, empty if nothing is emitted.
    fn pre(&self, team: &Team, view: &PreView<'_>, x: &mut [f32], emitted: &mut [f32]);

    /// Multiplies: `x` is `[rows, padded(cols)]` and may be reordered; `y` is `[layer rows, rows]`. The
    /// results of gated pairs are left in the even layer rows.
    fn product(&self, team: &Team, product: Product<'_>, x: &mut [f32], y: &mut [f32], scratch: &Scratch);

    /// Whether [`one_row`](Self::one_row) multiplies with `weight`.
    fn takes_one_row(&self, _weight: &Matrix, _epilogue: &Epilogue) -> bool {
        false
    }

    /// Multiplies one row and puts the results in place at once: nobody has to fetch them from the caches of the threads
    /// that made them. Only for what [`takes_one_row`](Self::takes_one_row) takes.
    fn one_row(&self, _team: &Team, _row: OneRow<'_>, _scratch: &Scratch) {}

    /// Attends: `qkv` is `[rows, (heads + 2 kv_heads) * head_dim]` and is overwritten, `out` is
    /// `[rows, heads * head_dim]`.
    fn attend(
        &self,
        team: &Team,
        view: &AttendView<'_>,
        cache: Option<&mut crate::cache::Cache>,
        qkv: &mut [f32],
        out: &mut [f32],
    );

    /// Transposes `y`, `[layer rows, rows]`, into columns `at..` of `out`, `[rows, width]`, taking every
    /// `step`-th layer row, and adds them to `residual`: `None` overwrites, `Some(&[])` adds to `out`
    /// itself.
    #[expect(clippy::too_many_arguments, reason = "a product's parts")]
    fn place(
        &self,
        team: &Team,
        y: &[f32],
        step: usize,
        at: usize,
        residual: Option<&[f32]>,
        rows: usize,
        out: &mut [f32],
    );
}

/// A program on the CPU.
pub(crate) struct CpuProgram {
    kernels: &'static dyn Kernels,
    state: State,
    /// Of a program whose matrices stay in their files.
    sweep: Option<Sweep>,
    held: Held,
}

/// Rows in the ledger that last as long as this value.
pub(crate) struct Held {
    ledger: Rc<Ledger>,
    tickets: Vec<u64>,
}

impl Held {
    /// The rows of `tickets`.
    pub fn new(ledger: Rc<Ledger>, tickets: Vec<u64>) -> Self {
        Self { ledger, tickets }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.tickets.iter().for_each(|&ticket| self.ledger.strike(ticket));
    }
}

/// Everything that a submission reads and writes.
pub(crate) struct State {
    /// The threads that do the work.
    pub(crate) team: Arc<Team>,
    steps: Vec<BoundStep>,
    caps: Caps,
    limits: Limits,
    widths: Vec<usize>,
    inputs: Vec<Reg>,
    outputs: Vec<Reg>,
    /// `[caps.rows, width]` each.
    pub(crate) registers: Vec<Vec<f32>>,
    /// Inputs of a product, `[pass rows, padded columns]`.
    pub(crate) x: Vec<f32>,
    /// Results of a product, `[layer rows, pass rows]`.
    pub(crate) y: Vec<f32>,
    /// What products need beside these.
    pub(crate) scratch: Scratch,
    /// See [`Sizes::experts`].
    pub(crate) experts: Vec<f32>,
    /// The experts that the last mixture chose for any row, of as many as the largest mixture has.
    pub(crate) used: Vec<bool>,
    /// `[outputs, vocabulary]`
    pub(crate) logits: Vec<f32>,
    /// What the last [`Output::Greedy`] or [`Output::Sample`] chose.
    chosen: Vec<u32>,
    /// Draws them.
    sampler: Sampler,
    /// What each sequence has seen, as [`Draw`](halfbyte_backend::Draw) says.
    seen: BTreeMap<u32, Vec<u32>>,
    /// Token of each row.
    tokens: Vec<u32>,
    /// Sequence of each row.
    spans: Vec<Span>,
    done: (u64, u64),
    /// Steps whose results say whether their weights are numbers, where these stay in files.
    unscanned: Unscanned,
}

impl State {
    /// Allocates the buffers of a stretch and takes its steps.
    pub fn new(
        stretch: &halfbyte_backend::Stretch,
        steps: Vec<BoundStep>,
        caps: Caps,
        sizes: &Sizes,
        team: Arc<Team>,
    ) -> Result<Self, Shortage> {
        let floats = |len: &usize| zeroed::<f32>(*len);
        let mut state = Self {
            limits: Limits::of(&steps),
            unscanned: Unscanned::of(&steps),
            used: vec![false; steps.iter().map(BoundStep::experts).max().unwrap_or(0)],
            steps,
            caps,
            widths: stretch.widths.clone(),
            inputs: stretch.inputs.clone(),
            outputs: stretch.outputs.clone(),
            registers: sizes.registers.iter().map(floats).collect::<Result<_, _>>()?,
            x: zeroed(sizes.inputs)?,
            y: zeroed(sizes.results)?,
            scratch: Scratch::reserve(sizes, team.threads())?,
            experts: zeroed(sizes.experts)?,
            logits: zeroed(sizes.logits)?,
            chosen: zeroed(sizes.chosen)?,
            sampler: Sampler::over(reserved(sizes.candidates)?),
            seen: BTreeMap::new(),
            tokens: zeroed(sizes.rows)?,
            spans: zeroed(sizes.rows)?,
            done: (0, 0),
            team,
        };
        state.chosen.clear();
        Ok(state)
    }

    pub(crate) fn width(&self, reg: Reg) -> usize {
        self.widths[usize::from(reg.0)]
    }

    /// Checks a submission, runs its steps and collects its answer. `after` is called after each step.
    fn run(
        &mut self,
        rows: &Rows<'_>,
        kernels: &dyn Kernels,
        mut sweep: Option<&mut Sweep>,
        mut after: impl FnMut(usize, &[BoundStep]),
    ) -> Result<Answer, Fault> {
        self.admit(rows)?;
        // Matrices stay where they are as long as this runs, and no longer.
        let _forget = Forget(self.team.clone());
        if let Some(sweep) = &mut sweep {
            sweep.begin();
        }
        for index in 0..self.steps.len() {
            self.step(index, rows, kernels);
            after(index, &self.steps);
            if let Some(sweep) = &mut sweep {
                self.check_result(index, rows)?;
                sweep.done_with(index, &self.used);
            }
            self.done.0 += 1;
        }
        self.done.1 += 1;
        self.answer(rows)
    }

    /// Refuses a weight in a file that has spoilt the result of step `index`.
    fn check_result(&mut self, index: usize, rows: &Rows<'_>) -> Result<(), Fault> {
        let step = &self.steps[index];
        let result = match unscanned::result(step) {
            Some(reg) => &self.registers[usize::from(reg.0)][..rows.places.len() * self.width(reg)],
            None => &self.logits[..rows.output.rows().len() * self.limits.vocabulary],
        };
        self.unscanned.check(index, step, result)
    }

    /// Refuses what contradicts the program, before anything is changed; then takes the input in.
    fn admit(&mut self, rows: &Rows<'_>) -> Result<(), Fault> {
        let input_width = self.inputs.iter().map(|&reg| self.width(reg)).sum();
        rows.check(&self.caps, input_width)?;
        let count = rows.places.len();
        if rows.output.wants_head() && !self.limits.head {
            return Err(Fault::Invalid("logits of a program without an output head".into()));
        }
        let tokens = match rows.input {
            Input::Tokens(tokens) => Some(tokens),
            Input::Chosen if self.chosen.len() < count => {
                let chosen = self.chosen.len();
                return Err(Fault::Invalid(format!("{count} rows take the {chosen} tokens chosen last")));
            }
            Input::Chosen => Some(&self.chosen[..count]),
            Input::Hidden(_) => None,
        };
        self.limits.check(tokens, rows.places, !self.inputs.is_empty())?;
        spans(rows.places, &mut self.spans[..count])?;

        for (register, width) in self.registers.iter_mut().zip(&self.widths) {
            register[..count * width].fill(0.0);
        }
        match rows.input {
            Input::Tokens(tokens) => self.tokens[..count].copy_from_slice(tokens),
            Input::Chosen => self.tokens[..count].copy_from_slice(&self.chosen[..count]),
            Input::Hidden(mut values) => {
                for reg in &self.inputs {
                    let (now, later) = values.split_at(count * self.widths[usize::from(reg.0)]);
                    self.registers[usize::from(reg.0)][..now.len()].copy_from_slice(now);
                    values = later;
                }
            }
        }
        Ok(())
    }

    fn step(&mut self, index: usize, rows: &Rows<'_>, kernels: &dyn Kernels) {
        let count = rows.places.len();
        // The steps leave while one of them runs, so that it can borrow the buffers beside it.
        let steps = std::mem::take(&mut self.steps);
        // After the last step comes the next token.
        let next = steps[index + 1..].iter().chain(&steps[..index]).find_map(BoundStep::matrix);
        let guard = next.filter(|_| count == 1).map(Shared::read);
        let next = guard.as_deref();
        match &steps[index] {
            BoundStep::Embed { step, table, positions, types, norm } => {
                let mut out = self.take(step.out);
                let (table, norm) = (table.read(), bound::lock(norm));
                let positions = positions.as_ref().map(|matrix| matrix.read());
                let types = types.as_ref().map(|matrix| matrix.read());
                let view = EmbedView {
                    table: &table,
                    scale: step.scale,
                    positions: positions.as_deref().zip(step.positions).map(|(m, (_, first))| (m, first)),
                    types: types.as_deref(),
                    norm: bound::view(&norm),
                    tokens: &self.tokens[..count],
                    places: rows.places,
                };
                kernels.embed(&self.team, &view, &mut out[..count * self.width(step.out)]);
                self.put(step.out, out);
            }
            BoundStep::Linear { step, pre, weight } => {
                self.linear(step, pre, (&weight.read(), next), count, kernels);
            }
            BoundStep::Attend { step, cache, rope, q_norm, k_norm } => {
                let (q_norm, k_norm) = (bound::lock(q_norm), bound::lock(k_norm));
                let rope = rope.as_ref().map(|table| table.read());
                let mut cache = cache.as_ref().map(|cache| cache.write());
                let (mut qkv, mut out) = (self.take(step.qkv), self.take(step.out));
                let view = AttendView {
                    step,
                    rope: rope.as_deref().zip(step.rope).map(|(table, rope)| (table, rope.dim, rope.pairing)),
                    q_norm: bound::view(&q_norm),
                    k_norm: bound::view(&k_norm),
                    places: rows.places,
                    spans: &self.spans[..count],
                };
                let Attend { heads, head_dim, .. } = *step;
                let qkv_rows = &mut qkv[..count * view.width()];
                kernels.attend(
                    &self.team,
                    &view,
                    cache.as_deref_mut(),
                    qkv_rows,
                    &mut out[..count * heads * head_dim],
                );
                self.put(step.qkv, qkv);
                self.put(step.out, out);
            }
            BoundStep::Moe { step, pre, router, experts } => {
                self.used.fill(false);
                for first in (0..count).step_by(PASS_ROWS) {
                    let rows = PASS_ROWS.min(count - first);
                    self.experts(step, pre, &router.read(), experts, first, rows, kernels);
                }
            }
            BoundStep::Head { step, pre, weight } => {
                self.head(step, pre, (&weight.read(), next), count, rows.output.rows(), kernels);
            }
        }
        drop(guard);
        self.steps = steps;
    }

    fn answer(&mut self, rows: &Rows<'_>) -> Result<Answer, Fault> {
        let count = rows.places.len();
        match rows.output {
            Output::Nothing => Ok(Answer::Nothing),
            Output::Hidden => {
                let len = self.outputs.iter().map(|&reg| count * self.width(reg)).sum();
                let mut values = answer_buffer(len)?;
                for &reg in &self.outputs {
                    let register = &self.registers[usize::from(reg.0)];
                    values.extend_from_slice(&register[..count * self.width(reg)]);
                }
                Ok(Answer::Hidden(values))
            }
            Output::Logits(wanted) => {
                let logits = &self.logits[..wanted.len() * self.limits.vocabulary];
                let mut values = answer_buffer(logits.len())?;
                values.extend_from_slice(logits);
                Ok(Answer::Logits(values))
            }
            Output::Greedy(wanted) => {
                let logits = &self.logits[..wanted.len() * self.limits.vocabulary];
                self.chosen.clear();
                let rows = logits.chunks(self.limits.vocabulary.max(1));
                self.chosen.extend(rows.map(|logits| greedy(&self.team, logits)));
                Ok(Answer::Tokens(self.chosen.clone()))
            }
            Output::Sample { rows: wanted, draws } => {
                let width = self.limits.vocabulary;
                self.chosen.clear();
                for (index, (&row, draw)) in wanted.iter().zip(draws).enumerate() {
                    let place = rows.places[row as usize];
                    let seen = self.seen.entry(place.sequence).or_default();
                    if let Some(tokens) = draw.seen {
                        seen.clear();
                        seen.extend_from_slice(tokens);
                    }
                    seen.push(self.tokens[row as usize]);
                    let logits = &mut self.logits[index * width..(index + 1) * width];
                    let position = u64::from(place.position) + 1;
                    let token = self.sampler.draw(logits, seen, &draw.params, position);
                    self.chosen.push(token);
                }
                Ok(Answer::Tokens(self.chosen.clone()))
            }
        }
    }

    /// Takes a register out, so that others can be read while it is written.
    pub(crate) fn take(&mut self, reg: Reg) -> Vec<f32> {
        std::mem::take(&mut self.registers[usize::from(reg.0)])
    }

    pub(crate) fn put(&mut self, reg: Reg, values: Vec<f32>) {
        self.registers[usize::from(reg.0)] = values;
    }
}

/// Parts of a row of logits, each a thread's.
const PARTS: usize = 64;

/// [`argmax`] by all threads: most of what a thread looks at it has made itself, just before.
fn greedy(team: &Team, logits: &[f32]) -> u32 {
    let part = logits.len().div_ceil(PARTS).max(1);
    let mut best = [0; PARTS];
    team.chunks(&mut best, 1, |_, index, best| {
        let first = (index * part).min(logits.len());
        best[0] = first as u32 + argmax(&logits[first..logits.len().min(first + part)]);
    });
    let value = |index: u32| logits.get(index as usize).copied().unwrap_or(f32::NEG_INFINITY);
    // The first of equals; what is not a number is larger than nothing.
    let first = best.iter().copied().find(|&index| value(index) > f32::NEG_INFINITY).unwrap_or(0);
    best.iter().fold(first, |best, &index| if value(index) > value(best) { index } else { best })
}

/// Memory for an answer, which the caller will own.
fn answer_buffer(len: usize) -> Result<Vec<f32>, Fault> {
    let mut values = Vec::new();
    values.try_reserve_exact(len).map_err(|_| Fault::OutOfMemory {
        device: "cpu".into(),
        name: "the answer of a submission".into(),
        wanted: len as u64 * 4,
        free: None,
        what: halfbyte_backend::Purpose::Staging,
    })?;
    Ok(values)
}

impl CpuProgram {
    /// A program over `state`.
    pub fn new(kernels: &'static dyn Kernels, state: State, sweep: Option<Sweep>, held: Held) -> Self {
        Self { kernels, state, sweep, held }
    }
}

impl Program for CpuProgram {
    fn submit(&mut self, rows: &Rows<'_>) -> Result<Ticket, Fault> {
        let answer = self.state.run(rows, self.kernels, self.sweep.as_mut(), |_, _| {})?;
        Ok(Box::pin(ready(Ok(answer))))
    }

    fn profile<'a>(&'a mut self, rows: &'a Rows<'a>) -> Fut<'a, Vec<StepCost>> {
        let position = rows.places.iter().map(|place| u64::from(place.position)).max().unwrap_or(0);
        let counts = self.state.done;
        let mut clock = Clock::start(position);
        let done = self.state.run(rows, self.kernels, self.sweep.as_mut(), |index, steps| {
            clock.step_ends(index, steps);
        });
        // It counts as no submission of the program's own.
        self.state.done = counts;
        Box::pin(ready(done.map(|_| clock.costs())))
    }

    fn drain(&mut self) -> Fut<'_, ()> {
        Box::pin(ready(Ok(())))
    }

    fn samples(&self) -> bool {
        true
    }

    fn counts(&self) -> (u64, u64) {
        self.state.done
    }
}

impl std::fmt::Debug for CpuProgram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let held = self.held.tickets.len();
        write!(f, "CpuProgram({} steps, {held} ledger rows)", self.state.steps.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_threads_choose_what_one_chooses() {
        let team = Team::new(3);
        let mut stream = halfbyte_backend::random::Stream::new(5);
        for len in [1, 2, 63, 64, 65, 1000, 32_003] {
            let mut logits: Vec<f32> = (0..len).map(|_| stream.normal()).collect();
            assert_eq!(greedy(&team, &logits), argmax(&logits), "{len}");
            // The first of equals, in other parts too.
            logits[len - 1] = 9.0;
            logits[len / 2] = 9.0;
            assert_eq!(greedy(&team, &logits), (len / 2) as u32);
            logits[..len / 2].fill(f32::NAN);
            assert_eq!(greedy(&team, &logits), (len / 2) as u32);
            logits.fill(f32::NEG_INFINITY);
            assert_eq!(greedy(&team, &logits), argmax(&logits));
            logits.fill(f32::NAN);
            assert_eq!(greedy(&team, &logits), argmax(&logits));
        }
    }
}
