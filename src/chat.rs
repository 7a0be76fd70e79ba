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
    /// Everything so far, where the model has no chat template.
    plain: String,
}

impl<'m> Chat<'m> {
    pub(crate) fn new(model: &'m mut CausalLm, system: Option<&str>) -> Self {
        let messages: Vec<ChatMessage> =
            system.map(|text| ChatMessage::new("system", text)).into_iter().collect();
        let plain = system.map(|text| format!("{text}\n")).unwrap_or_default();
        Self { model, system: messages.len(), messages, plain }
    }

    /// The model that is talked to.
    pub fn model(&self) -> &CausalLm {
        self.model
    }

    /// Forgets everything but the system message.
    pub fn clear(&mut self) {
        self.messages.truncate(self.system);
        self.plain = self.messages.iter().map(|message| format!("{}\n", message.content)).collect();
    }

    /// Says `text` and streams the answer to `on_text`, piece by piece, never an empty one. A stopped answer stays in the conversation as far
    /// as it got. Without a chat template the text is continued as it is.
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
        if !self.model.has_chat_template() {
            let prompt =
                if self.plain.is_empty() { text.to_owned() } else { format!("{} {text}", self.plain) };
            let ids = self.model.encode(&prompt)?;
            let answer = self.model.generate_ids(&ids, options, listen)?;
            self.plain = prompt + &answer.text;
            return Ok(answer);
        }
        self.messages.push(ChatMessage::new("user", text));
        let ids = self.model.encode_conversation(&self.messages);
        let answer = ids.and_then(|ids| self.model.generate_ids(&ids, options, listen));
        match &answer {
            Ok(answer) => self.messages.push(ChatMessage::new("assistant", answer.text.trim())),
            Err(_) => {
                self.messages.pop();
            }
        }
        answer
    }
}
