//! One submission's row metadata, as [`crate::kernels::places`] lays it out.

use crate::kernels::places::{HEADER, ROW, TILE};
use crate::launch::Counts;
use halfbyte_backend::gpu::{draw_words, tiles};
use halfbyte_backend::{Input, Output, Rows};

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
    for tile in tiles(rows.places, tile_rows) {
        words.extend(tile.words());
    }
    let counts = Counts {
        rows: rows.places.len() as u32,
        outputs: outputs.len() as u32,
        tiles: ((words.len() - tiles_at) / TILE) as u32,
    };
    let draws_at = words.len() as u32;
    if let Output::Sample { draws, .. } = rows.output {
        draws.iter().for_each(|draw| words.extend(draw_words(&draw.params)));
    }
    let chosen = u32::from(rows.input == Input::Chosen);
    words[..7].copy_from_slice(&[
        counts.rows,
        counts.outputs,
        counts.tiles,
        chosen,
        outputs_at as u32,
        tiles_at as u32,
        draws_at,
    ]);
    (words, counts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use halfbyte_backend::Place;

    #[test]
    fn tiles_cut_runs_of_one_sequence() {
        let place = |sequence, position| Place { sequence, position, token_type: 0 };
        let places = [place(2, 5), place(2, 6), place(2, 7), place(0, 9)];
        let input = Input::Tokens(&[1, 2, 3, 4]);
        let rows = Rows { input, places: &places, output: Output::Greedy(&[3]) };
        let (words, counts) = encode(&rows, 2);
        assert_eq!(counts, Counts { rows: 4, outputs: 1, tiles: 3 });
        assert_eq!(words[4..7], [24, 25, 43]);
        assert_eq!(words[8..12], [1, 2, 5, 0]);
        assert_eq!(words[24], 3);
        assert_eq!(words[25..31], [0, 2, 2, 5, 0, 3]);
        assert_eq!(words[31..37], [2, 1, 2, 7, 0, 3]);
        assert_eq!(words[37..43], [3, 1, 0, 9, 3, 1]);
    }
}
