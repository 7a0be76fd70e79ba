// What one submission is about, written by the host before it (words):
//   [0] rows  [1] outputs  [2] tiles  [3] 1 if tokens come from `chosen`
//   16..                     per row: token, sequence, position, token type
//   16 + 4 ROW_CAP..         per output: its row
//   16 + 4 ROW_CAP + OUTPUT_CAP..  per tile of rows: first row, rows, sequence, first position,
//                            first row of its sequence's run, rows of the run, 0, 0
//   .. + 8 ROW_CAP           per output that is drawn: temperature, top-k, top-p, penalty, seed (2 words), 0, 0
@group(0) @binding(0) var<storage, read> places: array<u32>;

override ROW_CAP: u32 = 1u;
override OUTPUT_CAP: u32 = 1u;

fn row_count() -> u32 {
    return places[0];
}

fn output_count() -> u32 {
    return places[1];
}

fn token_of(row: u32) -> u32 {
    return places[16u + 4u * row];
}

fn sequence_of(row: u32) -> u32 {
    return places[17u + 4u * row];
}

fn position_of(row: u32) -> u32 {
    return places[18u + 4u * row];
}

fn type_of(row: u32) -> u32 {
    return places[19u + 4u * row];
}

fn output_row(output: u32) -> u32 {
    return places[16u + 4u * ROW_CAP + output];
}

fn tile_word(tile: u32, word: u32) -> u32 {
    return places[16u + 4u * ROW_CAP + OUTPUT_CAP + 8u * tile + word];
}

fn draw_word(output: u32, word: u32) -> u32 {
    return places[16u + 12u * ROW_CAP + OUTPUT_CAP + 8u * output + word];
}
