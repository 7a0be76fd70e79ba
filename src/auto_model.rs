//! A model of any kind, for those who do not know which it is.

use crate::model_source::ModelSource;
use crate::opened::Opened;
use crate::{CausalLm, Embedder, Error, LoadOptions, Loaded, Progress, SequenceClassifier, TokenClassifier};
use halfbyte_inference::{Task, families};

/// What a model turned out to be.
#[derive(Debug)]
pub enum AutoModel {
    /// It continues texts.
    CausalLm(Box<CausalLm>),
    /// It labels texts.
    SequenceClassifier(Box<SequenceClassifier>),
    /// It labels the tokens of texts.
    TokenClassifier(Box<TokenClassifier>),
    /// It turns texts into vectors.
    Embedder(Box<Embedder>),
}

impl AutoModel {
    /// Loads a model as what its architecture says, or as [`LoadOptions::task`].
    ///
    /// # Errors
    /// What is wrong with the model or the options, or why it does not fit, in one line.
    pub fn load(
        source: &ModelSource,
        options: &LoadOptions,
        progress: &mut dyn Progress,
    ) -> Result<Self, Error> {
        let opened = Opened::new(source, options, progress)?;
        let found = families::task(opened.config())?;
        Ok(match options.task.unwrap_or(found) {
            Task::Generate => Self::CausalLm(Box::new(CausalLm::from_opened(opened)?)),
            Task::ClassifySequence => {
                Self::SequenceClassifier(Box::new(SequenceClassifier::from_opened(opened)?))
            }
            Task::ClassifyTokens => Self::TokenClassifier(Box::new(TokenClassifier::from_opened(opened)?)),
            Task::Embed => Self::Embedder(Box::new(Embedder::from_opened(opened)?)),
        })
    }

    /// Loads a model to label texts with: a token classifier as such, anything else as a
    /// [`SequenceClassifier`], with a new head where it has none.
    ///
    /// # Errors
    /// As [`load`](Self::load), and for a model that cannot label.
    pub fn load_classifier(
        source: &ModelSource,
        options: &LoadOptions,
        progress: &mut dyn Progress,
    ) -> Result<Self, Error> {
        let opened = Opened::new(source, options, progress)?;
        Ok(match families::task(opened.config())? {
            Task::ClassifyTokens => Self::TokenClassifier(Box::new(TokenClassifier::from_opened(opened)?)),
            _ => Self::SequenceClassifier(Box::new(SequenceClassifier::from_opened(opened)?)),
        })
    }

    /// Where the model lives and what it holds.
    pub fn loaded(&self) -> &Loaded {
        match self {
            Self::CausalLm(model) => model.loaded(),
            Self::SequenceClassifier(model) => model.loaded(),
            Self::TokenClassifier(model) => model.loaded(),
            Self::Embedder(model) => model.loaded(),
        }
    }
}
