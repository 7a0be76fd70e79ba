//! Qwen 2 and 2.5 (Yang et al. 2024, arXiv:2407.10671): Llama with biases on queries, keys and values,
//! and, where it is switched on, a sliding window in the layers from `max_window_layers` on.

use halfbyte_checkpoint::ModelConfig;

use super::decoder::Decoder;
use super::layer_type::{LayerType, layer_types};
use crate::ModelError;

pub(super) fn decoder(config: &ModelConfig) -> Result<Decoder, ModelError> {
    let decoder = Decoder::read(config)?;
    Ok(Decoder { layers: layers(config, decoder.layers.len())?, qkv_bias: true, ..decoder })
}

/// The layers' types, as Qwen 3 has them too.
pub(super) fn layers(config: &ModelConfig, count: usize) -> Result<Vec<LayerType>, ModelError> {
    let sliding = config.bool_or("use_sliding_window", false)?;
    let first = config.usize_or("max_window_layers", 28)?;
    layer_types(config, count, |layer| sliding && layer >= first)
}
