//! Qwen 3 (Yang et al. 2025, arXiv:2505.09388): Llama whose heads' queries and keys are normed.

use halfbyte_checkpoint::ModelConfig;

use super::decoder::Decoder;
use super::qwen2;
use crate::ModelError;

pub(super) fn decoder(config: &ModelConfig) -> Result<Decoder, ModelError> {
    let decoder = Decoder::read(config)?;
    let attention_bias = config.bool_or("attention_bias", false)?;
    Ok(Decoder {
        layers: qwen2::layers(config, decoder.layers.len())?,
        qk_norm: true,
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        ..decoder
    })
}
