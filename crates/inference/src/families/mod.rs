//! Model families: from `config.json` to a [`Blueprint`].
//!
//! A family is one file that says, in the terms of `decoder.rs`, what its architecture is. What
//! a file does not know it refuses by name: an option that is ignored would be a wrong answer.

mod decoder;
mod draft;
mod gemma2;
mod gemma3;
mod layer_type;
mod llama;
mod mistral;
mod phi3;
mod qwen2;
mod qwen3;

use halfbyte_checkpoint::ModelConfig;

use crate::{Blueprint, ModelError, Settings, Tensors};
use decoder::Decoder;

/// Reads a configuration into what its family is.
type Family = fn(&ModelConfig) -> Result<Decoder, ModelError>;

/// Every architecture that can be run, with its family.
const FAMILIES: &[(&str, Family)] = &[
    ("LlamaForCausalLM", llama::decoder),
    ("MistralForCausalLM", mistral::decoder),
    ("Qwen2ForCausalLM", qwen2::decoder),
    ("Qwen3ForCausalLM", qwen3::decoder),
    ("Phi3ForCausalLM", phi3::decoder),
    ("Gemma2ForCausalLM", gemma2::decoder),
    ("Gemma3ForCausalLM", gemma3::decoder),
];

/// The architectures that [`build`] knows, as `config.json` names them.
pub fn supported() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|&(name, _)| name)
}

/// The blueprint of a model: from its configuration and the headers of its tensors alone.
///
/// # Errors
/// [`ModelError::Architecture`] for one that is unknown, [`ModelError::Unsupported`] for an option that
/// is not implemented, and whatever does not fit between configuration and tensors.
pub fn build(
    config: &ModelConfig,
    tensors: &dyn Tensors,
    settings: &Settings,
) -> Result<Blueprint, ModelError> {
    let family = FAMILIES.iter().find(|(name, _)| *name == config.architecture);
    let Some((_, family)) = family else {
        let named = if config.architecture.is_empty() { &config.model_type } else { &config.architecture };
        return Err(ModelError::Architecture {
            found: halfbyte_checkpoint::error::shown(named),
            supported: supported().collect::<Vec<_>>().join(", "),
        });
    };
    family(config)?.build(config, tensors, settings)
}

/// A refusal of `what`, found in the configuration.
fn refuse(config: &ModelConfig, what: impl std::fmt::Display, instead: &str) -> ModelError {
    ModelError::Unsupported { what: format!("{}: {what}", config.file), instead: instead.into() }
}
