//! What one submission is about, in words that the host writes before it.
//!
//! - `[0]` rows, `[1]` outputs, `[2]` tiles, `[3]` 1 if tokens come from the last greedy choice, `[4]` where
//!   outputs start, `[5]` where tiles start, `[6]` where draws start;
//! - from `[8]` for each row: token, sequence, position, token type;
//! - for each output its row;
//! - for each tile of neighbouring rows of a sequence: first row, rows, sequence, first position, first row of
//!   its sequence's run, rows of the run;
//! - for each draw, one an output, the words of [`halfbyte_backend::gpu::draw_words`].

use cubecl::prelude::*;

/// Words before the rows.
pub(crate) const HEADER: usize = 8;
/// Words of a row.
pub(crate) const ROW: usize = 4;
/// Words of a tile.
pub(crate) const TILE: usize = 6;
/// Words of a draw.
pub(crate) const DRAW: usize = halfbyte_backend::gpu::DRAW_WORDS;

/// Word `word` of row `row`: 0 token, 1 sequence, 2 position, 3 token type.
#[cube]
pub(crate) fn row_word(places: &Array<u32>, row: usize, #[comptime] word: usize) -> u32 {
    places[comptime!(HEADER + word) + row * ROW]
}

/// The row of output `output`.
#[cube]
pub(crate) fn output_row(places: &Array<u32>, output: usize) -> usize {
    places[places[4] as usize + output] as usize
}

/// Word `word` of tile `tile`.
#[cube]
pub(crate) fn tile_word(places: &Array<u32>, tile: usize, #[comptime] word: usize) -> usize {
    places[places[5] as usize + tile * TILE + word] as usize
}
