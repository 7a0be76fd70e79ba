//! What a program refuses before it does anything.

use super::WgpuProgram;
use halfbyte_backend::{Fault, Input, Output, Rows, Step};

impl WgpuProgram {
    /// Refuses what contradicts the program.
    pub(super) fn check(&self, rows: &Rows<'_>) -> Result<(), Fault> {
        let mut width = 0;
        for &reg in &self.stretch.inputs {
            width += self.stretch.width(reg)?;
        }
        rows.check(&self.caps, width)?;
        self.reach.check(rows)?;
        let embeds = self.stretch.steps.iter().any(|step| matches!(step, Step::Embed(_)));
        match rows.input {
            Input::Tokens(_) | Input::Chosen if !embeds => {
                return Err(Fault::Invalid("tokens for a stretch without an embedding".into()));
            }
            Input::Chosen if rows.places.len() > self.chosen => {
                return Err(Fault::Invalid(format!(
                    "{} rows for {} chosen tokens",
                    rows.places.len(),
                    self.chosen
                )));
            }
            _ => {}
        }
        match rows.output {
            output if output.wants_head() && self.plan.vocabulary == 0 => {
                Err(Fault::Invalid("logits of a stretch without a head".into()))
            }
            Output::Sample { .. } if self.plan.drawn == 0 => {
                Err(Fault::Invalid("a token is drawn where tokens go in and logits come out".into()))
            }
            Output::Sample { rows: wanted, .. }
                if wanted
                    .iter()
                    .any(|&row| rows.places[row as usize].sequence as usize >= self.plan.drawn) =>
            {
                Err(Fault::Invalid(format!("draws of more than {} sequences", self.plan.drawn)))
            }
            Output::Hidden if self.stretch.outputs.is_empty() => {
                Err(Fault::Invalid("hidden states of a stretch that gives none".into()))
            }
            _ => Ok(()),
        }
    }
}
