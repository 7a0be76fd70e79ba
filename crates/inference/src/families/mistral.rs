//! Mistral (Jiang et al. 2023, arXiv:2310.06825): Llama whose rows see a sliding window.

use halfbyte_checkpoint::ModelConfig;

use super::decoder::Decoder;
use super::layer_type::layer_types;
use crate::ModelError;

pub(super) fn decoder(config: &ModelConfig) -> Result<Decoder, ModelError> {
    let decoder = Decoder::read(config)?;
    let sliding = config.opt_usize("sliding_window")?.is_some();
    Ok(Decoder { layers: layer_types(config, decoder.layers.len(), |_| sliding)?, ..decoder })
}
