//! Pieces back to text.

use super::normalizer::SPACE;
use tokenizers::{Decoder, Result};

/// Puts pieces together: bytes to characters, [`SPACE`] to spaces, without the space that was put before the text.
#[derive(Debug)]
pub(crate) struct SentencePieceDecoder {
    /// There are pieces for bytes.
    pub(super) bytes: bool,
    /// A text begins with a space that is not its own.
    pub(super) prefix: bool,
    /// Nor are any others at the beginning.
    pub(super) remove_extra_whitespaces: bool,
}

impl Decoder for SentencePieceDecoder {
    fn decode_chain(&self, tokens: Vec<String>) -> Result<Vec<String>> {
        let mut text = String::new();
        let mut run = Vec::new();
        let mut at_start = self.prefix || self.remove_extra_whitespaces;
        for token in &tokens {
            if let Some(byte) = byte_of(token).filter(|_| self.bytes) {
                run.push(byte);
                continue;
            }
            push_bytes(&mut text, &std::mem::take(&mut run));
            at_start &= text.is_empty();
            let piece = match token.strip_prefix(SPACE).filter(|_| at_start) {
                Some(rest) => {
                    at_start = self.remove_extra_whitespaces;
                    rest
                }
                None => token,
            };
            text.extend(piece.chars().map(|c| if c == SPACE { ' ' } else { c }));
        }
        push_bytes(&mut text, &run);
        Ok(vec![text])
    }
}

/// The byte that a piece such as `<0x0A>` stands for.
fn byte_of(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    let hex = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    u8::from_str_radix(digits, 16).ok().filter(|_| hex)
}

/// Appends the characters that bytes make; each byte that is of none becomes U+FFFD.
fn push_bytes(text: &mut String, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match std::str::from_utf8(bytes) {
            Ok(valid) => {
                text.push_str(valid);
                return;
            }
            Err(error) => {
                let (valid, rest) = bytes.split_at(error.valid_up_to());
                text.push_str(&String::from_utf8_lossy(valid));
                text.push(char::REPLACEMENT_CHARACTER);
                bytes = &rest[1..];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_become_characters_or_replacements() {
        let mut text = String::new();
        push_bytes(&mut text, b"\xe2\x98\x83a\xe2\x98b\xf0\xff");
        assert_eq!(text, "☃a\u{fffd}\u{fffd}b\u{fffd}\u{fffd}");
        for (piece, byte) in [
            ("<0x0A>", Some(10)),
            ("<0xff>", Some(255)),
            ("<0x+A>", None),
            ("<0x0A", None),
            ("<0x00A>", None),
        ] {
            assert_eq!(byte_of(piece), byte, "{piece}");
        }
    }
}
