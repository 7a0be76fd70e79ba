//! Llama (Touvron et al. 2023, arXiv:2302.13971; 2 and 3 after it), and the many that share its shape.
//!
//! Pre-normed by RMSNorm, rotary embeddings in halves, SwiGLU, grouped queries from Llama 2 on.

use halfbyte_checkpoint::ModelConfig;

use super::decoder::Decoder;
use crate::ModelError;

pub(super) fn decoder(config: &ModelConfig) -> Result<Decoder, ModelError> {
    let attention_bias = config.bool_or("attention_bias", false)?;
    Ok(Decoder {
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        mlp_bias: config.bool_or("mlp_bias", false)?,
        ..Decoder::read(config)?
    })
}
