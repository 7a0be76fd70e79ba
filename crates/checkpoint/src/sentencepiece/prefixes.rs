//! Which texts of a set another text begins with.

use std::sync::Arc;

/// A set of texts with a number each. They lie sorted: those that go on alike are a range that narrows byte by byte, so that
/// no text of the set is read further than it agrees.
#[derive(Debug)]
pub(super) struct Prefixes {
    texts: Vec<(Arc<str>, u32)>,
    /// `firsts[b]..firsts[b + 1]` begin with the byte `b`.
    firsts: Vec<usize>,
}

impl Prefixes {
    /// A set of texts, none of which is empty.
    pub fn new(texts: impl Iterator<Item = (Arc<str>, u32)>) -> Prefixes {
        let mut texts: Vec<_> = texts.collect();
        texts.sort_unstable();
        let first = |text: &str| text.as_bytes().first().map_or(0, |&byte| usize::from(byte));
        let firsts = (0..=256).map(|byte| texts.partition_point(|(text, _)| first(text) < byte)).collect();
        Prefixes { texts, firsts }
    }

    /// The texts that `text` begins with, shortest first: their lengths in bytes and their numbers.
    pub fn of<'a>(&'a self, text: &'a [u8]) -> impl Iterator<Item = (usize, u32)> + 'a {
        let byte_at = |(text, _): &(Arc<str>, u32), at: usize| text.as_bytes().get(at).copied();
        let mut range = match text.first() {
            Some(&byte) => self.firsts[usize::from(byte)]..self.firsts[usize::from(byte) + 1],
            None => 0..0,
        };
        let mut length = 1;
        std::iter::from_fn(move || {
            while let Some((first, number)) = self.texts[range.clone()].first() {
                let (here, number) = (length, (first.len() == length).then_some(*number));
                // A text that ends here sorts before those that go on, and goes out of the range with them.
                range = match text.get(length) {
                    Some(&byte) => {
                        let candidates = &self.texts[range.clone()];
                        let from = candidates.partition_point(|entry| byte_at(entry, here) < Some(byte));
                        let count =
                            candidates[from..].partition_point(|entry| byte_at(entry, here) == Some(byte));
                        range.start + from..range.start + from + count
                    }
                    None => 0..0,
                };
                length += 1;
                if let Some(number) = number {
                    return Some((here, number));
                }
            }
            None
        })
    }

    /// The longest text that `text` begins with: its length in bytes.
    pub fn longest(&self, text: &str) -> Option<usize> {
        self.of(text.as_bytes()).last().map(|(length, _)| length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_beginnings_are_found() {
        let words = ["a", "ab", "abcd", "b", "é", "éa", "z"];
        let set = Prefixes::new(words.iter().zip(0..).map(|(&word, number)| (word.into(), number)));
        for text in ["", "a", "abc", "abcde", "bé", "éa", "è", "zz", "ca"] {
            let found: Vec<_> = set.of(text.as_bytes()).collect();
            let expected: Vec<_> = (0..)
                .zip(words)
                .filter(|(_, word)| text.starts_with(word))
                .map(|(number, word)| (word.len(), number))
                .collect();
            assert_eq!(found, expected, "{text}");
            assert_eq!(set.longest(text), expected.last().map(|(length, _)| *length));
        }
        assert_eq!(Prefixes::new(std::iter::empty()).longest("a"), None);
    }
}
