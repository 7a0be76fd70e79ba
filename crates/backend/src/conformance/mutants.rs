//! Errors of meaning that the table must catch.

use super::{Case, Outcome, execute};
use crate::Backend;

/// One way to misread a step.
#[derive(Clone, Copy)]
pub struct Mutant {
    /// The row of the table whose cases must catch it.
    pub step: &'static str,
    /// What it gets wrong.
    pub name: &'static str,
    /// Puts the error into a case; false if the case has nothing to get wrong.
    pub apply: fn(&mut Case) -> bool,
}

/// All mutants.
pub fn mutants() -> Vec<Mutant> {
    Vec::new()
}

/// Runs `case` on the reference and its mutant on the subject: a good table fails one case at least.
/// `None` if the case has nothing that the mutant changes.
pub async fn run_mutant(
    mutant: &Mutant,
    case: &Case,
    reference: &dyn Backend,
    subject: &dyn Backend,
) -> Option<Outcome> {
    let mut mutated = case.clone();
    if mutated.step != mutant.step || !(mutant.apply)(&mut mutated) {
        return None;
    }
    Some(execute::compare(case, reference, &mutated, subject).await)
}
