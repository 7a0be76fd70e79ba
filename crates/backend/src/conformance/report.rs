//! What came of the cases.

use std::fmt;

/// How a case ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// All answers agree, and the ledger equals the layout.
    Passed,
    /// Why not.
    Failed(String),
    /// The device says that it cannot run this; not a failure.
    Unsupported(String),
}

/// A case's result.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The row of the table.
    pub step: &'static str,
    /// The case's name.
    pub case: String,
    /// Worst relative error `‖out - ref‖ / ‖ref‖` over all registers (or logits) of all submissions;
    /// infinite where an answer has NaN or another token, 0 where nothing was compared.
    pub error: f64,
    /// The largest error that passes.
    pub tolerance: f64,
    /// How it ended.
    pub result: Verdict,
}

/// The results of a table.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// One for each case, in the table's order.
    pub outcomes: Vec<Outcome>,
}

impl Outcome {
    /// Whether it passed.
    pub fn passed(&self) -> bool {
        self.result == Verdict::Passed
    }

    /// Whether it failed.
    pub fn failed(&self) -> bool {
        matches!(self.result, Verdict::Failed(_))
    }
}

impl Report {
    /// Cases that passed.
    pub fn passed(&self) -> usize {
        self.outcomes.iter().filter(|outcome| outcome.passed()).count()
    }

    /// Cases that failed.
    pub fn failed(&self) -> usize {
        self.outcomes.iter().filter(|outcome| outcome.failed()).count()
    }

    /// Cases that the device cannot run.
    pub fn unsupported(&self) -> usize {
        self.outcomes.len() - self.passed() - self.failed()
    }

    /// The outcomes that failed.
    pub fn failures(&self) -> impl Iterator<Item = &Outcome> {
        self.outcomes.iter().filter(|outcome| outcome.failed())
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: ", self.step, self.case)?;
        match &self.result {
            Verdict::Passed => write!(f, "passed, error {:.1e} of {:.0e}", self.error, self.tolerance),
            Verdict::Failed(why) => write!(f, "failed: {why}"),
            Verdict::Unsupported(what) => write!(f, "unsupported: {what}"),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for outcome in self.outcomes.iter().filter(|outcome| !outcome.passed()) {
            writeln!(f, "{outcome}")?;
        }
        write!(f, "{} passed, {} failed, {} unsupported", self.passed(), self.failed(), self.unsupported())
    }
}
