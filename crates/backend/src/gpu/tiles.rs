//! The rows of a submission, cut into tiles of one sequence.

use crate::Place;

/// Neighbouring rows of one sequence that one workgroup attends for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    /// Its first row.
    pub first: usize,
    /// How many rows it has.
    pub count: usize,
    /// Where the first row stands.
    pub place: Place,
    /// The first row of this sequence in the submission.
    pub run_first: usize,
    /// How many rows of this sequence there are.
    pub run_count: usize,
}

impl Tile {
    /// `[first, count, sequence, position, run_first, run_count]`, as kernels read it.
    pub fn words(&self) -> [u32; 6] {
        let Self { first, count, place, run_first, run_count } = *self;
        [first as u32, count as u32, place.sequence, place.position, run_first as u32, run_count as u32]
    }
}

/// Neighbouring rows of one sequence.
pub(super) fn runs(places: &[Place]) -> impl Iterator<Item = &[Place]> {
    places.chunk_by(|a, b| a.sequence == b.sequence)
}

/// Whether every row is the only one of its sequence.
pub fn all_apart(places: &[Place]) -> bool {
    runs(places).all(|run| run.len() == 1)
}

/// Tiles of up to `tile_rows` rows, which are at least one, in order.
pub fn tiles(places: &[Place], tile_rows: usize) -> impl Iterator<Item = Tile> + '_ {
    let mut next_run = 0;
    runs(places).flat_map(move |run| {
        let run_first = next_run;
        next_run += run.len();
        (0..run.len()).step_by(tile_rows.max(1)).map(move |at| Tile {
            first: run_first + at,
            count: tile_rows.max(1).min(run.len() - at),
            place: run[at],
            run_first,
            run_count: run.len(),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cut_runs_of_one_sequence() {
        let place = |sequence, position| Place { sequence, position, token_type: 0 };
        let places = [place(2, 5), place(2, 6), place(2, 7), place(0, 9)];
        let words: Vec<_> = tiles(&places, 2).map(|tile| tile.words()).collect();
        assert_eq!(words, [[0, 2, 2, 5, 0, 3], [2, 1, 2, 7, 0, 3], [3, 1, 0, 9, 3, 1]]);
        assert!(!all_apart(&places) && all_apart(&places[2..]));
        assert_eq!(tiles(&[], 4).count(), 0);
    }
}
