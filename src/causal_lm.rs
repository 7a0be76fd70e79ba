//! A causal language model: loaded, and asked.

use crate::attempts::Attempts;
use crate::batch_attempts::BatchAttempts;
use crate::chat::Chat;
use crate::event::Event;
use crate::loading::Loaded;
use crate::memory_report::MemoryRow;
use crate::model_source::ModelSource;
use crate::opened::Opened;
use crate::{Error, Flow, Heard, LoadOptions, Progress, SampleParams, Silent};
use halfbyte_checkpoint::{ChatMessage, GenerationConfig, Tokenizer};
use halfbyte_inference::{Came, Finish, Logits, ModelError, Score, Scoring, Session, Task};
use std::collections::BTreeMap;

/// Bytes for each token of the context up to which a prompt is cut into tokens without asking first whether it can fit:
/// so much is cut in no time.
const CERTAINLY_CUT: usize = 16;

/// How to generate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GenerateOptions {
    /// The most tokens to generate.
    pub max_new_tokens: usize,
    /// How each is chosen.
    pub sample: SampleParams,
}

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stop {
    /// The model said so.
    EndOfText,
    /// [`GenerateOptions::max_new_tokens`] were generated.
    MaxNewTokens,
    /// The context is full.
    ContextFull,
    /// The receiver of the text said [`Flow::Stop`].
    Cancelled,
}

/// A generated text.
#[derive(Debug, Clone)]
pub struct Generation {
    /// The new text, without the prompt.
    pub text: String,
    /// The new tokens, without the one that ends the text.
    pub token_ids: Vec<u32>,
    /// Tokens of the prompt, those that were still in the cache included.
    pub prompt_tokens: usize,
    /// Tokens of the prompt that were in the cache and were not computed again.
    pub cached_tokens: usize,
    /// Tokens of the prompt that the cache held at the end: fewer than all where the receiver stopped it within the prompt.
    pub prompt_tokens_done: usize,
    /// Why it ended.
    pub stop: Stop,
    /// Tokens of the prompt that were computed, a second.
    pub prefill_tokens_per_second: Option<f64>,
    /// New tokens after the first, a second.
    pub decode_tokens_per_second: Option<f64>,
}

impl Generation {
    fn new(
        text: String,
        generation: halfbyte_inference::Generation,
        prompt_tokens: usize,
        cached_tokens: usize,
        prompt_tokens_done: usize,
    ) -> Self {
        let timings = generation.timings;
        let rate = |tokens: usize, rate: f64| (tokens > 0 && rate > 0.0).then_some(rate);
        Self {
            text,
            token_ids: generation.tokens,
            prompt_tokens,
            cached_tokens,
            prompt_tokens_done,
            stop: match generation.finish {
                Finish::Stop(_) => Stop::EndOfText,
                Finish::MaxTokens => Stop::MaxNewTokens,
                Finish::ContextFull => Stop::ContextFull,
                Finish::Cancelled => Stop::Cancelled,
            },
            prefill_tokens_per_second: rate(timings.prefill_tokens, timings.prefill_tokens_per_second()),
            decode_tokens_per_second: rate(timings.decode_tokens, timings.decode_tokens_per_second()),
        }
    }
}

/// A causal language model that is loaded and ready.
pub struct CausalLm {
    loaded: Loaded,
    session: Session,
    tokenizer: Option<Tokenizer>,
    generation: GenerationConfig,
}

impl std::fmt::Debug for CausalLm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CausalLm").field("loaded", &self.loaded).finish()
    }
}

impl CausalLm {
    /// Loads a model in NF4 with double quantization, wherever it fits: a Hub id, a local directory, or
    /// the bundled `stories`.
    ///
    /// # Errors
    /// What is wrong with the model, or why it does not fit, in one line.
    pub fn from_pretrained(model: &str) -> Result<Self, Error> {
        Self::load(&ModelSource::named(model), &LoadOptions::default(), &mut Silent)
    }

    /// Plans, then loads by the plan. If an allocation fails although it was planned, blocks move to the
    /// next device; what happened is in [`events`](Self::events).
    ///
    /// # Errors
    /// What is wrong with the model or the options, or why it does not fit, in one line.
    pub fn load(
        source: &ModelSource,
        options: &LoadOptions,
        progress: &mut dyn Progress,
    ) -> Result<Self, Error> {
        Self::from_opened(Opened::new(source, options, progress)?)
    }

