//! Text to token ids and back, over the `tokenizers` crate.

use crate::added_tokens::listed;
use crate::chat_template::{ChatMessage, ChatTemplate};
use crate::decode_stream::DecodeStream;
use crate::error::{CheckpointError, shown};
use crate::fewest_tokens::fewest_tokens;
use crate::files::{FileBytes, TokenizerFiles};
use crate::pipeline::Pipeline;
use crate::quiet_panic::quietly;
use crate::sentencepiece::{self, Settings};
use serde_json::{Map, Value};
use std::ops::Range;
use tokenizers::{AddedToken, Model, PostProcessor};

/// A model's tokenizer with its special tokens and chat template.
#[derive(Debug)]
pub struct Tokenizer {
    inner: Pipeline,
    file: String,
    bos: Option<String>,
    eos: Option<String>,
    chat_template: Option<ChatTemplate>,
    largest_id: Option<u32>,
}

/// A text's tokens and where each comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpannedTokens {
    /// Token ids, the frame included.
    pub ids: Vec<u32>,
    /// The bytes of the text that each stands for; `None` for a token of the frame.
    pub spans: Vec<Option<Range<usize>>>,
    /// Whether the text was cut.
    pub truncated: bool,
}

impl Tokenizer {
    /// A tokenizer from `tokenizer.json` alone: no named special tokens, no chat template.
    ///
    /// # Errors
    /// If the file is damaged.
    pub fn from_bytes(file: &str, json: &[u8]) -> Result<Tokenizer, CheckpointError> {
        let broken = |error: tokenizers::Error| CheckpointError::Tokenizer {
            file: file.to_string(),
            problem: format!("not a usable tokenizer: {}; download it again", shown(&error.to_string())),
        };
        // The `tokenizers` crate panics on some broken files. A download that broke off is found here;
        // stranger ones, such as a decoder with an impossible character, are caught.
        serde_json::from_slice::<serde::de::IgnoredAny>(json).map_err(|error| broken(Box::new(error)))?;
        let mut inner = quietly(|| Pipeline::from_bytes(json))
            .ok_or_else(|| broken("the tokenizers library panicked on it".into()))?
            .map_err(broken)?;
        // A training script may have left these in the file. Cutting and padding are the caller's to decide.
        inner.with_truncation(None).map_err(broken)?;
        inner.with_padding(None);
        let mut tokenizer = Tokenizer {
            inner,
            file: file.to_string(),
            bos: None,
            eos: None,
            chat_template: None,
            largest_id: None,
        };
        tokenizer.find_largest_id();
        // A frame that names a token which is not there shows only when it is put around a text.
        tokenizer.encode("a", true)?;
        Ok(tokenizer)
    }

    /// A tokenizer from sentencepiece's `tokenizer.model` alone, with the tokens that the model itself names.
    ///
    /// # Errors
    /// If the file is damaged, or of a kind that is not read.
    pub fn from_sentencepiece(file: &str, bytes: &[u8]) -> Result<Tokenizer, CheckpointError> {
        Self::with_settings(file, bytes, &Settings::default())
    }

    fn with_settings(
        file: &str,
        bytes: &[u8],
        settings: &Settings<'_>,
    ) -> Result<Tokenizer, CheckpointError> {
        let built = sentencepiece::build(bytes, settings)
            .map_err(|problem| CheckpointError::Tokenizer { file: file.to_string(), problem })?;
        let largest_id = built.pipeline.get_model().get_vocab_size().checked_sub(1);
        Ok(Tokenizer {
            inner: built.pipeline,
            file: file.to_string(),
            bos: built.bos,
            eos: built.eos,
            chat_template: None,
            largest_id: largest_id.and_then(|id| u32::try_from(id).ok()),
        })
    }

