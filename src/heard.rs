//! What the receiver of an answer hears while it is made.

use crate::Flow;

/// What the receiver of an answer hears while it is made. Whatever it is, [`Flow::Stop`] ends the answer there, which
/// then has [`Stop::Cancelled`](crate::Stop::Cancelled).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard<'a> {
    /// A chunk of the prompt was computed, and there are more to come.
    Prompt {
        /// Tokens that the KV cache holds by now, from the beginning of the prompt. Where what a lost device held is
        /// computed again, those of the answer so far are among them.
        cached: usize,
    },
    /// The next token.
    Token {
        /// Its id.
        id: u32,
        /// The text that it completes, never empty: `None` where a token only begins a character, is a special one, or
        /// the model has no tokenizer.
        text: Option<&'a str>,
    },
    /// The answer has ended in the middle of a character, which this stands for. There is nothing left to stop.
    Rest(&'a str),
}

impl<'a> Heard<'a> {
    /// The new text, if there is any: never empty.
    pub fn text(self) -> Option<&'a str> {
        match self {
            Self::Prompt { .. } => None,
            Self::Token { text, .. } => text,
            Self::Rest(text) => Some(text),
        }
    }

    /// Tells someone who listens to text alone.
    pub(crate) fn tell(self, on_text: &mut dyn FnMut(&str) -> Flow) -> Flow {
        self.text().map_or(Flow::Continue, on_text)
    }
}
