//! RoBERTa (Liu et al. 2019, arXiv:1907.11692) and XLM-RoBERTa: BERT whose positions begin after the
//! padding token's, and whose classifier has a dense layer of its own in place of the pooler.

use halfbyte_backend::Act;
use halfbyte_checkpoint::ModelConfig;

use super::bert::shared;
use super::encoder::{Dense, Encoder, prefix};
use crate::{ModelError, Tensors};

pub(super) fn encoder(config: &ModelConfig, tensors: &dyn Tensors) -> Result<Encoder, ModelError> {
    Ok(Encoder {
        first_position: config.usize_or("pad_token_id", 1)? as u32 + 1,
        dense: Dense { module: "classifier.dense".into(), act: Act::Tanh },
        classifier: "classifier.out_proj".into(),
        ..shared(config, prefix(tensors, "roberta"))?
    })
}
