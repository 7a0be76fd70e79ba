//! What a submission may ask of a program.

use crate::bound::BoundStep;
use halfbyte_backend::{Fault, Place};

/// The rows of one sequence in a submission: a half-open range.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Span {
    /// First row.
    pub start: u32,
    /// Row after the last.
    pub end: u32,
}

/// Finds the span of each row: `spans` is `[rows]`.
///
/// # Errors
/// [`Fault::Invalid`] if the rows of a sequence are not neighbours.
pub(crate) fn spans(places: &[Place], spans: &mut [Span]) -> Result<(), Fault> {
    let mut start = 0;
    for (index, run) in places.chunk_by(|a, b| a.sequence == b.sequence).enumerate() {
        let sequence = run[0].sequence;
        // Runs are few: a batch's sequences. Only the starts of earlier ones are looked at.
        let mut earlier = 0;
        for _ in 0..index {
            if places[earlier].sequence == sequence {
                return Err(Fault::Invalid(format!("the rows of sequence {sequence} are not neighbours")));
            }
            earlier = spans[earlier].end as usize;
        }
        let end = start + run.len();
        spans[start..end].fill(Span { start: start as u32, end: end as u32 });
        start = end;
    }
    Ok(())
}

/// The bounds on tokens and places that the steps of a program set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Whether there is an output head.
    pub head: bool,
    /// Its rows.
    pub vocabulary: usize,
    /// Rows of the embedding table, if there is one.
    tokens: Option<usize>,
    /// Sequences that every cache holds.
    sequences: usize,
    /// Positions that every table and cache holds, and which of them is the smallest.
    positions: (usize, &'static str),
    /// Token types.
    types: usize,
    /// Rows of a sequence at once that every cache has room for.
    rows: usize,
}

impl Limits {
    /// The bounds that `steps` set.
    pub fn of(steps: &[BoundStep]) -> Self {
        let mut limits = Self {
            head: false,
            vocabulary: 0,
            tokens: None,
            sequences: usize::MAX,
            positions: (usize::MAX, ""),
            types: usize::MAX,
            rows: usize::MAX,
        };
        for step in steps {
            match step {
                BoundStep::Embed { step, table, positions, types, .. } => {
                    limits.tokens = Some(table.read().rows.min(limits.tokens.unwrap_or(usize::MAX)));
                    if let (Some(table), Some((_, first))) = (positions, step.positions) {
                        let rows = table.read().rows.saturating_sub(first as usize);
                        limits.lower(rows, "learned positions");
                    }
                    if let Some(types) = types {
                        limits.types = limits.types.min(types.read().rows);
                    }
                }
                BoundStep::Attend { step, cache, rope, .. } => {
                    if let Some(cache) = cache {
                        let shape = cache.read().shape;
                        limits.sequences = limits.sequences.min(shape.sequences);
                        limits.lower(shape.capacity, "positions of the KV cache");
                        limits.rows = limits.rows.min(shape.most_rows(step.window));
                    }
                    if let Some(table) = rope {
                        let table = table.read();
                        limits.lower(
                            table.values.len() / (2 * table.pairs).max(1),
                            "positions of the rope table",
                        );
                    }
                }
                BoundStep::Head { weight, .. } => {
                    limits.head = true;
                    limits.vocabulary = weight.read().rows;
                }
                BoundStep::Linear { .. } | BoundStep::Moe { .. } => {}
            }
        }
        limits
    }

    fn lower(&mut self, positions: usize, what: &'static str) {
        if positions < self.positions.0 {
            self.positions = (positions, what);
        }
    }

    /// Checks the rows of a submission. `hidden` says whether the program takes hidden states.
    ///
    /// # Errors
    /// [`Fault::Invalid`] with the number that is too large.
    pub fn check(&self, tokens: Option<&[u32]>, places: &[Place], hidden: bool) -> Result<(), Fault> {
        match (tokens, self.tokens) {
            (None, Some(_)) => return Err(Fault::Invalid("a program with an embedding takes tokens".into())),
            (Some(_), None) if hidden => {
                return Err(Fault::Invalid("a program without an embedding takes hidden states".into()));
            }
            (Some(tokens), Some(vocabulary)) => {
                if let Some(token) = tokens.iter().find(|&&token| token as usize >= vocabulary) {
                    return Err(Fault::Invalid(format!("token {token} of a vocabulary of {vocabulary}")));
                }
            }
            _ => {}
        }
        let mut runs = places.chunk_by(|a, b| a.sequence == b.sequence);
        if let Some(run) = runs.find(|run| run.len() > self.rows) {
            return Err(Fault::Invalid(format!(
                "{} rows of sequence {} at once in a KV cache with room for {}",
                run.len(),
                run[0].sequence,
                self.rows
            )));
        }
        for place in places {
            if place.sequence as usize >= self.sequences {
                return Err(Fault::Invalid(format!(
                    "sequence {} of a KV cache for {}",
                    place.sequence, self.sequences
                )));
            }
            let (positions, what) = self.positions;
            if place.position as usize >= positions {
                return Err(Fault::Invalid(format!(
                    "position {} of sequence {} is beyond the {positions} {what}",
                    place.position, place.sequence
                )));
            }
            if place.token_type as usize >= self.types {
                return Err(Fault::Invalid(format!("token type {} of {}", place.token_type, self.types)));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(sequence: u32, position: u32) -> Place {
        Place { sequence, position, token_type: 0 }
    }

    #[test]
    fn spans_are_the_runs_of_a_sequence() {
        let places = [place(4, 0), place(4, 1), place(0, 7), place(2, 0), place(2, 1)];
        let mut found = [Span::default(); 5];
        spans(&places, &mut found).unwrap();
        let ends: Vec<(u32, u32)> = found.iter().map(|span| (span.start, span.end)).collect();
        assert_eq!(ends, [(0, 2), (0, 2), (2, 3), (3, 5), (3, 5)]);
    }

    #[test]
    fn a_sequence_in_two_places_is_refused() {
        let places = [place(0, 0), place(1, 0), place(0, 1)];
        let fault = spans(&places, &mut [Span::default(); 3]).unwrap_err();
        assert!(fault.to_string().contains("sequence 0"), "{fault}");
    }
}
