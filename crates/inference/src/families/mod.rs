//! Model families: from `config.json` to a [`Blueprint`].
//!
//! A family is one file that says, in the terms of `decoder.rs` or `encoder.rs`, what its architecture
//! is; one that is like neither (GPT-2) lays out its own steps. What a file does not know it refuses by
//! name: an option that is ignored would be a wrong answer.

mod bert;
mod decoder;
mod distilbert;
mod draft;
mod encoder;
mod gemma2;
mod gemma3;
mod gpt2;
mod layer_type;
mod llama;
mod mistral;
mod mixtral;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod roberta;

use halfbyte_checkpoint::ModelConfig;

use crate::{Blueprint, ModelError, Settings, Task, Tensors};
use decoder::Decoder;
use encoder::Encoder;

/// How a family becomes a blueprint.
#[derive(Clone, Copy)]
enum Family {
    /// A decoder in the terms of `decoder.rs`.
    Decoder(fn(&ModelConfig) -> Result<Decoder, ModelError>),
    /// An encoder in the terms of `encoder.rs`, and what this architecture of it is for.
    Encoder(fn(&ModelConfig, &dyn Tensors) -> Result<Encoder, ModelError>, Task),
    /// A decoder with steps of its own.
    Own(fn(&ModelConfig, &dyn Tensors, &Settings) -> Result<Blueprint, ModelError>),
}

use Family::{Decoder as Decodes, Encoder as Encodes, Own};
use Task::{ClassifySequence, ClassifyTokens, Embed};

/// Every architecture that can be run, with its family.
const FAMILIES: &[(&str, Family)] = &[
    ("LlamaForCausalLM", Decodes(llama::decoder)),
    ("MistralForCausalLM", Decodes(mistral::decoder)),
    ("Qwen2ForCausalLM", Decodes(qwen2::decoder)),
    ("Qwen3ForCausalLM", Decodes(qwen3::decoder)),
    ("Phi3ForCausalLM", Decodes(phi3::decoder)),
    ("Gemma2ForCausalLM", Decodes(gemma2::decoder)),
    ("Gemma3ForCausalLM", Decodes(gemma3::decoder)),
    ("MixtralForCausalLM", Decodes(mixtral::decoder)),
    ("Qwen3MoeForCausalLM", Decodes(qwen3_moe::decoder)),
    ("GPT2LMHeadModel", Own(gpt2::blueprint)),
    ("BertForSequenceClassification", Encodes(bert::encoder, ClassifySequence)),
    ("BertForTokenClassification", Encodes(bert::encoder, ClassifyTokens)),
    ("BertModel", Encodes(bert::encoder, Embed)),
    ("BertForMaskedLM", Encodes(bert::encoder, Embed)),
    ("BertForPreTraining", Encodes(bert::encoder, Embed)),
    ("RobertaForSequenceClassification", Encodes(roberta::encoder, ClassifySequence)),
    ("RobertaForTokenClassification", Encodes(roberta::encoder, ClassifyTokens)),
    ("RobertaModel", Encodes(roberta::encoder, Embed)),
    ("RobertaForMaskedLM", Encodes(roberta::encoder, Embed)),
    ("XLMRobertaForSequenceClassification", Encodes(roberta::encoder, ClassifySequence)),
    ("XLMRobertaForTokenClassification", Encodes(roberta::encoder, ClassifyTokens)),
    ("XLMRobertaModel", Encodes(roberta::encoder, Embed)),
    ("DistilBertForSequenceClassification", Encodes(distilbert::encoder, ClassifySequence)),
    ("DistilBertForTokenClassification", Encodes(distilbert::encoder, ClassifyTokens)),
    ("DistilBertModel", Encodes(distilbert::encoder, Embed)),
    ("DistilBertForMaskedLM", Encodes(distilbert::encoder, Embed)),
];

/// The architectures that [`build`] knows, as `config.json` names them.
pub fn supported() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|&(name, _)| name)
}

/// What a model's architecture is made for.
///
/// # Errors
/// [`ModelError::Architecture`] for one that is unknown.
pub fn task(config: &ModelConfig) -> Result<Task, ModelError> {
    Ok(match family(config)? {
        Family::Decoder(_) | Family::Own(_) => Task::Generate,
        Family::Encoder(_, task) => task,
    })
}

/// The blueprint of a model: from its configuration and the headers of its tensors alone.
///
/// # Errors
/// [`ModelError::Architecture`] for one that is unknown, [`ModelError::Task`] for a task that it cannot
/// be built for, [`ModelError::Unsupported`] for an option that is not implemented, and whatever does not
/// fit between configuration and tensors.
pub fn build(
    config: &ModelConfig,
    tensors: &dyn Tensors,
    settings: &Settings,
) -> Result<Blueprint, ModelError> {
    let found = task(config)?;
    let wanted = settings.task.unwrap_or(found);
    let instead = match (found, wanted) {
        // A new head for the other task would forget the trained one.
        (Task::ClassifySequence, Task::ClassifyTokens) => "take a checkpoint of a token classifier",
        (Task::ClassifyTokens, Task::ClassifySequence) => "take a checkpoint of a sequence classifier",
        (Task::Generate, Task::Generate) => "",
        (Task::Generate, _) => "generate with it, or take an encoder such as BERT",
        (_, Task::Generate) => "classify or embed with it, or take a decoder such as Llama",
        _ => "",
    };
    if !instead.is_empty() {
        let (architecture, instead) = (config.architecture.clone(), instead.to_owned());
        return Err(ModelError::Task { architecture, found, wanted, instead });
    }
    match family(config)? {
        Family::Decoder(read) => read(config)?.build(config, tensors, settings),
        Family::Encoder(read, _) => read(config, tensors)?.build(config, tensors, settings, wanted),
        Family::Own(build) => build(config, tensors, settings),
    }
}

fn family(config: &ModelConfig) -> Result<Family, ModelError> {
    let family = FAMILIES.iter().find(|(name, _)| *name == config.architecture);
    family.map(|&(_, family)| family).ok_or_else(|| ModelError::Architecture {
        found: halfbyte_checkpoint::error::shown(&config.architecture),
        supported: supported().collect::<Vec<_>>().join(", "),
    })
}

/// A refusal of `what`, found in the configuration.
fn refuse(config: &ModelConfig, what: impl std::fmt::Display, instead: &str) -> ModelError {
    ModelError::Unsupported { what: format!("{}: {what}", config.file), instead: instead.into() }
}
