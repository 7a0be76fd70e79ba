//! A conversation.

use crate::{CausalLm, Error, Flow, GenerateOptions, Generation, Heard};
use halfbyte_checkpoint::ChatMessage;

/// A conversation with a [`CausalLm`]. What was said stays in the KV cache: a turn computes only what is
/// new.
pub struct Chat<'m> {
    model: &'m mut CausalLm,
    messages: Vec<ChatMessage>,
    /// What the first message is, if a system message was given.
    system: usize,
}

impl<'m> Chat<'m> {
    pub(crate) fn new(model: &'m mut CausalLm, system: Option<&str>) -> Self {
        let messages: Vec<ChatMessage> =
            system.map(|text| ChatMessage::new("system", text)).into_iter().collect();
        Self { model, system: messages.len(), messages }
    }

    /// The model that is talked to.
    pub fn model(&self) -> &CausalLm {
        self.model
    }

    /// Forgets everything but the system message.
    pub fn clear(&mut self) {
        self.messages.truncate(self.system);
    }

    /// Forgets the oldest turns where the context has no room for the conversation with `text` as its next message and an
    /// answer of `tokens` tokens; then down to half the context, so that not every turn from here on is computed from the
    /// beginning. The system message stays, and so does `text`, however long. How many turns are forgotten: 0 where all
    /// fits.
    ///
    /// # Errors
    /// As [`say`](Self::say), for what cannot be encoded.
    pub fn make_room(&mut self, text: &str, tokens: usize) -> Result<usize, Error> {
        self.messages.push(ChatMessage::new("user", text));
        let forgotten = self.forget(tokens);
        self.messages.pop();
        forgotten
    }

    fn forget(&mut self, tokens: usize) -> Result<usize, Error> {
        let context = self.model.context();
        let (mut most, mut turns) = (context.saturating_sub(tokens), 0);
        while self.ids()?.len() > most {
            let is_next = |at: &usize| self.messages[*at].role == "user";
            let Some(next) = (self.system + 1..self.messages.len()).find(is_next) else { break };
            self.messages.drain(self.system..next);
            (most, turns) = (most.min(context / 2), turns + 1);
        }
        Ok(turns)
    }

    /// The tokens of the conversation, up to where the model is to answer.
    fn ids(&self) -> Result<Vec<u32>, Error> {
        if self.model.has_chat_template() {
            return self.model.encode_conversation(&self.messages);
        }
        let mut plain = String::new();
        for ChatMessage { role, content } in &self.messages {
            match role.as_str() {
                "system" => plain += &format!("{content}\n"),
                "user" if plain.is_empty() => plain += content,
                "user" => plain += &format!(" {content}"),
                _ => plain += content,
            }
        }
        self.model.encode_any(&plain)
    }

    /// Says `text` and streams the answer to `on_text`, piece by piece, never an empty one. A stopped answer stays in the
    /// conversation as far as it got. Without a chat template the text is continued as it is.
    ///
    /// # Errors
    /// If the conversation no longer fits the context, or a device fails; the conversation is then as
    /// before this turn.
    pub fn say(
        &mut self,
        text: &str,
        options: &GenerateOptions,
        on_text: &mut dyn FnMut(&str) -> Flow,
    ) -> Result<Generation, Error> {
        self.say_heard(text, options, &mut |heard| heard.tell(on_text))
    }

    /// [`say`](Self::say), whose receiver hears of each chunk of the prompt and each token, and may stop at any.
    ///
    /// # Errors
    /// As [`say`](Self::say).
    pub fn say_heard(
        &mut self,
        text: &str,
        options: &GenerateOptions,
        listen: &mut dyn FnMut(Heard<'_>) -> Flow,
    ) -> Result<Generation, Error> {
        self.messages.push(ChatMessage::new("user", text));
        let answer = self.ids().and_then(|ids| self.model.generate_ids(&ids, options, listen));
        match &answer {
            Ok(answer) if self.model.has_chat_template() => {
                self.messages.push(ChatMessage::new("assistant", answer.text.trim()));
            }
            Ok(answer) => self.messages.push(ChatMessage::new("assistant", &answer.text)),
            Err(_) => {
                self.messages.pop();
            }
        }
        answer
    }
}
