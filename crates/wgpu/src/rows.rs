//! One submission's row metadata, as `places.wgsl` lays it out.

use crate::pipeline::Counts;
use crate::program_plan::{draws_at, places_words};
use halfbyte_backend::gpu::{draw_words, tiles};
use halfbyte_backend::{Caps, Input, Output, Rows};

/// The row metadata of one submission after the other, in one place: what a submission does not write is what an
/// earlier one left, and no kernel reads it.
#[derive(Debug)]
pub(crate) struct Metadata {
    words: Vec<u32>,
    /// Words that the last submission has.
    used: usize,
}

impl Metadata {
    /// Room for submissions within `caps`.
    pub(crate) fn new(caps: &Caps) -> Self {
        Self { words: vec![0; places_words(caps)], used: 0 }
    }

    /// The words of the last submission.
    pub(crate) fn words(&self) -> &[u32] {
        &self.words[..self.used]
    }

    /// Writes a submission's words and says what they count. Tiles hold up to `tile_rows` rows of one sequence.
    pub(crate) fn encode(&mut self, rows: &Rows<'_>, caps: &Caps, tile_rows: usize) -> Counts {
        let words = &mut self.words;
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
        let mut tile_count = 0;
        for tile in tiles(rows.places, tile_rows) {
            let at = tiles_at + 8 * tile_count;
            words[at..at + 6].copy_from_slice(&tile.words());
            tile_count += 1;
        }
        self.used = tiles_at + 8 * tile_count;
        if let Output::Sample { draws, .. } = rows.output {
            for (index, draw) in draws.iter().enumerate() {
                let at = draws_at(caps) + 8 * index;
                words[at..at + 8].copy_from_slice(&draw_words(&draw.params));
            }
            self.used = draws_at(caps) + 8 * draws.len();
        }
        let counts = Counts {
            rows: rows.places.len() as u32,
            outputs: outputs.len() as u32,
            tiles: tile_count as u32,
        };
        let chosen = u32::from(rows.input == Input::Chosen);
        words[..4].copy_from_slice(&[counts.rows, counts.outputs, counts.tiles, chosen]);
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use halfbyte_backend::Place;

    #[test]
    fn tiles_cut_runs_of_one_sequence() {
        let place = |sequence, position| Place { sequence, position, token_type: 0 };
        let places = [place(2, 5), place(2, 6), place(2, 7), place(0, 9)];
        let rows =
            Rows { input: Input::Tokens(&[1, 2, 3, 4]), places: &places, output: Output::Greedy(&[3]) };
        let caps = Caps { rows: 4, outputs: 1 };
        let mut metadata = Metadata::new(&caps);
        let counts = metadata.encode(&rows, &caps, 2);
        let words = metadata.words();
        assert_eq!((counts.rows, counts.outputs, counts.tiles), (4, 1, 3));
        let tiles = &words[16 + 16 + 1..];
        assert_eq!(tiles[..6], [0, 2, 2, 5, 0, 3]);
        assert_eq!(tiles[8..14], [2, 1, 2, 7, 0, 3]);
        assert_eq!(tiles[16..22], [3, 1, 0, 9, 3, 1]);
    }
}
