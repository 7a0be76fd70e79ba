//! Phi 3 (Abdin et al. 2024, arXiv:2404.14219): Llama with q, k and v in one tensor, and gate and up in
//! another; some sizes with a sliding window, some with only a part of each head rotated.

use halfbyte_checkpoint::ModelConfig;

use super::decoder::Decoder;
use super::layer_type::layer_types;
use crate::ModelError;

pub(super) fn decoder(config: &ModelConfig) -> Result<Decoder, ModelError> {
    let decoder = Decoder::read(config)?;
    let sliding = config.opt_usize("sliding_window")?.is_some();
    Ok(Decoder { layers: layer_types(config, decoder.layers.len(), |_| sliding)?, fused: true, ..decoder })
}
