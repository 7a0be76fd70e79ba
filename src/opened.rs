//! A model that was opened to be loaded: what the doors of all kinds of models share.

use crate::loading::{Loaded, expect};
use crate::model_source::{Model, ModelSource};
use crate::{Error, LoadOptions, Progress};
use halfbyte_checkpoint::{ModelConfig, Tokenizer};
use halfbyte_inference::Task;
use std::time::Instant;

/// An open model, and how it is to be loaded.
pub(crate) struct Opened<'a> {
    model: Model,
    options: &'a LoadOptions,
    progress: &'a mut dyn Progress,
    /// When opening it began.
    start: Instant,
}

impl<'a> Opened<'a> {
    pub(crate) fn new(
        source: &ModelSource,
        options: &'a LoadOptions,
        progress: &'a mut dyn Progress,
    ) -> Result<Self, Error> {
        let start = Instant::now();
        Ok(Self { model: source.open(options, progress)?, options, progress, start })
    }

    pub(crate) fn model(&self) -> &Model {
        &self.model
    }

    pub(crate) fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    /// Refuses a model that cannot be made to do `task`.
    pub(crate) fn expect(&self, task: Task) -> Result<(), Error> {
        expect(&self.model, task)
    }

    /// The model on its devices for `task`, and its tokenizer if it came with one.
    ///
    /// # Errors
    /// A model that cannot be made to do that; as [`Loaded::load`].
    pub(crate) fn load(self, task: Task) -> Result<(Loaded, Option<Tokenizer>), Error> {
        self.expect(task)?;
        let tokenizer = match self.model.checkpoint() {
            Some(checkpoint) if checkpoint.has_tokenizer() => Some(checkpoint.tokenizer()?),
            _ => None,
        };
        let options = LoadOptions { task: Some(task), ..self.options.clone() };
        Ok((Loaded::load(&self.model, &options, self.progress, self.start)?, tokenizer))
    }
}
