//! Texts as vectors.

use crate::loading::Loaded;
use crate::model_source::ModelSource;
use crate::opened::Opened;
use crate::{Error, LoadOptions, Progress, Silent};
use halfbyte_checkpoint::Tokenizer;
use halfbyte_inference::{Encoded, Features, ModelError, Task, features};

/// How the vectors of a text's tokens become one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean, as most sentence encoders were trained.
    #[default]
    Mean,
    /// The first token's: `[CLS]`.
    First,
    /// The checkpoint's own pooler over the first token's.
    Pooler,
}

/// An encoder that is loaded and ready: BERT, RoBERTa, DistilBERT.
pub struct Embedder {
    loaded: Loaded,
    tokenizer: Option<Tokenizer>,
}

impl std::fmt::Debug for Embedder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Embedder").field("loaded", &self.loaded).finish()
    }
}

impl Embedder {
    /// Loads an encoder in NF4 with double quantization, wherever it fits.
    ///
    /// # Errors
    /// What is wrong with the model, or why it does not fit, in one line.
    pub fn from_pretrained(model: &str) -> Result<Self, Error> {
        Self::load(&ModelSource::named(model), &LoadOptions::default(), &mut Silent)
    }

    /// Plans, then loads by the plan. A classifier's head is left out.
    ///
    /// # Errors
    /// As [`from_pretrained`](Self::from_pretrained).
    pub fn load(
        source: &ModelSource,
        options: &LoadOptions,
        progress: &mut dyn Progress,
    ) -> Result<Self, Error> {
        Self::from_opened(Opened::new(source, options, progress)?)
    }

    pub(crate) fn from_opened(opened: Opened<'_>) -> Result<Self, Error> {
        let (loaded, tokenizer) = opened.load(Task::Embed)?;
        Ok(Self { loaded, tokenizer })
    }

    /// Where the model lives and what it holds.
    pub fn loaded(&self) -> &Loaded {
        &self.loaded
    }

    /// The last hidden states of token ids, `[tokens, hidden]` a text, and the pooler's output where there is a
    /// pooler. Needs no tokenizer.
    ///
    /// # Errors
    /// A text longer than the model's positions, an unknown token; a failed device.
    pub fn features(&mut self, texts: &[Encoded]) -> Result<Vec<Features>, Error> {
        let context = self.loaded.context();
        self.loaded.ask(context, &mut |engine| pollster::block_on(features(engine, texts)))
    }

    /// The vector of each text, `[hidden]`. Texts longer than the model's positions are cut.
    ///
    /// # Errors
    /// A model without a tokenizer, or without a pooler where it is asked for; a failed device.
    pub fn embed(&mut self, texts: &[&str], pooling: Pooling) -> Result<Vec<Vec<f32>>, Error> {
        let tokenizer = self.tokenizer.as_ref().ok_or_else(|| self.loaded.no_tokenizer())?;
        let context = self.loaded.context();
        let encoded = texts
            .iter()
            .map(|text| {
                let (ids, types, _) = tokenizer.encode_pair(text, None, context)?;
                Ok(Encoded { ids, types })
            })
            .collect::<Result<Vec<_>, Error>>()?;
        self.features(&encoded)?
            .into_iter()
            .map(|text| match pooling {
                Pooling::Mean => Ok(text.mean()),
                Pooling::First => Ok(text.first().to_vec()),
                Pooling::Pooler => text.pooled.ok_or_else(|| {
                    let message = "the checkpoint has no pooler; take Pooling::Mean or Pooling::First";
                    ModelError::Invalid(message.into()).into()
                }),
            })
            .collect()
    }
}
