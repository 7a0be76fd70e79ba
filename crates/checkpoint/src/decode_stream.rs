//! Token ids to text while they arrive, never half a character.

use crate::error::CheckpointError;
use crate::tokenizer::Tokenizer;

/// Gives out the text of token ids as soon as it is certain.
///
/// A character may be spread over several tokens (byte-level vocabularies split UTF-8), and a token's
/// text may depend on the one before it (a leading space is dropped at the start only). So a window of
/// recent ids is decoded as a whole, and only what is new and complete is given out. The pieces and
/// [`finish`](Self::finish) together are the text that [`Tokenizer::decode`] makes of all ids.
#[derive(Debug)]
pub struct DecodeStream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    /// The ids of the last piece, for context, then those not yet given out.
    window: Vec<u32>,
    /// How many of `window` have been given out.
    context: usize,
    /// The text of `window[..context]`, which `window`'s text begins with.
    given: String,
}

/// A character is four bytes at most, so this many ids without one are noise: it is given out as it is, or
/// the window, which is decoded anew for each id, would grow without end.
const LONGEST_WAIT: usize = 64;

impl<'a> DecodeStream<'a> {
    pub(crate) fn new(tokenizer: &'a Tokenizer, skip_special: bool) -> DecodeStream<'a> {
        DecodeStream { tokenizer, skip_special, window: Vec::new(), context: 0, given: String::new() }
    }

    /// Takes the next id and returns what text it completes, if any.
    ///
    /// # Errors
    /// If the tokenizer's decoder fails.
    pub fn push(&mut self, id: u32) -> Result<Option<String>, CheckpointError> {
        self.window.push(id);
        let text = self.tokenizer.decode(&self.window, self.skip_special)?;
        // Bytes that are no character yet decode to U+FFFD at the end. Wait for the rest of them.
        let waiting = self.window.len() - self.context;
        if text.ends_with(char::REPLACEMENT_CHARACTER) && waiting < LONGEST_WAIT {
            return Ok(None);
        }
        let piece = self.new_text(&text)?;
        if piece.is_empty() {
            return Ok(None);
        }
        let alone = self.tokenizer.decode(&self.window[self.context..], self.skip_special)?;
        // What is nothing at the beginning, such as spaces, does not say of what follows that it is not the beginning.
        if alone.is_empty() && self.window.len() < LONGEST_WAIT {
            self.given = text;
        } else {
            self.window.drain(..self.context);
            self.given = alone;
        }
        self.context = self.window.len();
        Ok(Some(piece))
    }

    /// What is left at the end: bytes that never became a character show as U+FFFD.
    ///
    /// # Errors
    /// If the tokenizer's decoder fails.
    pub fn finish(self) -> Result<Option<String>, CheckpointError> {
        let text = self.tokenizer.decode(&self.window, self.skip_special)?;
        let piece = self.new_text(&text)?;
        Ok((!piece.is_empty()).then_some(piece))
    }

    /// The part of `text`, the whole window's, that has not been given out.
    fn new_text(&self, text: &str) -> Result<String, CheckpointError> {
        match text.strip_prefix(self.given.as_str()) {
            Some(rest) => Ok(rest.to_string()),
            // A later token changed the text of an earlier one, which is out already (a byte-fallback
            // decoder does this to a run of bytes that turns out invalid): what the new ids say alone.
            None => self.tokenizer.decode(&self.window[self.context..], self.skip_special),
        }
    }
}
