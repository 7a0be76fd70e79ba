//! Compiled steps, and what is asked of them.

use crate::{Fault, Fut, StepCost};
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
    /// Row `r` takes the token that row `r` of the last [`Output::Greedy`] chose. The token need not
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
    /// For [`Output::Greedy`].
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
        if let Output::Logits(wanted) | Output::Greedy(wanted) = self.output {
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
}
