//! Cutting a text into its most likely sequence of pieces.

use super::model_file::Kind;
use super::prefixes::Prefixes;
use super::vocabulary::Vocabulary;
use std::ops::Range;

/// What each byte of a symbol of the user is worth beyond the first, where logarithms of probabilities are below 0.
const DEFINED_BONUS: f32 = 0.1;
/// How much less likely an unknown character is than the least likely piece, as a logarithm.
const UNKNOWN_PENALTY: f32 = 10.0;

/// What finding the best sequence needs of a vocabulary.
#[derive(Debug)]
pub(super) struct Unigram {
    /// The pieces that a text may be cut into.
    pieces: Prefixes,
    /// The lowest score of a normal piece.
    lowest: f32,
}

/// The best way to a place in the text: its last piece begins at `start`.
#[derive(Debug, Clone, Copy)]
struct Way {
    score: f32,
    start: usize,
}

impl Unigram {
    pub fn new(vocabulary: &Vocabulary) -> Unigram {
        let ids = 0..vocabulary.len() as u32;
        let normal = ids.filter(|&id| vocabulary.kind(id) == Some(Kind::Normal));
        let lowest = normal.map(|id| vocabulary.score(id)).reduce(f32::min);
        Unigram {
            pieces: vocabulary.prefixes(&[Kind::Normal, Kind::UserDefined]),
            // Without a normal piece there is nothing to be less likely than.
            lowest: lowest.unwrap_or(0.0),
        }
    }

    /// The pieces of `text`, as ranges of its bytes; those without an id are unknown characters.
    ///
    /// Sums are of 32 bits, and of equal ones the first is kept: ties fall as in the library.
    pub fn cut(&self, text: &str, vocabulary: &Vocabulary) -> Vec<Range<usize>> {
        let mut ways: Vec<Option<Way>> = vec![None; text.len() + 1];
        let better = |ways: &mut Vec<Option<Way>>, end: usize, score: f32, start: usize| {
            if ways[end].is_none_or(|way| score > way.score) {
                ways[end] = Some(Way { score, start });
            }
        };
        for (start, character) in text.char_indices() {
            let here = match start {
                0 => 0.0,
                // Every character is a piece or unknown, so that each has a way to it; a piece never ends within one.
                _ => ways[start].map_or(0.0, |way| way.score),
            };
            let mut whole = false;
            for (length, id) in self.pieces.of(&text.as_bytes()[start..]) {
                let score = match vocabulary.kind(id) {
                    // Whatever its own score: better than any pieces that it could be cut into, and a long one than two short.
                    Some(Kind::UserDefined) => DEFINED_BONUS * (length - 1) as f32,
                    _ => vocabulary.score(id),
                };
                better(&mut ways, start + length, score + here, start);
                whole |= length == character.len_utf8();
            }
            if !whole {
                let score = self.lowest - UNKNOWN_PENALTY + here;
                better(&mut ways, start + character.len_utf8(), score, start);
            }
        }
        let mut out = Vec::new();
        let mut end = text.len();
        while let Some(Some(way)) = ways.get(end).filter(|_| end > 0) {
            out.push(way.start..end);
            end = way.start;
        }
        out.reverse();
        out
    }
}
