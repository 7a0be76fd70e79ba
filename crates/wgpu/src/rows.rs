//! One submission's row metadata, as `places.wgsl` lays it out, and what bounds it.

use crate::held::Wants;
use crate::pipeline::Counts;
use crate::program_plan::{draws_at, places_words};
use halfbyte_backend::{Caps, Fault, Input, Kind, Output, Place, Rows, SampleParams, Step, Stretch};

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
    pub(crate) fn new(wants: &Wants<'_>) -> Result<Self, Fault> {
        const ANY: usize = u32::MAX as usize;
        let mut reach = Self { positions: ANY, sequences: ANY, tokens: ANY, types: ANY };
        let stretch = wants.stretch;
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
                    if let Some(id) = attend.cache {
                        let shape = &wants.kv(id)?.plan.shape;
                        reach.positions = reach.positions.min(shape.capacity);
                        reach.sequences = reach.sequences.min(shape.sequences);
                    }
                    if let Some(rope) = attend.rope {
                        reach.positions = reach.positions.min(wants.rope(rope.table)?.2);
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
            for &token in tokens {
                bounded("token", token, self.tokens)?;
            }
        }
        let mut seen: Vec<u32> = runs(rows.places).map(|run| rows.places[run.start].sequence).collect();
        seen.sort_unstable();
        match seen.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(Fault::Invalid(format!("rows of sequence {} are not neighbours", pair[0]))),
            None => Ok(()),
        }
    }
}

fn rows_of(stretch: &Stretch, id: halfbyte_backend::WantId) -> Result<usize, Fault> {
    match &stretch.want(id)?.kind {
        Kind::Linear(shape) => Ok(shape.rows()),
        _ => Err(Fault::Internal("an embedding that is no matrix".into())),
    }
}

/// Neighbouring rows of one sequence.
fn runs(places: &[Place]) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        let first = places.get(at)?;
        let len = places[at..].iter().take_while(|place| place.sequence == first.sequence).count();
        let run = at..at + len;
        at += len;
        Some(run)
    })
}

/// Whether every row is the only one of its sequence.
pub(crate) fn all_apart(places: &[Place]) -> bool {
    runs(places).all(|run| run.len() == 1)
}

/// How a token is drawn, as `sample.wgsl` reads it.
fn draw_words(params: &SampleParams) -> [u32; 8] {
    [
        params.temperature.to_bits(),
        u32::try_from(params.top_k).unwrap_or(0),
        params.top_p.to_bits(),
        params.repetition_penalty.to_bits(),
        params.seed as u32,
        (params.seed >> 32) as u32,
        0,
        0,
    ]
}

/// The metadata's words and what they count. Tiles hold up to `tile_rows` rows of one sequence.
pub(crate) fn encode(rows: &Rows<'_>, caps: &Caps, tile_rows: usize) -> (Vec<u32>, Counts) {
    let mut words = vec![0; places_words(caps)];
    let outputs = rows.output.rows();
    for (row, place) in rows.places.iter().enumerate() {
        let token = match rows.input {
            Input::Tokens(tokens) => tokens[row],
            Input::Chosen | Input::Hidden(_) => 0,
        };
        let at = 16 + 4 * row;
        words[at..at + 4].copy_from_slice(&[token, place.sequence, place.position, place.token_type]);
    }
    let outputs_at = 16 + 4 * caps.rows;
    words[outputs_at..outputs_at + outputs.len()].copy_from_slice(outputs);

    let tiles_at = outputs_at + caps.outputs.max(1);
    let mut tiles = 0;
    for run in runs(rows.places) {
        for first in run.clone().step_by(tile_rows) {
            let place = rows.places[first];
            let count = tile_rows.min(run.end - first);
            let tile = [
                first as u32,
                count as u32,
                place.sequence,
                place.position,
                run.start as u32,
                run.len() as u32,
                0,
                0,
            ];
            words[tiles_at + 8 * tiles..tiles_at + 8 * tiles + 8].copy_from_slice(&tile);
            tiles += 1;
        }
    }
    if let Output::Sample { draws, .. } = rows.output {
        for (index, draw) in draws.iter().enumerate() {
            let at = draws_at(caps) + 8 * index;
            words[at..at + 8].copy_from_slice(&draw_words(&draw.params));
        }
    } else {
        words.truncate(tiles_at + 8 * tiles);
    }
    words[0] = rows.places.len() as u32;
    words[1] = outputs.len() as u32;
    words[2] = tiles as u32;
    words[3] = u32::from(rows.input == Input::Chosen);
    (words, Counts { rows: rows.places.len() as u32, outputs: outputs.len() as u32, tiles: tiles as u32 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cut_runs_of_one_sequence() {
        let place = |sequence, position| Place { sequence, position, token_type: 0 };
        let places = [place(2, 5), place(2, 6), place(2, 7), place(0, 9)];
        let rows =
            Rows { input: Input::Tokens(&[1, 2, 3, 4]), places: &places, output: Output::Greedy(&[3]) };
        let caps = Caps { rows: 4, outputs: 1 };
        let (words, counts) = encode(&rows, &caps, 2);
        assert_eq!((counts.rows, counts.outputs, counts.tiles), (4, 1, 3));
        let tiles = &words[16 + 16 + 1..];
        assert_eq!(tiles[..6], [0, 2, 2, 5, 0, 3]);
        assert_eq!(tiles[8..14], [2, 1, 2, 7, 0, 3]);
        assert_eq!(tiles[16..22], [3, 1, 0, 9, 3, 1]);
        assert!(!all_apart(&places) && all_apart(&places[2..]));
    }
}