    pub(crate) fn from_opened(opened: Opened<'_>) -> Result<Self, Error> {
        let generation = opened.model().checkpoint().map(|one| one.generation.clone()).unwrap_or_default();
        let (loaded, tokenizer) = opened.load(Task::Generate)?;
        Ok(Self { loaded, tokenizer, session: Session::new(0), generation })
    }

    /// Where the model lives and what it holds.
    pub fn loaded(&self) -> &Loaded {
        &self.loaded
    }

    /// The model's name: its directory, Hub id or shape.
    pub fn name(&self) -> &str {
        self.loaded.name()
    }

    /// Tokens that a prompt and its continuation may have together.
    pub fn context(&self) -> usize {
        self.loaded.context()
    }

    /// Seconds from the call to [`load`](Self::load) to its return.
    pub fn load_seconds(&self) -> f64 {
        self.loaded.load_seconds()
    }

    /// What happened while loading and running that was not planned.
    pub fn events(&self) -> &[Event] {
        self.loaded.events()
    }

    /// Blocks and their devices, as accelerate's `hf_device_map`.
    pub fn device_map(&self) -> BTreeMap<String, String> {
        self.loaded.device_map()
    }

    /// How many blocks live on `device`.
    pub fn blocks_on(&self, device: &str) -> usize {
        self.loaded.blocks_on(device)
    }

    /// Planned, allocated and witnessed memory of each device that holds a part of the model.
    pub fn memory(&self) -> Vec<MemoryRow> {
        self.loaded.memory()
    }

    /// Dispatches and submissions so far, `(dispatches, submissions)`.
    pub fn counts(&self) -> (u64, u64) {
        self.loaded.counts()
    }

    /// Sampling as the model's generation_config.json wants it; greedy if it says nothing.
    pub fn default_sampling(&self) -> SampleParams {
        let config = &self.generation;
        let drawn = config.do_sample.unwrap_or(false);
        SampleParams {
            temperature: if drawn { config.temperature.unwrap_or(1.0) as f32 } else { 0.0 },
            top_k: config.top_k.unwrap_or(if drawn { 50 } else { 0 }),
            top_p: config.top_p.unwrap_or(1.0) as f32,
            repetition_penalty: config.repetition_penalty.unwrap_or(1.0) as f32,
            seed: 0,
        }
    }

    /// The most new tokens as generation_config.json wants it.
    pub fn default_max_new_tokens(&self) -> Option<usize> {
        self.generation.max_new_tokens
    }

    /// The model's own way of generating.
    pub fn default_options(&self) -> GenerateOptions {
        GenerateOptions {
            max_new_tokens: self.default_max_new_tokens().unwrap_or(256),
            sample: self.default_sampling(),
        }
    }

    /// Whether the model came with a tokenizer; without one only token ids go in and out.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// Whether the model came with a chat template.
    pub fn has_chat_template(&self) -> bool {
        self.tokenizer.as_ref().is_some_and(Tokenizer::has_chat_template)
    }

    /// Continues `prompt`, giving each piece of text to `on_text` as it comes, never an empty one: together they are the
    /// answer's [`text`](Generation::text). What a former call left in the KV cache is used as far as the beginnings agree.
    ///
    /// A text can be stopped where it has a new piece. [`generate_ids`](Self::generate_ids) asks at every token, and
    /// between the chunks of a long prompt, too.
    ///
    /// An allocation that fails and a device that is lost on the way do not end the text: it goes on from
    /// the tokens that it has, on other devices or with less at once, and [`events`](Self::events) says so.
    ///
    /// # Errors
    /// An empty prompt, one longer than the context, a failed device. The model can be asked again.
    pub fn generate(
        &mut self,
        prompt: &str,
        options: &GenerateOptions,
        on_text: &mut dyn FnMut(&str) -> Flow,
    ) -> Result<Generation, Error> {
        let ids = self.encode(prompt)?;
        self.generate_ids(&ids, options, &mut |heard| heard.tell(on_text))
    }

