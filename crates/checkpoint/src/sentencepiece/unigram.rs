//! Cutting a text into its most likely sequence of pieces.

use super::model_file::Kind;
use super::prefixes::Prefixes;
use super::vocabulary::Vocabulary;
use std::ops::Range;

/// How much less likely an unknown character is than the least likely piece, as a logarithm.
const UNKNOWN_PENALTY: f32 = 10.0;

/// What finding the best sequence needs of a vocabulary.
#[derive(Debug)]
pub(super) struct Unigram {
    /// The pieces that a text may be cut into.
    pieces: Prefixes,
    /// The scores of normal pieces lie between these.
    lowest: f32,
    highest: f32,
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
        let (lowest, highest) = normal
            .map(|id| vocabulary.score(id))
            .fold((f32::INFINITY, f32::NEG_INFINITY), |(lowest, highest), score| {
                (lowest.min(score), highest.max(score))
            });
        // Without a normal piece there is nothing to be less likely than.
        let (lowest, highest) = if lowest <= highest { (lowest, highest) } else { (0.0, 0.0) };
        Unigram { pieces: vocabulary.prefixes(&[Kind::Normal, Kind::UserDefined]), lowest, highest }
    }

    /// The pieces of `text`, as ranges of its bytes; those without an id are unknown characters.
    ///
    /// Precision is the library's, so that ties fall as there: a sum is compared in 64 bits and kept in 32.
    pub fn cut(&self, text: &str, vocabulary: &Vocabulary) -> Vec<Range<usize>> {
        let mut ways: Vec<Option<Way>> = vec![None; text.len() + 1];
        let better = |ways: &mut Vec<Option<Way>>, end: usize, score: f64, start: usize| {
            if ways[end].is_none_or(|way| score > f64::from(way.score)) {
                ways[end] = Some(Way { score: score as f32, start });
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
                    // Better than any pieces that it could be cut into.
                    Some(Kind::UserDefined) => f64::from(length as f32 * self.highest) - 0.1,
                    _ => f64::from(vocabulary.score(id)),
                };
                better(&mut ways, start + length, score + f64::from(here), start);
                whole |= length == character.len_utf8();
            }
            if !whole {
                let score = self.lowest - UNKNOWN_PENALTY + here;
                better(&mut ways, start + character.len_utf8(), f64::from(score), start);
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
