//! Compiled steps, and what is asked of them.

use crate::{Fault, Fut, SampleParams, StepCost};
use std::time::Duration;

/// The most that one submission may carry: a program's activations are allocated for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Caps {
    /// Rows (tokens of all sequences) in one submission.
    pub rows: usize,
    /// Rows whose logits one submission may ask for.
    pub outputs: usize,
}

/// Where a row belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place {
    /// Its sequence: which part of the KV cache.
    pub sequence: u32,
    /// Its position in the sequence.
    pub position: u32,
    /// Its token type (BERT's segment); 0 otherwise.
    pub token_type: u32,
}

/// What goes in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Input<'a> {
    /// One token id for each row.
    Tokens(&'a [u32]),
    /// Row `r` takes the token that row `r` of the last [`Output::Greedy`] or [`Output::Sample`] chose. The token need not
    /// have been read by the host: the next step can be submitted before this one has ended.
    Chosen,
    /// The registers [`Stretch::inputs`](crate::Stretch::inputs): all rows of the first, then all of
    /// the next, each `[rows, width]`.
    Hidden(&'a [f32]),
}

/// What comes out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Output<'a> {
    /// Only the KV cache grows.
    Nothing,
    /// The registers [`Stretch::outputs`](crate::Stretch::outputs), laid out as [`Input::Hidden`].
    Hidden,
    /// Logits of these rows, `[rows.len(), vocabulary]`.
    Logits(&'a [u32]),
    /// The token with the largest logit of each of these rows; the lowest id among equals.
    Greedy(&'a [u32]),
    /// A token for each of these rows, which are of different sequences, as [`sample`](crate::sample()) draws
    /// it from the row's logits. With [`Input::Chosen`] they are the first rows in their order. Where
    /// [`Program::samples`].
    Sample {
        /// Rows whose logits are drawn from.
        rows: &'a [u32],
        /// How, `[rows.len()]`.
        draws: &'a [Draw<'a>],
    },
}

/// How a token is drawn from a row's logits. The position of its random number is the one after the row's.
///
/// The program remembers which tokens each sequence has seen: those that `seen` named, and since then the
/// input token of each row that was drawn from. What a repetition penalty counts is thus known where the
/// last token has not been read by the host.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw<'a> {
    /// Penalty, temperature, the cuts, the seed.
    pub params: SampleParams,
    /// What the row's sequence has seen, if what the program remembers of it is to be forgotten: where a
    /// text begins. The row's own token is counted in any case.
    pub seen: Option<&'a [u32]>,
}

/// One submission. Rows of one sequence are neighbours with consecutive positions.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    /// What goes in.
    pub input: Input<'a>,
    /// Where each row belongs, `[rows]`.
    pub places: &'a [Place],
    /// What comes out.
    pub output: Output<'a>,
}

/// The result of a submission.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// For [`Output::Nothing`].
    Nothing,
    /// For [`Output::Hidden`].
    Hidden(Vec<f32>),
    /// For [`Output::Logits`].
    Logits(Vec<f32>),
    /// For [`Output::Greedy`] and [`Output::Sample`].
    Tokens(Vec<u32>),
}

/// Awaits to a submission's [`Answer`]. Independent of the program, so that the next submission need
/// not wait for it.
pub type Ticket = Fut<'static, Answer>;

/// A compiled [`Stretch`](crate::Stretch): replayed for every token.
pub trait Program {
    /// Starts one submission. Submissions of one program run in order.
    ///
    /// # Errors
    /// [`Fault::Invalid`] if the rows exceed the program's [`Caps`] or its KV cache;
    /// [`Fault::Lost`] if the device is gone.
    fn submit(&mut self, rows: &Rows<'_>) -> Result<Ticket, Fault>;

    /// Whether the program takes [`Output::Sample`]; else the host samples from [`Output::Logits`].
    fn samples(&self) -> bool {
        false
    }

    /// Awaits the end of everything submitted, before weights move or the program is dropped.
    fn drain(&mut self) -> Fut<'_, ()>;

    /// Dispatches and submissions so far: `(dispatches, submissions)`. A CPU counts steps.
    fn counts(&self) -> (u64, u64);

    /// Compute passes so far, where a submission has such.
    fn passes(&self) -> u64 {
        0
    }

    /// Runs one submission as [`submit`](Self::submit) would, with the device's clock read around every dispatch,
    /// and says what each class of steps took. Its output stays on the device. Nothing where there is no such clock.
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    fn profile<'a>(&'a mut self, _rows: &'a Rows<'a>) -> Fut<'a, Vec<StepCost>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    /// Time of the host that went into the driver's calls, waiting for the device included, since this was asked
    /// last; the first call begins to measure. `None` where there is no driver.
    fn driver_time(&mut self) -> Option<Duration> {
        None
    }
}