    /// The token ids of a prompt that can be continued, as [`generate`](Self::generate) takes them.
    ///
    /// # Errors
    /// No tokenizer, an empty prompt, one longer than the context.
    pub fn encode(&self, prompt: &str) -> Result<Vec<u32>, Error> {
        let blueprint = self.loaded.engine.blueprint();
        let (context, max_positions) = (blueprint.context, blueprint.max_positions);
        let bytes = prompt.len();
        if bytes / CERTAINLY_CUT > context {
            let fewest = self.needed_tokenizer()?.fewest_tokens(prompt);
            if fewest > context {
                return Err(ModelError::PromptTooLong { bytes, fewest, context, max_positions }.into());
            }
        }
        let ids = self.encode_any(prompt)?;
        if ids.len() > context {
            let tokens = ids.len();
            return Err(ModelError::ContextTooShort { tokens, context, max_positions }.into());
        }
        Ok(ids)
    }

    /// The token ids of a prompt, however long.
    pub(crate) fn encode_any(&self, prompt: &str) -> Result<Vec<u32>, Error> {
        if prompt.is_empty() {
            return Err(ModelError::EmptyPrompt.into());
        }
        Ok(self.needed_tokenizer()?.encode(prompt, true)?)
    }

    /// [`generate`](Self::generate) from token ids, whose receiver hears of each chunk of the prompt and each token, with
    /// the text that it completes. Without a tokenizer no text is made.
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    pub fn generate_ids(
        &mut self,
        prompt: &[u32],
        options: &GenerateOptions,
        listen: &mut dyn FnMut(Heard<'_>) -> Flow,
    ) -> Result<Generation, Error> {
        let mut stream = self.tokenizer.as_ref().map(|tokenizer| tokenizer.decode_stream(true));
        let mut failed = None;
        if let Some(stream) = &mut stream {
            // The end of the prompt decides whether the first new token begins with a space.
            for &id in &prompt[prompt.len().saturating_sub(8)..] {
                stream.push(id)?;
            }
        }
        let inner = self.inner_options(options);
        let mut text = String::new();
        let mut hear = |came| {
            let id = match came {
                Came::Prompt(cached) => return listen(Heard::Prompt { cached }),
                Came::Token(id) => id,
            };
            match stream.as_mut().map_or(Ok(None), |stream| stream.push(id)) {
                Ok(piece) => {
                    text.extend(piece.as_deref());
                    listen(Heard::Token { id, text: piece.as_deref() })
                }
                Err(error) => {
                    failed = Some(error);
                    Flow::Stop
                }
            }
        };
        let (session, context) = (&mut self.session, self.loaded.context());
        let mut attempts = Attempts::new(prompt);
        let needed = prompt.len().saturating_add(options.max_new_tokens).min(context);
        let generation = self.loaded.ask_in_parts(needed, &mut |engine, pause| {
            attempts.go_on(engine, session, &inner, &mut hear, pause)
        })?;
        let cached_tokens = attempts.cached_tokens;
        if let Some(error) = failed {
            return Err(error.into());
        }
        if let Some(rest) = stream.map(|stream| stream.finish()).transpose()?.flatten() {
            text += &rest;
            listen(Heard::Rest(&rest));
        }
        let done = self.session.tokens().len().min(prompt.len());
        Ok(Generation::new(text, generation, prompt.len(), cached_tokens, done))
    }

    /// Continues several prompts of any lengths, each with the text that it would get alone. As many run
    /// together as the model was loaded for ([`LoadOptions::sequences`]); each weight is read once for all
    /// of them. What the KV cache held before is forgotten.
    ///
    /// # Errors
    /// As [`generate`](Self::generate), for any of the prompts; then none is continued.
    pub fn generate_batch(
        &mut self,
        prompts: &[&str],
        options: &GenerateOptions,
    ) -> Result<Vec<Generation>, Error> {
        let ids = prompts.iter().map(|prompt| self.encode(prompt)).collect::<Result<Vec<_>, _>>()?;
        let inner = self.inner_options(options);
        self.session.clear();
        let longest = ids.iter().map(Vec::len).max().unwrap_or(0);
        let needed = longest.saturating_add(options.max_new_tokens).min(self.loaded.context());
        let mut attempts = BatchAttempts::new(&ids);
        let texts =
            self.loaded.ask_in_parts(needed, &mut |engine, pause| attempts.go_on(engine, &inner, pause))?;
        let mut generations = Vec::with_capacity(texts.len());
        for (prompt, text) in ids.iter().zip(texts) {
            let mut stream = self.needed_tokenizer()?.decode_stream(true);
            // The end of the prompt decides whether the first new token begins with a space.
            for &id in &prompt[prompt.len().saturating_sub(8)..] {
                stream.push(id)?;
            }
            let mut new = String::new();
            for &id in &text.tokens {
                new.extend(stream.push(id)?);
            }
            new.extend(stream.finish()?);
            generations.push(Generation::new(new, text, prompt.len(), 0, prompt.len()));
        }
        Ok(generations)
    }

    fn inner_options(&self, options: &GenerateOptions) -> halfbyte_inference::GenerateOptions {
        halfbyte_inference::GenerateOptions {
            max_new_tokens: options.max_new_tokens,
            sample: options.sample,
            stop: self.generation.eos_token_ids.clone(),
        }
    }

    /// Begins a conversation.
    pub fn chat(&mut self, system: Option<&str>) -> Chat<'_> {
        Chat::new(self, system)
    }

