//! BERT (Devlin et al. 2018, arXiv:1810.04805).
//!
//! Learned positions and token types, LayerNorm after each sum, GELU by the error function; a classifier
//! reads the first token through the pooler.

use halfbyte_backend::Act;
use halfbyte_checkpoint::ModelConfig;

use super::decoder::activation;
use super::encoder::{Dense, Encoder, Names, prefix};
use super::refuse;
use crate::{ModelError, Tensors};

pub(super) fn encoder(config: &ModelConfig, tensors: &dyn Tensors) -> Result<Encoder, ModelError> {
    shared(config, prefix(tensors, "bert"))
}

/// What BERT and RoBERTa have in common.
pub(super) fn shared(config: &ModelConfig, prefix: String) -> Result<Encoder, ModelError> {
    for option in ["is_decoder", "add_cross_attention"] {
        if config.bool_or(option, false)? {
            return Err(refuse(config, option, "only the encoder is, which has it false"));
        }
    }
    match config.str_or("position_embedding_type", "absolute")? {
        "absolute" => {}
        other => {
            let what = format!("position_embedding_type \"{}\"", halfbyte_checkpoint::error::shown(other));
            return Err(refuse(config, what, "known is absolute"));
        }
    }
    let pooler = Dense { module: format!("{prefix}pooler.dense"), act: Act::Tanh };
    Ok(Encoder {
        names: Names {
            layer: "encoder.layer",
            query: "attention.self.query",
            key: "attention.self.key",
            value: "attention.self.value",
            attention: "attention.output.dense",
            attention_norm: "attention.output.LayerNorm",
            up: "intermediate.dense",
            down: "output.dense",
            norm: "output.LayerNorm",
        },
        prefix,
        hidden: config.usize("hidden_size")?,
        intermediate: config.usize("intermediate_size")?,
        heads: config.usize("num_attention_heads")?,
        layers: config.usize("num_hidden_layers")?,
        vocab: config.usize("vocab_size")?,
        positions: config.usize_or("max_position_embeddings", 512)?,
        first_position: 0,
        types: config.usize_or("type_vocab_size", 2)?,
        act: activation(config, config.str_or("hidden_act", "gelu")?)?,
        eps: config.epsilon_or("layer_norm_eps", 1e-12)? as f32,
        dense: pooler.clone(),
        classifier: "classifier".into(),
        pooler: Some(pooler),
    })
}
