//! Which model: by name, bundled, or made up.

use crate::{Error, LoadOptions, Progress, four_bit_cache, planning};
use halfbyte_backend::WeightSource;
use halfbyte_checkpoint::hub::{self, Away, Found, HubOptions};
use halfbyte_checkpoint::{Checkpoint, ModelConfig, ModelFiles};
use halfbyte_inference::{CheckpointSource, SyntheticModel, Tensors};
use halfbyte_models::Bundled;
use std::path::Path;
use std::rc::Rc;

/// Which model.
#[derive(Debug, Clone)]
pub enum ModelSource {
    /// A local directory, or a Hub id (`org/name`).
    Named(String),
    /// A model that is embedded in this library: `stories` or `sentiment`.
    Bundled(String),
    /// Seeded random weights of a true shape: `llama-160m`, `tinyllama-1.1b`, `llama-2-7b`, `bert-large`.
    /// Nothing is downloaded.
    Synthetic(String),
    /// An open checkpoint, wherever its bytes came from.
    Checkpoint(Rc<Checkpoint>),
}

impl ModelSource {
    /// What a person means by `name`: `synthetic:SHAPE`, a bundled model unless a directory is called so,
    /// else a directory or a Hub id.
    pub fn named(name: &str) -> Self {
        if let Some(shape) = name.strip_prefix("synthetic:") {
            Self::Synthetic(shape.to_owned())
        } else if Bundled::by_name(name).is_some() && !Path::new(name).exists() {
            Self::Bundled(name.to_owned())
        } else {
            Self::Named(name.to_owned())
        }
    }

    /// Opens it to be loaded. A model that is still on the Hub is planned from its headers first: what would
    /// not fit is not downloaded. Where its 4-bit form is to be kept, that is all that is: it is quantized as it
    /// arrives.
    pub(crate) fn open(&self, options: &LoadOptions, progress: &mut dyn Progress) -> Result<Model, Error> {
        let away = match self.find(options, progress)? {
            Place::Here(model) => return Ok(model),
            Place::Away(away) => away,
        };
        if let Some(model) = four_bit_cache::kept(&away, options)? {
            return Ok(model);
        }
        let outline = Model::Checkpoint(Rc::new(away.outline()?));
        planning::check_fit(&outline, options)?;
        match four_bit_cache::arriving(&away, &outline, options, progress)? {
            Some(model) => Ok(model),
            None => download(&away, progress),
        }
    }

    /// Opens it to be planned: of a model that is still on the Hub only the headers are fetched.
    pub(crate) fn open_headers(
        &self,
        options: &LoadOptions,
        progress: &mut dyn Progress,
    ) -> Result<Model, Error> {
        match self.find(options, progress)? {
            Place::Here(model) => Ok(model),
            Place::Away(away) => match four_bit_cache::kept(&away, options)? {
                Some(model) => Ok(model),
                None => Ok(Model::Checkpoint(Rc::new(away.outline()?))),
            },
        }
    }

    /// Opens it, or says that it is on the Hub.
    pub(crate) fn find(&self, options: &LoadOptions, progress: &mut dyn Progress) -> Result<Place, Error> {
        Ok(Place::Here(match self {
            Self::Checkpoint(checkpoint) => Model::Checkpoint(Rc::clone(checkpoint)),
            Self::Bundled(name) => Model::Checkpoint(Rc::new(bundled(name)?)),
            Self::Synthetic(shape) => Model::Synthetic(shape.clone(), SyntheticModel::named(shape, 0)?),
            Self::Named(name) => match hub::find(name, &hub_options(options), &mut Downloads(progress))? {
                Found::Here(dir) => Model::Checkpoint(Rc::new(hub::open(name, &dir)?)),
                Found::Away(away) => return Ok(Place::Away(away)),
            },
        }))
    }
}

/// Where a model is.
pub(crate) enum Place {
    /// It is open.
    Here(Model),
    /// On the Hub, or some of it.
    Away(Box<Away>),
}

/// Downloads a model and opens it.
pub(crate) fn download(away: &Away, progress: &mut dyn Progress) -> Result<Model, Error> {
    Ok(Model::Checkpoint(Rc::new(away.download(&mut Downloads(progress))?)))
}

pub(crate) fn hub_options(options: &LoadOptions) -> HubOptions {
    HubOptions {
        revision: options.revision.clone(),
        token: options.token.as_ref().map(|token| token.0.clone()),
        cache_dir: options.cache_dir.clone(),
        offline: options.offline,
        ..HubOptions::default()
    }
}

/// Passes the Hub's reports on.
pub(crate) struct Downloads<'a>(pub(crate) &'a mut dyn Progress);

impl hub::Progress for Downloads<'_> {
    fn file(&mut self, file: &str, done: u64, total: u64) {
        self.0.download(file, done, total);
    }

    fn all(&mut self, done: u64, total: u64) {
        self.0.download_all(done, total);
    }

    fn note(&mut self, text: &str) {
        self.0.note(text);
    }
}

fn bundled(name: &str) -> Result<Checkpoint, Error> {
    let unknown = || Error::Usage(format!("no model called {name} is bundled"));
    let model = Bundled::by_name(name).ok_or_else(unknown)?;
    let config = model.file("config.json").ok_or_else(unknown)?;
    let weights = model.file("model.safetensors").ok_or_else(unknown)?;
    let tokenizer = model.file("tokenizer.json");
    let generation = model.file("generation_config.json");
    let mut files = ModelFiles::from_bytes(name, config, weights, tokenizer, generation);
    files.tokenizer.config = model
        .file("tokenizer_config.json")
        .map(|bytes| halfbyte_checkpoint::FileBytes::new(format!("{name}/tokenizer_config.json"), bytes));
    Ok(Checkpoint::new(files)?)
}

/// An open model: headers read, weights not yet.
#[derive(Clone)]
pub(crate) enum Model {
    Checkpoint(Rc<Checkpoint>),
    Synthetic(String, SyntheticModel),
}

impl Model {
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Checkpoint(checkpoint) => &checkpoint.name,
            Self::Synthetic(name, _) => name,
        }
    }

    pub(crate) fn config(&self) -> &ModelConfig {
        match self {
            Self::Checkpoint(checkpoint) => &checkpoint.config,
            Self::Synthetic(_, model) => model.config(),
        }
    }

    pub(crate) fn tensors(&self) -> &dyn Tensors {
        match self {
            Self::Checkpoint(checkpoint) => &checkpoint.index,
            Self::Synthetic(_, model) => model,
        }
    }

    /// Where the weights come from, as often as they are asked for.
    pub(crate) fn weights(&self) -> Box<dyn WeightSource + '_> {
        match self {
            Self::Checkpoint(checkpoint) => Box::new(CheckpointSource::new(checkpoint)),
            Self::Synthetic(_, model) => Box::new(model.clone()),
        }
    }

    /// Whether its weights are numbers from a seed.
    pub(crate) fn is_made_up(&self) -> bool {
        matches!(self, Self::Synthetic(..))
    }

    pub(crate) fn checkpoint(&self) -> Option<&Checkpoint> {
        match self {
            Self::Checkpoint(checkpoint) => Some(checkpoint),
            Self::Synthetic(..) => None,
        }
    }
}