impl<'a> Output<'a> {
    /// The rows whose logits it needs.
    pub fn rows(&self) -> &'a [u32] {
        match *self {
            Output::Logits(rows) | Output::Greedy(rows) | Output::Sample { rows, .. } => rows,
            Output::Nothing | Output::Hidden => &[],
        }
    }

    /// Whether it needs a head.
    pub fn wants_head(&self) -> bool {
        !matches!(self, Output::Nothing | Output::Hidden)
    }
}

impl Rows<'_> {
    /// Checks a submission against caps; backends call it first.
    ///
    /// # Errors
    /// [`Fault::Invalid`] saying what is too many.
    pub fn check(&self, caps: &Caps, input_width: usize) -> Result<(), Fault> {
        let rows = self.places.len();
        if rows == 0 || rows > caps.rows {
            return Err(Fault::Invalid(format!("{rows} rows in a program for 1 to {}", caps.rows)));
        }
        match self.input {
            Input::Tokens(tokens) if tokens.len() != rows => {
                return Err(Fault::Invalid(format!("{} tokens for {rows} rows", tokens.len())));
            }
            Input::Hidden(values) if values.len() != rows * input_width => {
                return Err(Fault::Invalid(format!(
                    "{} hidden values for {rows} rows of {input_width}",
                    values.len()
                )));
            }
            _ => {}
        }
        let wanted = self.output.rows();
        if wanted.len() > caps.outputs {
            return Err(Fault::Invalid(format!(
                "logits of {} rows in a program for {}",
                wanted.len(),
                caps.outputs
            )));
        }
        if let Some(row) = wanted.iter().find(|&&row| row as usize >= rows) {
            return Err(Fault::Invalid(format!("logits of row {row} of {rows}")));
        }
        if let Output::Sample { rows: wanted, draws } = self.output {
            self.check_draws(wanted, draws)?;
        }
        for pair in self.places.windows(2) {
            if pair[0].sequence == pair[1].sequence && pair[0].position + 1 != pair[1].position {
                return Err(Fault::Invalid(format!(
                    "position {} follows {} in sequence {}",
                    pair[1].position, pair[0].position, pair[0].sequence
                )));
            }
        }
        Ok(())
    }

    /// Checks that draws are one for each row, and rows one for each sequence: a sequence has one next token.
    fn check_draws(&self, wanted: &[u32], draws: &[Draw<'_>]) -> Result<(), Fault> {
        if wanted.len() != draws.len() {
            return Err(Fault::Invalid(format!("{} draws for {} rows", draws.len(), wanted.len())));
        }
        if matches!(self.input, Input::Hidden(_)) {
            return Err(Fault::Invalid("a token is drawn where tokens go in".into()));
        }
        // Each choice then replaces the token that its own row took, and no other row's.
        if self.input == Input::Chosen && wanted.iter().zip(0..).any(|(&row, index)| row != index) {
            return Err(Fault::Invalid("draws of chosen rows that are not in their order".into()));
        }
        let sequence = |row: u32| self.places[row as usize].sequence;
        // A batch is small, and decoding allocates nothing.
        for (index, &row) in wanted.iter().enumerate() {
            if wanted[..index].iter().any(|&earlier| sequence(earlier) == sequence(row)) {
                return Err(Fault::Invalid(format!("two draws for sequence {}", sequence(row))));
            }
        }
        Ok(())
    }
}
