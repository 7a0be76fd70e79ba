//! Cutting a text by merging neighbours, the pair first whose piece has the best score.

use super::model_file::Kind;
use super::prefixes::Prefixes;
use super::vocabulary::Vocabulary;
use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashMap};
use std::ops::Range;

/// No neighbour.
const NONE: usize = usize::MAX;

/// A stretch of the text that is one piece so far.
#[derive(Debug, Clone)]
struct Symbol {
    range: Range<usize>,
    before: usize,
    after: usize,
    /// What a user has defined stays as it is.
    frozen: bool,
}

/// Two neighbours that make a piece. The greatest is merged first: of the best score, of these the leftmost.
#[derive(Debug)]
struct Pair {
    score: f32,
    left: Reverse<usize>,
    right: usize,
    length: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Pair) -> Ordering {
        self.score.total_cmp(&other.score).then(self.left.cmp(&other.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Pair) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Pair) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

/// The pieces of `text`, as ranges of its bytes; those without an id are unknown. `defined` are the user's symbols.
pub(super) fn cut(text: &str, vocabulary: &Vocabulary, defined: &Prefixes) -> Vec<Range<usize>> {
    let mut symbols = characters(text, defined);
    let mut merging = Merging { text, vocabulary, pairs: BinaryHeap::new(), halves: HashMap::new() };
    for right in 1..symbols.len() {
        merging.consider(&symbols, right - 1, right);
    }
    while let Some(Pair { left: Reverse(left), right, length, .. }) = merging.pairs.pop() {
        // One of them may have been merged with another since.
        let both = symbols[left].range.len() + symbols[right].range.len();
        if symbols[left].range.is_empty() || symbols[right].range.is_empty() || both != length {
            continue;
        }
        let after = symbols[right].after;
        symbols[left].range.end = symbols[right].range.end;
        symbols[left].after = after;
        symbols[right].range = 0..0;
        if after != NONE {
            symbols[after].before = left;
        }
        merging.consider(&symbols, symbols[left].before, left);
        merging.consider(&symbols, left, after);
    }
    let mut out = Vec::with_capacity(symbols.len());
    for symbol in symbols.into_iter().filter(|symbol| !symbol.range.is_empty()) {
        merging.split_unused(symbol.range, &mut out);
    }
    out
}

/// The characters of a text, and the user's symbols in it.
fn characters(text: &str, defined: &Prefixes) -> Vec<Symbol> {
    let mut symbols: Vec<Symbol> = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(character) = text[at..].chars().next() {
        let symbol = defined.longest(&text[at..]);
        let end = at + symbol.unwrap_or(character.len_utf8());
        let number = symbols.len();
        symbols.push(Symbol {
            range: at..end,
            before: number.checked_sub(1).unwrap_or(NONE),
            after: number + 1,
            frozen: symbol.is_some(),
        });
        at = end;
    }
    if let Some(last) = symbols.last_mut() {
        last.after = NONE;
    }
    symbols
}

struct Merging<'a> {
    text: &'a str,
    vocabulary: &'a Vocabulary,
    pairs: BinaryHeap<Pair>,
    /// Of what pieces that are not to be used were made: where each is to be split again.
    halves: HashMap<&'a str, usize>,
}

impl<'a> Merging<'a> {
    /// Notes two neighbours if they make a piece.
    fn consider(&mut self, symbols: &[Symbol], left: usize, right: usize) {
        let (Some(first), Some(second)) = (symbols.get(left), symbols.get(right)) else { return };
        if first.frozen || second.frozen {
            return;
        }
        let range = first.range.start..second.range.end;
        let piece = &self.text[range.clone()];
        let Some(id) = self.vocabulary.piece(piece) else { return };
        self.pairs.push(Pair {
            score: self.vocabulary.score(id),
            left: Reverse(left),
            right,
            length: range.len(),
        });
        if self.vocabulary.kind(id) == Some(Kind::Unused) {
            self.halves.insert(piece, first.range.len());
        }
    }

    /// Gives out a piece, or what it was made of as long as that is not to be used.
    fn split_unused(&self, range: Range<usize>, out: &mut Vec<Range<usize>>) {
        let mut waiting = vec![range];
        while let Some(range) = waiting.pop() {
            let piece = &self.text[range.clone()];
            let unused =
                self.vocabulary.id(piece).and_then(|id| self.vocabulary.kind(id)) == Some(Kind::Unused);
            match self.halves.get(piece).filter(|_| unused) {
                Some(&half) => {
                    waiting.push(range.start + half..range.end);
                    waiting.push(range.start..range.start + half);
                }
                None => out.push(range),
            }
        }
    }
}
