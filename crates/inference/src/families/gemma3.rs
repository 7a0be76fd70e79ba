//! Gemma 3 (Gemma Team 2025, arXiv:2503.19786), text only: Gemma 2 with normed queries and keys in place
//! of the soft caps, five sliding layers to each full one, and a rotary base of its own for the former.

use halfbyte_checkpoint::ModelConfig;

use super::decoder::Decoder;
use super::gemma2::{shared, softcap};
use super::layer_type::layer_types;
use crate::ModelError;

pub(super) fn decoder(config: &ModelConfig) -> Result<Decoder, ModelError> {
    let decoder = shared(config)?;
    let pattern = match config.opt_usize("sliding_window_pattern")? {
        Some(pattern) => pattern,
        None => config.usize_or("_sliding_window_pattern", 6)?,
    };
    let slides = |layer: usize| pattern == 0 || !(layer + 1).is_multiple_of(pattern);
    Ok(Decoder {
        layers: layer_types(config, decoder.layers.len(), slides)?,
        qk_norm: true,
        attention_softcap: softcap(config, "attn_logit_softcapping", None)?,
        logit_softcap: softcap(config, "final_logit_softcapping", None)?,
        rope: config.rope_for("full_attention")?,
        sliding_rope: Some(config.rope_for("sliding_attention")?),
        ..decoder
    })
}
