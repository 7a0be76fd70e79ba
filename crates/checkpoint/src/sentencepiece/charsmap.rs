//! Replacements of characters before a text is cut: sentencepiece's `precompiled_charsmap`.
//!
//! The file has a double-array trie in the layout of darts-clone, in 32-bit units, then the replacements, each ended by a zero
//! byte. A unit of the trie has, from the low end: 8 bits of label, one that says whether a value hangs on it, one that
//! says whether the offset is shifted by 8, 21 bits of offset, and the highest bit set where the unit is a value itself.

/// The replacements. What is found replaces the longest beginning of a text.
#[derive(Debug, Default)]
pub(super) struct Charsmap {
    units: Vec<u32>,
    replacements: String,
}

impl Charsmap {
    /// Reads the replacements; no bytes are none.
    pub fn parse(bytes: &[u8]) -> Result<Charsmap, String> {
        if bytes.is_empty() {
            return Ok(Charsmap::default());
        }
        let (length, rest) = bytes.split_first_chunk::<4>().ok_or("its charsmap is cut off")?;
        let length = u32::from_le_bytes(*length) as usize;
        if length > rest.len() || length == 0 || !length.is_multiple_of(4) {
            return Err(format!("its charsmap has a trie of {length} bytes in {}", rest.len()));
        }
        let (trie, replacements) = rest.split_at(length);
        let (units, _) = trie.as_chunks::<4>();
        let replacements = std::str::from_utf8(replacements)
            .map_err(|error| format!("its charsmap is not UTF-8: {error}"))?;
        if let Some(long) = replacements.split('\0').map(str::len).find(|&length| length > LONGEST) {
            return Err(format!("its charsmap has a replacement of {long} bytes"));
        }
        Ok(Charsmap {
            units: units.iter().map(|unit| u32::from_le_bytes(*unit)).collect(),
            replacements: replacements.to_string(),
        })
    }

    /// Whether nothing is replaced.
    pub fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    /// The longest beginning of `text` that is replaced: how many bytes it has, and what comes in its place.
    pub fn longest(&self, text: &str) -> Option<(usize, &str)> {
        let mut found = None;
        let mut at = offset(*self.units.first()?);
        for (index, byte) in text.bytes().enumerate().take(LONGEST) {
            at ^= byte as usize;
            // A damaged trie may lead anywhere; outside of it nothing is found.
            let Some(&unit) = self.units.get(at) else { break };
            if unit & LABEL != u32::from(byte) {
                break;
            }
            at ^= offset(unit);
            if unit & HAS_VALUE != 0 {
                let value = self.units.get(at).map(|unit| (unit & !IS_VALUE) as usize);
                let replacement = value.and_then(|value| self.replacements.get(value..)?.split('\0').next());
                // A character is replaced whole or not at all.
                if let Some(replacement) = replacement.filter(|_| text.is_char_boundary(index + 1)) {
                    found = Some((index + 1, replacement));
                }
            }
        }
        found
    }
}

/// The longest text that is replaced or takes another's place, in bytes: far more than any language has, and little enough
/// that a damaged trie that leads in circles takes no time.
const LONGEST: usize = 1024;
const IS_VALUE: u32 = 1 << 31;
const HAS_VALUE: u32 = 1 << 8;
/// A unit that is a value has no label.
const LABEL: u32 = IS_VALUE | 0xff;

/// Where a unit's children are, to be combined with the unit's own place.
fn offset(unit: u32) -> usize {
    ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A trie in which "a" becomes the replacement at `value`: the root at 0, "a" at 0x61, its value at 0x61 ^ 1.
    fn map(value: u32, replacements: &[u8]) -> Vec<u8> {
        let mut units = [0u32; 256];
        units[0x61] = 0x61 | HAS_VALUE | (1 << 10);
        units[0x60] = value | IS_VALUE;
        let mut bytes = 1024u32.to_le_bytes().to_vec();
        bytes.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
        bytes.extend(replacements);
        bytes
    }

    #[test]
    fn what_is_listed_is_replaced() {
        let charsmap = Charsmap::parse(&map(2, "x\0yé\0".as_bytes())).unwrap();
        assert_eq!(charsmap.longest("ab"), Some((1, "yé")));
        assert_eq!(charsmap.longest("b"), None);
        assert_eq!(charsmap.longest(""), None);
        assert_eq!(Charsmap::parse(&[]).unwrap().longest("a"), None);
    }

    #[test]
    fn damage_finds_nothing_or_is_said() {
        // A value outside of the replacements, and one within a character.
        for value in [9, 1, u32::MAX >> 1] {
            let charsmap = Charsmap::parse(&map(value, "é\0".as_bytes())).unwrap();
            assert_eq!(charsmap.longest("a"), None, "{value}");
        }
        for (bytes, said) in [
            (&[1u8, 2][..], "cut off"),
            (&[0, 0, 0, 0, 1], "a trie of 0 bytes"),
            (&[8, 0, 0, 0, 1, 1, 1, 1], "a trie of 8 bytes in 4"),
            (&[3, 0, 0, 0, 1, 1, 1, 1], "a trie of 3 bytes"),
            (&[4, 0, 0, 0, 1, 1, 1, 1, 0xff], "not UTF-8"),
        ] {
            let error = Charsmap::parse(bytes).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }
}
