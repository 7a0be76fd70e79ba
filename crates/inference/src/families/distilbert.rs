//! DistilBERT (Sanh et al. 2019, arXiv:1910.01108): BERT without token types and pooler, under other
//! names; its classifier has a dense layer with ReLU.

use halfbyte_backend::Act;
use halfbyte_checkpoint::ModelConfig;

use super::decoder::activation;
use super::encoder::{Dense, Encoder, Names, prefix};
use crate::{ModelError, Tensors};

/// What the family's code has fixed: no configuration names it.
const EPS: f32 = 1e-12;

pub(super) fn encoder(config: &ModelConfig, tensors: &dyn Tensors) -> Result<Encoder, ModelError> {
    Ok(Encoder {
        prefix: prefix(tensors, "distilbert"),
        names: Names {
            layer: "transformer.layer",
            query: "attention.q_lin",
            key: "attention.k_lin",
            value: "attention.v_lin",
            attention: "attention.out_lin",
            attention_norm: "sa_layer_norm",
            up: "ffn.lin1",
            down: "ffn.lin2",
            norm: "output_layer_norm",
        },
        hidden: config.usize("dim")?,
        intermediate: config.usize("hidden_dim")?,
        heads: config.usize("n_heads")?,
        layers: config.usize("n_layers")?,
        vocab: config.usize("vocab_size")?,
        positions: config.usize_or("max_position_embeddings", 512)?,
        first_position: 0,
        types: 0,
        act: activation(config, config.str_or("activation", "gelu")?)?,
        eps: EPS,
        dense: Dense { module: "pre_classifier".into(), act: Act::Relu },
        classifier: "classifier".into(),
        pooler: None,
    })
}