    /// A tokenizer from all its files; `model` is the model's name for messages. `tokenizer.json` is taken before a
    /// sentencepiece file.
    ///
    /// # Errors
    /// If there is neither of them, or one of the files is damaged.
    pub fn from_files(model: &str, files: &TokenizerFiles) -> Result<Tokenizer, CheckpointError> {
        let (file, bytes) = files.required(model)?.named();
        let config = files.config.as_ref().map(read_object).transpose()?;
        let special = files.special_tokens.as_ref().map(read_object).transpose()?;
        let mut settings = Settings {
            config: config.as_ref(),
            special: special.as_ref(),
            added: None,
            xlm_roberta: files.is_xlm_roberta(),
        };
        let mut tokenizer = if files.tokenizer.is_some() {
            let mut tokenizer = Self::from_bytes(file, bytes)?;
            tokenizer.bos = settings.token("bos_token");
            tokenizer.eos = settings.token("eos_token");
            if let Some(Value::Object(added)) =
                config.as_ref().and_then(|map| map.get("added_tokens_decoder"))
            {
                tokenizer.add_missing(added)?;
            }
            tokenizer
        } else {
            let added = files.added_tokens.as_ref().map(read_object).transpose()?;
            settings.added = added.as_ref();
            Self::with_settings(file, bytes, &settings)?
        };
        let template_file = files.config.as_ref().map_or(file, FileBytes::name);
        tokenizer.chat_template = match &files.chat_template {
            Some(file) => Some(ChatTemplate::new(file.name(), text_of(file)?)),
            None => match config.as_ref().and_then(|map| map.get("chat_template")) {
                Some(value) => ChatTemplate::from_json(template_file, value)?,
                None => None,
            },
        };
        Ok(tokenizer)
    }

    /// Token ids of a text. With `add_special` the tokenizer's own frame is put around it, such as
    /// `<s>` before or `[CLS]` and `[SEP]` around; a chat template has it already, so pass `false` there.
    ///
    /// # Errors
    /// If the tokenizer's model cannot represent the text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, CheckpointError> {
        let encoding = self.guard("encode", || self.inner.encode_fast(text, add_special))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The fewest tokens that a text can have, from its bytes alone; 0 where nothing is certain. Never more than
    /// [`encode`](Self::encode) gives, so that a text that is too long by far need not be cut to be refused.
    pub fn fewest_tokens(&self, text: &str) -> usize {
        fewest_tokens(&self.inner, text)
    }

    /// A text, or a pair of texts, as an encoder reads it: ids and the segment of each, with the
    /// tokenizer's frame around, cut to `most` tokens. Of a pair the longer text is cut first, as
    /// transformers' `longest_first` does. The last value says whether anything was cut.
    ///
    /// # Errors
    /// If the tokenizer's model cannot represent a text, or `most` leaves no room for it.
    pub fn encode_pair(
        &self,
        text: &str,
        pair: Option<&str>,
        most: usize,
    ) -> Result<(Vec<u32>, Vec<u32>, bool), CheckpointError> {
        let encode = |text: &str| self.guard("encode", || self.inner.encode_fast(text, false));
        let (encoding, cut) = self.frame(encode(text)?, pair.map(encode).transpose()?, most)?;
        Ok((encoding.get_ids().to_vec(), encoding.get_type_ids().to_vec(), cut))
    }

    /// A text as [`encode_pair`](Self::encode_pair) gives it, and for each token the bytes of the text that it
    /// stands for; `None` for a token of the frame.
    ///
    /// # Errors
    /// As [`encode_pair`](Self::encode_pair).
    pub fn encode_spans(&self, text: &str, most: usize) -> Result<SpannedTokens, CheckpointError> {
        let plain = self.guard("encode", || self.inner.encode(text, false))?;
        let (encoding, truncated) = self.frame(plain, None, most)?;
        let spans = encoding.get_offsets().iter().zip(encoding.get_special_tokens_mask());
        Ok(SpannedTokens {
            ids: encoding.get_ids().to_vec(),
            spans: spans.map(|(&(start, end), &frame)| (frame == 0).then_some(start..end)).collect(),
            truncated,
        })
    }

    /// Cuts a text or a pair to what `most` tokens leave beside the frame, and puts the frame around.
    fn frame(
        &self,
        first: tokenizers::Encoding,
        second: Option<tokenizers::Encoding>,
        most: usize,
    ) -> Result<(tokenizers::Encoding, bool), CheckpointError> {
        let frame = self.inner.get_post_processor().map_or(0, |frame| frame.added_tokens(second.is_some()));
        let long = first.len() + second.as_ref().map_or(0, tokenizers::Encoding::len);
        let cut = long + frame > most;
        let truncation = tokenizers::TruncationParams {
            max_length: most.saturating_sub(frame),
            ..tokenizers::TruncationParams::default()
        };
        let (first, second) = match cut {
            true => tokenizers::utils::truncation::truncate_encodings(first, second, &truncation)
                .map_err(|error| self.error("encode", &error))?,
            false => (first, second),
        };
        Ok((self.guard("encode", || self.inner.post_process(first, second, true))?, cut))
    }

