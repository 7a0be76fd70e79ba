//! One submission's row metadata, as [`crate::kernels::places`] lays it out, and what bounds it.

use crate::kernels::places::{HEADER, ROW, TILE};
use crate::launch::Counts;
use halfbyte_backend::{Fault, Input, Kind, Place, Rows, Step, Stretch, WantId};

/// What positions, sequences and tokens may be at most, exclusive.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reach {
    positions: usize,
    sequences: usize,
    tokens: usize,
    types: usize,
}

impl Reach {
    /// The reach of a stretch over its caches and tables.
    pub(crate) fn new(stretch: &Stretch) -> Result<Self, Fault> {
        const ANY: usize = u32::MAX as usize;
        let mut reach = Self { positions: ANY, sequences: ANY, tokens: ANY, types: ANY };
        for step in &stretch.steps {
            match step {
                Step::Embed(embed) => {
                    reach.tokens = reach.tokens.min(rows_of(stretch, embed.table)?);
                    if let Some((id, first)) = embed.positions {
                        let rows = rows_of(stretch, id)?.saturating_sub(first as usize);
                        reach.positions = reach.positions.min(rows);
                    }
                    if let Some(id) = embed.types {
                        reach.types = reach.types.min(rows_of(stretch, id)?);
                    }
                }
                Step::Attend(attend) => {
                    for id in attend.cache.into_iter().chain(attend.rope.map(|rope| rope.table)) {
                        match &stretch.want(id)?.kind {
                            Kind::Kv(shape) => {
                                reach.positions = reach.positions.min(shape.capacity);
                                reach.sequences = reach.sequences.min(shape.sequences);
                            }
                            Kind::Rope(shape) => reach.positions = reach.positions.min(shape.positions),
                            Kind::Linear(_) | Kind::Norm(_) => {}
                        }
                    }
                }
                Step::Linear(_) | Step::Moe(_) | Step::Head(_) => {}
            }
        }
        Ok(reach)
    }

    /// Checks what [`Rows::check`] cannot know.
    pub(crate) fn check(&self, rows: &Rows<'_>) -> Result<(), Fault> {
        let bounded = |what: &str, value: u32, bound: usize| {
            if (value as usize) < bound {
                return Ok(());
            }
            Err(Fault::Invalid(format!("{what} {value}, where {bound} is the bound")))
        };
        for place in rows.places {
            bounded("position", place.position, self.positions)?;
            bounded("sequence", place.sequence, self.sequences)?;
            bounded("token type", place.token_type, self.types)?;
        }
        if let Input::Tokens(tokens) = rows.input {
            tokens.iter().try_for_each(|&token| bounded("token", token, self.tokens))?;
        }
        let mut seen: Vec<u32> = runs(rows.places).map(|run| run[0].sequence).collect();
        seen.sort_unstable();
        match seen.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(Fault::Invalid(format!("rows of sequence {} are not neighbours", pair[0]))),
            None => Ok(()),
        }
    }
}

fn rows_of(stretch: &Stretch, id: WantId) -> Result<usize, Fault> {
    match &stretch.want(id)?.kind {
        Kind::Linear(shape) => Ok(shape.rows()),
        _ => Err(Fault::Internal(format!("{} is no matrix", stretch.want(id)?.name))),
    }
}

/// Neighbouring rows of one sequence.
fn runs(places: &[Place]) -> impl Iterator<Item = &[Place]> {
    places.chunk_by(|a, b| a.sequence == b.sequence)
}

/// Whether every row is the only one of its sequence.
pub(crate) fn all_apart(places: &[Place]) -> bool {
    runs(places).all(|run| run.len() == 1)
}

/// The metadata's words and what they count. Tiles hold up to `tile_rows` rows of one sequence.
pub(crate) fn encode(rows: &Rows<'_>, tile_rows: usize) -> (Vec<u32>, Counts) {
    let outputs = rows.output.rows();
    let mut words = vec![0; HEADER];
    for (row, place) in rows.places.iter().enumerate() {
        let token = match rows.input {
            Input::Tokens(tokens) => tokens[row],
            Input::Chosen | Input::Hidden(_) => 0,
        };
        words.extend([token, place.sequence, place.position, place.token_type]);
    }
    let outputs_at = HEADER + ROW * rows.places.len();
    words.extend_from_slice(outputs);
    let tiles_at = words.len();
    let mut run_start = 0;
    for run in runs(rows.places) {
        for first in (0..run.len()).step_by(tile_rows) {
            let count = tile_rows.min(run.len() - first);
            words.extend([(run_start + first) as u32, count as u32]);
            words.extend([run[first].sequence, run[first].position, run_start as u32, run.len() as u32]);
        }
        run_start += run.len();
    }
    let counts = Counts {
        rows: rows.places.len() as u32,
        outputs: outputs.len() as u32,
        tiles: ((words.len() - tiles_at) / TILE) as u32,
    };
    let chosen = u32::from(rows.input == Input::Chosen);
    words[..6].copy_from_slice(&[
        counts.rows,
        counts.outputs,
        counts.tiles,
        chosen,
        outputs_at as u32,
        tiles_at as u32,
    ]);
    (words, counts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use halfbyte_backend::Output;

    #[test]
    fn tiles_cut_runs_of_one_sequence() {
        let place = |sequence, position| Place { sequence, position, token_type: 0 };
        let places = [place(2, 5), place(2, 6), place(2, 7), place(0, 9)];
        let input = Input::Tokens(&[1, 2, 3, 4]);
        let rows = Rows { input, places: &places, output: Output::Greedy(&[3]) };
        let (words, counts) = encode(&rows, 2);
        assert_eq!(counts, Counts { rows: 4, outputs: 1, tiles: 3 });
        assert_eq!(words[4..6], [24, 25]);
        assert_eq!(words[8..12], [1, 2, 5, 0]);
        assert_eq!(words[24], 3);
        assert_eq!(words[25..31], [0, 2, 2, 5, 0, 3]);
        assert_eq!(words[31..37], [2, 1, 2, 7, 0, 3]);
        assert_eq!(words[37..43], [3, 1, 0, 9, 3, 1]);
        assert!(!all_apart(&places) && all_apart(&places[2..]));
    }
}