    /// The model's answer to a conversation, by its chat template. `on_text` is called as by [`generate`](Self::generate).
    ///
    /// # Errors
    /// As [`generate`](Self::generate), and if there is no chat template.
    pub fn answer(
        &mut self,
        messages: &[ChatMessage],
        options: &GenerateOptions,
        on_text: &mut dyn FnMut(&str) -> Flow,
    ) -> Result<Generation, Error> {
        let ids = self.encode_conversation(messages)?;
        self.generate_ids(&ids, options, &mut |heard| heard.tell(on_text))
    }

    /// The token ids of a conversation up to where the model is to answer, by its chat template, as
    /// [`generate_ids`](Self::generate_ids) takes them.
    ///
    /// # Errors
    /// No tokenizer, no chat template, or one that refuses this conversation.
    pub fn encode_conversation(&self, messages: &[ChatMessage]) -> Result<Vec<u32>, Error> {
        let tokenizer = self.needed_tokenizer()?;
        let prompt = tokenizer.apply_chat_template(messages, true)?;
        Ok(tokenizer.encode(&prompt, false)?)
    }

    /// Float32 logits of every position, `[tokens, vocabulary]`.
    ///
    /// # Errors
    /// As [`generate`](Self::generate); that they themselves do not fit.
    pub fn logits(&mut self, ids: &[u32]) -> Result<Vec<f32>, Error> {
        self.session.clear();
        let needed = ids.len().min(self.loaded.context());
        let bytes = (needed * self.loaded.engine.blueprint().vocab * size_of::<f32>()) as u64;
        self.loaded.make_way(bytes, needed, &format!("the logits of {needed} tokens"))?;
        let mut logits = Logits::new(self.session.sequence());
        let asked = self.loaded.ask_in_parts(needed, &mut |engine, pause| {
            // Blocks may move between chunks.
            while !pollster::block_on(logits.chunk(engine, ids))? {
                if pause() {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        });
        self.loaded.answered();
        asked.map(|()| logits.take())
    }

    /// How well the model predicts a text, its first token given. Texts longer than the context are read
    /// in windows that overlap by half.
    ///
    /// # Errors
    /// A text of fewer than two tokens; as [`generate`](Self::generate).
    pub fn perplexity(&mut self, text: &str) -> Result<Score, Error> {
        let ids = self.needed_tokenizer()?.encode(text, true)?;
        if ids.len() < 2 {
            return Err(Error::Usage(format!(
                "perplexity needs a text of two tokens or more, not {}",
                ids.len()
            )));
        }
        self.session.clear();
        let sequence = self.session.sequence();
        let needed = ids.len().min(self.loaded.context());
        let mut scoring = Scoring::new();
        self.loaded.ask_in_parts(needed, &mut |engine, pause| {
            // Blocks may move between windows.
            while !pollster::block_on(scoring.window(engine, sequence, &ids))? {
                if pause() {
                    return Ok(None);
                }
            }
            Ok(Some(scoring.score()))
        })
    }

    fn needed_tokenizer(&self) -> Result<&Tokenizer, Error> {
        self.tokenizer.as_ref().ok_or_else(|| self.loaded.no_tokenizer())
    }
}