    /// The text of token ids; with `skip_special` without the likes of `</s>`. Unknown ids are left out.
    ///
    /// # Errors
    /// If the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, CheckpointError> {
        self.guard("decode", || self.inner.decode(ids, skip_special))
    }

    /// A decoder that gives out text while ids arrive.
    pub fn decode_stream(&self, skip_special: bool) -> DecodeStream<'_> {
        DecodeStream::new(self, skip_special)
    }

    /// The id of the token with exactly this text.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The text of a token as the vocabulary writes it, such as `Ġthe`.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The token that begins a text, where the tokenizer names one.
    pub fn bos_id(&self) -> Option<u32> {
        self.token_id(self.bos.as_deref()?)
    }

    /// The token that ends a text, where the tokenizer names one. What ends generation is in
    /// [`GenerationConfig`](crate::generation::GenerationConfig).
    pub fn eos_id(&self) -> Option<u32> {
        self.token_id(self.eos.as_deref()?)
    }

    /// One more than the largest id, added tokens included: the rows that an embedding must have.
    pub fn vocab_size(&self) -> usize {
        self.largest_id.map_or(0, |id| id as usize + 1)
    }

    /// Checks that a model with `embedded` rows of embedding has one for every id.
    ///
    /// # Errors
    /// [`CheckpointError::TokenizerTooLarge`], with both numbers.
    pub fn check_vocab(&self, embedded: usize) -> Result<(), CheckpointError> {
        match self.largest_id {
            Some(largest_id) if largest_id as usize >= embedded => {
                Err(CheckpointError::TokenizerTooLarge { largest_id, embedded })
            }
            _ => Ok(()),
        }
    }

    /// Whether the model has a chat template.
    pub fn has_chat_template(&self) -> bool {
        self.chat_template.is_some()
    }

    /// A conversation as the text that the model was trained on; encode it without special tokens.
    /// With `add_generation_prompt` it ends where the model is to answer.
    ///
    /// # Errors
    /// If the model has no chat template, or the template refuses the conversation.
    pub fn apply_chat_template(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
    ) -> Result<String, CheckpointError> {
        let template = self.chat_template.as_ref().ok_or_else(|| CheckpointError::ChatTemplate {
            file: self.file.clone(),
            problem: "the model has none, so it was not trained to converse; give it a prompt to complete, or take its instruct or chat variant".to_string(),
        })?;
        template.render(messages, add_generation_prompt, self.bos.as_deref(), self.eos.as_deref())
    }

    /// Adds the tokens that `tokenizer_config.json` lists and `tokenizer.json` lacks, under the ids that it lists.
    fn add_missing(&mut self, added: &Map<String, Value>) -> Result<(), CheckpointError> {
        let mut missing: Vec<(u32, AddedToken)> = listed(added);
        missing.retain(|(_, token)| self.token_id(&token.content).is_none());
        for (id, token) in missing {
            self.inner.add_tokens(std::slice::from_ref(&token));
            let given = self.token_id(&token.content);
            if given != Some(id) {
                return Err(CheckpointError::Tokenizer {
                    file: self.file.clone(),
                    problem: format!(
                        "tokenizer_config.json gives token {} the id {id}, but after tokenizer.json it would be {}: the two files are of different models",
                        shown(&token.content),
                        given.map_or_else(|| "none".to_string(), |id| id.to_string())
                    ),
                });
            }
        }
        self.find_largest_id();
        Ok(())
    }

    fn find_largest_id(&mut self) {
        self.largest_id = self.inner.get_vocab(true).into_values().max();
    }

    /// Runs the library on a file that may be damaged in ways that it does not look for: a panic of its own
    /// becomes an error.
    fn guard<T>(
        &self,
        what: &str,
        run: impl FnOnce() -> tokenizers::Result<T>,
    ) -> Result<T, CheckpointError> {
        match quietly(run) {
            Some(result) => result.map_err(|error| self.error(what, &error)),
            None => Err(CheckpointError::Tokenizer {
                file: self.file.clone(),
                problem: format!("cannot {what}: the tokenizers library panicked on it; download it again"),
            }),
        }
    }

    fn error(&self, what: &str, error: &tokenizers::Error) -> CheckpointError {
        CheckpointError::Tokenizer {
            file: self.file.clone(),
            problem: format!("cannot {what}: {}", shown(&error.to_string())),
        }
    }
}

fn read_object(file: &FileBytes) -> Result<Map<String, Value>, CheckpointError> {
    serde_json::from_slice(file.bytes()).map_err(|error| CheckpointError::Json {
        file: file.name().to_string(),
        problem: shown(&error.to_string()),
    })
}

fn text_of(file: &FileBytes) -> Result<&str, CheckpointError> {
    std::str::from_utf8(file.bytes()).map_err(|error| CheckpointError::ChatTemplate {
        file: file.name().to_string(),
        problem: format!("it is not UTF-8: {error}"),
    })
}
