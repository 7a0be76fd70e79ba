//! What sentencepiece does to a text before it is cut.

use super::charsmap::Charsmap;
use super::prefixes::Prefixes;
use tokenizers::{NormalizedString, Normalizer, Result};

/// How a space is written in pieces.
pub(super) const SPACE: char = '▁';

/// Where a space is put at an end of what lies between special tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prefix {
    /// Nowhere.
    Never,
    /// At the beginning of the text alone.
    First,
    /// After every special token, too.
    Always,
}

/// Replaces characters, cleans up spaces and writes them as [`SPACE`].
#[derive(Debug)]
pub(crate) struct SentencePieceNormalizer {
    pub(super) charsmap: Charsmap,
    /// Symbols of the user, in which nothing is replaced.
    pub(super) defined: Prefixes,
    pub(super) prefix: Prefix,
    /// The space goes to the end instead of the beginning.
    pub(super) space_behind: bool,
    pub(super) remove_extra_whitespaces: bool,
    pub(super) escape_whitespaces: bool,
}

impl SentencePieceNormalizer {
    /// What the text at `at` begins with: the bytes of a symbol or character, and what takes their place.
    fn step<'a>(&'a self, rest: &'a str) -> (usize, &'a str) {
        if let Some(length) = self.defined.longest(rest) {
            return (length, &rest[..length]);
        }
        self.charsmap.longest(rest).unwrap_or_else(|| {
            let length = rest.chars().next().map_or(rest.len(), char::len_utf8);
            (length, &rest[..length])
        })
    }

    /// Whether it removes spaces; `None` where a charsmap may remove anything.
    pub(crate) fn removes_spaces(&self) -> Option<bool> {
        self.charsmap.is_empty().then_some(self.remove_extra_whitespaces)
    }

    fn space(&self) -> char {
        if self.escape_whitespaces { SPACE } else { ' ' }
    }

    fn rewrite(&self, text: &str, first: bool) -> Rewritten {
        let mut out = Rewritten::default();
        let mut rest = text;
        if self.remove_extra_whitespaces {
            while let (length, " ") = self.step(rest) {
                out.take(&rest[..length], std::iter::empty());
                rest = &rest[length..];
            }
        }
        if rest.is_empty() {
            return out;
        }
        let add_space = match self.prefix {
            Prefix::Never => false,
            Prefix::First => first,
            Prefix::Always => true,
        };
        if add_space && !self.space_behind {
            out.take("", std::iter::once(self.space()));
        }
        let mut after_space = self.remove_extra_whitespaces;
        while !rest.is_empty() {
            let (length, replacement) = self.step(rest);
            let kept = if after_space { replacement.trim_start_matches(' ') } else { replacement };
            out.take(&rest[..length], kept.chars().map(|c| if c == ' ' { self.space() } else { c }));
            if !kept.is_empty() {
                after_space = self.remove_extra_whitespaces && kept.ends_with(' ');
            }
            rest = &rest[length..];
        }
        if self.remove_extra_whitespaces {
            out.remove_last(self.space());
        }
        if add_space && self.space_behind {
            out.take("", std::iter::once(self.space()));
        }
        out
    }
}

impl Normalizer for SentencePieceNormalizer {
    fn normalize(&self, text: &mut NormalizedString) -> Result<()> {
        let first = text.offsets_original().0 == 0;
        let Rewritten { characters, removed_first, .. } = self.rewrite(text.get(), first);
        text.transform(characters, removed_first);
        Ok(())
    }
}

/// A text and how it came from another, as [`NormalizedString::transform`] takes it: with each character 1 if it is new, else
/// minus the number of characters behind the one that it replaces and that are gone.
#[derive(Debug, Default)]
struct Rewritten {
    characters: Vec<(char, isize)>,
    /// Characters that are gone before the first that is replaced.
    removed_first: usize,
    /// The last character that is not new.
    last_replaced: Option<usize>,
}

impl Rewritten {
    /// Puts characters in the place of the next of the text.
    fn take(&mut self, from: &str, to: impl Iterator<Item = char>) {
        let mut replaced = from.chars().count();
        for c in to {
            if replaced > 0 {
                replaced -= 1;
                self.last_replaced = Some(self.characters.len());
                self.characters.push((c, 0));
            } else {
                self.characters.push((c, 1));
            }
        }
        self.remove(replaced);
    }

    /// Notes that so many more characters are gone.
    fn remove(&mut self, count: usize) {
        match self.last_replaced.and_then(|at| self.characters.get_mut(at)) {
            Some((_, change)) => *change -= count.cast_signed(),
            None => self.removed_first += count,
        }
    }

    /// Takes a character away from the end as often as it is there.
    fn remove_last(&mut self, character: char) {
        while let Some((_, change)) = self.characters.pop_if(|(last, _)| *last == character) {
            if change <= 0 {
                let replaced = self.characters.iter().rposition(|(_, change)| *change <= 0);
                self.last_replaced = replaced;
                self.remove(1 + change.unsigned_abs());
            }
        }
    }
}
