//! One submission's row metadata, as `places.wgsl` lays it out.

use crate::pipeline::Counts;
use crate::program_plan::{draws_at, places_words};
use halfbyte_backend::gpu::{draw_words, tiles};
use halfbyte_backend::{Caps, Input, Output, Rows};

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
    let mut tile_count = 0;
    for tile in tiles(rows.places, tile_rows) {
        let at = tiles_at + 8 * tile_count;
        words[at..at + 6].copy_from_slice(&tile.words());
        tile_count += 1;
    }
    if let Output::Sample { draws, .. } = rows.output {
        for (index, draw) in draws.iter().enumerate() {
            let at = draws_at(caps) + 8 * index;
            words[at..at + 8].copy_from_slice(&draw_words(&draw.params));
        }
    } else {
        words.truncate(tiles_at + 8 * tile_count);
    }
    words[0] = rows.places.len() as u32;
    words[1] = outputs.len() as u32;
    words[2] = tile_count as u32;
    words[3] = u32::from(rows.input == Input::Chosen);
    (
        words,
        Counts { rows: rows.places.len() as u32, outputs: outputs.len() as u32, tiles: tile_count as u32 },
    )
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
        let (words, counts) = encode(&rows, &caps, 2);
        assert_eq!((counts.rows, counts.outputs, counts.tiles), (4, 1, 3));
        let tiles = &words[16 + 16 + 1..];
        assert_eq!(tiles[..6], [0, 2, 2, 5, 0, 3]);
        assert_eq!(tiles[8..14], [2, 1, 2, 7, 0, 3]);
        assert_eq!(tiles[16..22], [3, 1, 0, 9, 3, 1]);
    }
}
