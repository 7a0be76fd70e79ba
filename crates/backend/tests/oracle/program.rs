//! A compiled stretch in f64: registers, requests and answers.

use super::{Flaw, Held, Slots};
use halfbyte_backend::{
    Answer, Caps, Fault, Fut, Input, Kind, Ledger, Output, Program, Reg, Rows, Slot, Step, Stretch, Ticket,
    WantId, argmax, sample,
};
use std::collections::BTreeMap;
use std::rc::Rc;

pub struct Compiled {
    pub stretch: Stretch,
    pub slots: Vec<Slot>,
    pub held: Slots,
    /// `[rows, width]` each, by number.
    pub registers: Vec<Vec<f64>>,
    caps: Caps,
    chosen: Vec<u32>,
    seen: BTreeMap<u32, Vec<u32>>,
    ledger: Rc<Ledger>,
    ticket: u64,
    submissions: u64,
    pub flaw: Flaw,
}

impl Compiled {
    pub fn new(
        stretch: &Stretch,
        slots: &[Slot],
        caps: Caps,
        held: Slots,
        ledger: Rc<Ledger>,
        ticket: u64,
        flaw: Flaw,
    ) -> Self {
        Self {
            stretch: stretch.clone(),
            slots: slots.to_vec(),
            held,
            registers: vec![Vec::new(); stretch.widths.len()],
            caps,
            chosen: Vec::new(),
            seen: BTreeMap::new(),
            ledger,
            ticket,
            submissions: 0,
            flaw,
        }
    }

    pub fn width(&self, reg: Reg) -> usize {
        self.stretch.widths[usize::from(reg.0)]
    }

    pub fn register(&mut self, reg: Reg) -> &mut Vec<f64> {
        &mut self.registers[usize::from(reg.0)]
    }

    /// Calls `read` with what the want's slot holds.
    pub fn with<T>(&self, want: WantId, read: impl FnOnce(&mut Held) -> T) -> T {
        let slot = self.slots[want.0 as usize].0;
        read(self.held.borrow_mut().get_mut(&slot).expect("a released slot"))
    }

    fn check(&self, rows: &Rows<'_>) -> Result<(), Fault> {
        rows.check(&self.caps, self.stretch.inputs.iter().map(|&reg| self.width(reg)).sum())?;
        for want in &self.stretch.wants {
            let Kind::Kv(shape) = &want.kind else { continue };
            let outside = |place: &&halfbyte_backend::Place| {
                place.sequence as usize >= shape.sequences || place.position as usize >= shape.capacity
            };
            if let Some(place) = rows.places.iter().find(outside) {
                return Err(Fault::Invalid(format!("{place:?} in a cache of {shape:?}")));
            }
        }
        Ok(())
    }

    fn run(&mut self, rows: &Rows<'_>) -> Answer {
        let count = rows.places.len();
        for (index, register) in self.registers.iter_mut().enumerate() {
            *register = vec![f64::NAN; count * self.stretch.widths[index]];
        }
        let mut tokens = Vec::new();
        match rows.input {
            Input::Tokens(ids) => tokens = ids.to_vec(),
            Input::Chosen => {
                tokens.clone_from(&self.chosen);
                match self.flaw {
                    Flaw::FirstChoice => tokens.fill(self.chosen[0]),
                    Flaw::ForgetsChoice => tokens.fill(0),
                    _ => {}
                }
            }
            Input::Hidden(mut values) => {
                for reg in self.stretch.inputs.clone() {
                    let (first, rest) = values.split_at(count * self.width(reg));
                    *self.register(reg) = first.iter().map(|&value| f64::from(value)).collect();
                    values = rest;
                }
            }
        }
        let mut logits = BTreeMap::new();
        for step in self.stretch.steps.clone() {
            match step {
                Step::Embed(embed) => self.embed(&embed, &tokens, rows.places),
                Step::Linear(linear) => self.linear(&linear),
                Step::Attend(attend) => self.attend(&attend, rows.places),
                Step::Moe(moe) => self.moe(&moe),
                Step::Head(head) => {
                    if rows.output.wants_head() {
                        logits = self.head(&head, rows.output.rows());
                    }
                }
            }
        }
        match rows.output {
            Output::Nothing => Answer::Nothing,
            Output::Hidden => {
                let outputs = self.stretch.outputs.iter();
                let values = outputs.flat_map(|reg| self.registers[usize::from(reg.0)].iter());
                Answer::Hidden(values.map(|&value| value as f32).collect())
            }
            Output::Logits(wanted) => {
                Answer::Logits(wanted.iter().flat_map(|row| logits[row].clone()).collect())
            }
            Output::Greedy(wanted) => {
                self.chosen = wanted.iter().map(|row| choose(&logits[row], self.flaw)).collect();
                Answer::Tokens(self.chosen.clone())
            }
            Output::Sample { rows: wanted, draws } => {
                self.chosen.clear();
                for (&row, draw) in wanted.iter().zip(draws) {
                    let place = rows.places[row as usize];
                    let seen = self.seen.entry(place.sequence).or_default();
                    if let Some(named) = draw.seen {
                        *seen = named.to_vec();
                    }
                    seen.push(tokens[row as usize]);
                    let position = u64::from(place.position) + 1;
                    self.chosen.push(sample(&mut logits[&row].clone(), seen, &draw.params, position));
                }
                Answer::Tokens(self.chosen.clone())
            }
        }
    }
}

/// The argmax, as the flaw has it.
fn choose(logits: &[f32], flaw: Flaw) -> u32 {
    let best = argmax(logits);
    let largest = logits[best as usize];
    let other = |logit: &f32| match flaw {
        Flaw::HighestTie => *logit == largest,
        Flaw::TakesNear => *logit < largest && largest - *logit < 1e-4 * largest.abs(),
        _ => false,
    };
    logits.iter().rposition(other).map_or(best, |other| other as u32)
}

impl Program for Compiled {
    fn submit(&mut self, rows: &Rows<'_>) -> Result<Ticket, Fault> {
        if let Err(fault) = self.check(rows) {
            let answer = async { Ok(Answer::Nothing) };
            return if self.flaw == Flaw::AcceptsAll { Ok(Box::pin(answer)) } else { Err(fault) };
        }
        self.submissions += 1;
        let answer = self.run(rows);
        Ok(Box::pin(async { Ok(answer) }))
    }

    fn drain(&mut self) -> Fut<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn samples(&self) -> bool {
        true
    }

    fn counts(&self) -> (u64, u64) {
        (self.submissions * self.stretch.steps.len() as u64, self.submissions)
    }
}

impl Drop for Compiled {
    fn drop(&mut self) {
        self.ledger.strike(self.ticket);
    }
}
