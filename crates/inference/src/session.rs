//! One sequence of tokens, and what the KV cache holds of it.

use halfbyte_backend::{Answer, Fault};

use crate::engine::{Engine, Last, name};
use crate::{Flow, ModelError};

/// A conversation, a text, a prompt: tokens whose keys and values are in the cache of an [`Engine`].
///
/// The next prompt may share a beginning with it (the second turn of a conversation does); only the
/// rest is computed. Layers with a sliding window may keep no more than they need to go on: a prompt that goes back
/// farther than [`Settings::rows`](crate::Settings::rows) is computed whole. After an engine was lost and loaded again, or something else has used the
/// sequence, everything is.
#[derive(Debug)]
pub struct Session {
    sequence: u32,
    /// Tokens whose keys and values are cached, from position 0 on.
    tokens: Vec<u32>,
    /// The claim under which the engine holds them.
    claim: u64,
}

impl Session {
    /// An empty session in the place of one of the engine's sequences. Sessions that share a sequence
    /// take it from each other, and compute everything again when they go on.
    pub fn new(sequence: u32) -> Self {
        Self { sequence, tokens: Vec::new(), claim: 0 }
    }

    /// Which part of the cache it uses.
    pub fn sequence(&self) -> u32 {
        self.sequence
    }

    /// The tokens whose keys and values are cached.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.tokens.clear();
    }

    /// Makes the session `prompt`: keeps the longest beginning that is cached, computes the rest in
    /// chunks, and returns the logits after the last token, `[vocabulary]`.
    ///
    /// # Errors
    /// An empty prompt, one longer than the context, an unknown token; what a device says, after which
    /// the session holds only the beginning.
    pub async fn extend(&mut self, engine: &mut Engine, prompt: &[u32]) -> Result<Vec<f32>, ModelError> {
        match self.advance(engine, prompt, Last::Logits).await? {
            Answer::Logits(logits) => Ok(logits),
            other => Err(unexpected("logits", &other)),
        }
    }

    /// How many of `prompt`'s tokens [`extend`](Self::extend) would not compute.
    pub fn reusable(&self, engine: &Engine, prompt: &[u32]) -> usize {
        if !engine.holds(self.sequence, self.claim) {
            return 0;
        }
        let common = self.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        // The last token is always computed: its logits are what is asked for.
        let kept = common.min(prompt.len().saturating_sub(1));
        if engine.reaches(self.sequence, kept) { kept } else { 0 }
    }

    /// [`extend`](Self::extend) with another question to the last token.
    pub(crate) async fn advance(
        &mut self,
        engine: &mut Engine,
        prompt: &[u32],
        last: Last<'_>,
    ) -> Result<Answer, ModelError> {
        let answer = self.advance_heard(engine, prompt, last, &mut |_| Flow::Continue).await?;
        Ok(answer.unwrap_or(Answer::Nothing))
    }

    /// [`advance`](Self::advance), of which `between` hears before each further chunk how many tokens are cached; `None`
    /// if it stops there.
    pub(crate) async fn advance_heard(
        &mut self,
        engine: &mut Engine,
        prompt: &[u32],
        last: Last<'_>,
        between: &mut dyn FnMut(usize) -> Flow,
    ) -> Result<Option<Answer>, ModelError> {
        check(engine, prompt)?;
        let kept = self.reusable(engine, prompt);
        self.tokens.truncate(kept);
        if kept == 0 {
            self.claim = engine.claim(self.sequence)?;
        }
        let mut filled = kept;
        let mut between = |position| {
            filled = position;
            between(position)
        };
        let answer = engine.prefill(self.sequence, kept, &prompt[kept..], last, &mut between).await?;
        let filled = if answer.is_some() { prompt.len() } else { filled };
        self.tokens.extend_from_slice(&prompt[kept..filled]);
        Ok(answer)
    }

    /// Notes that a device has been given `token` at the next position.
    pub(crate) fn push(&mut self, token: u32) {
        self.tokens.push(token);
    }
}

/// Checks that an engine can take a prompt.
pub(crate) fn check(engine: &Engine, prompt: &[u32]) -> Result<(), ModelError> {
    let blueprint = engine.blueprint();
    if prompt.is_empty() {
        return Err(ModelError::EmptyPrompt);
    }
    if prompt.len() > blueprint.context {
        return Err(ModelError::ContextTooShort {
            tokens: prompt.len(),
            context: blueprint.context,
            max_positions: blueprint.max_positions,
        });
    }
    match prompt.iter().find(|&&token| token as usize >= blueprint.vocab) {
        Some(&token) => Err(ModelError::Token { token, vocab: blueprint.vocab }),
        None => Ok(()),
    }
}

/// A backend answered another question.
pub(crate) fn unexpected(wanted: &str, answer: &Answer) -> ModelError {
    Fault::Internal(format!("{wanted} expected, not {}", name(answer))).into()
}
