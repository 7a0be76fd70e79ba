//! Gemma 2 (Gemma Team 2024, arXiv:2408.00118): norms on both sides of attention and feed-forward, their
//! weights stored less one; scaled embeddings; soft caps on scores and logits; every other layer slides.

use halfbyte_checkpoint::ModelConfig;

use super::decoder::{Decoder, Norms, activation};
use super::layer_type::layer_types;
use super::refuse;
use crate::ModelError;

pub(super) fn decoder(config: &ModelConfig) -> Result<Decoder, ModelError> {
    let decoder = shared(config)?;
    Ok(Decoder {
        layers: layer_types(config, decoder.layers.len(), |layer| layer % 2 == 0)?,
        attention_softcap: softcap(config, "attn_logit_softcapping", Some(50.0))?,
        logit_softcap: softcap(config, "final_logit_softcapping", Some(30.0))?,
        ..decoder
    })
}

/// What Gemma 2 and 3 have in common.
pub(super) fn shared(config: &ModelConfig) -> Result<Decoder, ModelError> {
    if config.bool_or("use_bidirectional_attention", false)? {
        let instead = "only the causal model is, which has it false or null";
        return Err(refuse(config, "use_bidirectional_attention", instead));
    }
    let decoder = Decoder::read(config)?;
    let act = match config.opt_str("hidden_activation")? {
        Some(name) => name,
        None => config.str_or("hidden_act", "gelu_pytorch_tanh")?,
    };
    let bias = config.bool_or("attention_bias", false)?;
    let scale = config.f64_or("query_pre_attn_scalar", 256.0)?;
    Ok(Decoder {
        act: activation(config, act)?,
        norm_offset: 1.0,
        norms: Norms {
            attention: "input_layernorm",
            post_attention: Some("post_attention_layernorm"),
            mlp: "pre_feedforward_layernorm",
            post_mlp: Some("post_feedforward_layernorm"),
        },
        scaled_embedding: true,
        tied: config.bool_or("tie_word_embeddings", true)?,
        scale: scale.powf(-0.5) as f32,
        qkv_bias: bias,
        o_bias: bias,
        ..decoder
    })
}

/// A soft cap: `default` where the configuration does not say, none where it says `null`.
pub(super) fn softcap(
    config: &ModelConfig,
    key: &str,
    default: Option<f32>,
) -> Result<Option<f32>, ModelError> {
    if !config.json.contains_key(key) {
        return Ok(default);
    }
    match config.opt_f64(key)? {
        Some(cap) if cap <= 0.0 => {
            Err(refuse(config, format!("{key} of {cap}"), "it must be above 0, or null"))
        }
        cap => Ok(cap.map(|cap| cap as f32)),
    }
}
