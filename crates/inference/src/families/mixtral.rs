//! Mixtral (Jiang et al. 2024, arXiv:2401.04088): Mistral whose feed-forward part is a mixture of experts,
//! two of eight for each token, their weights made to sum to 1.

use halfbyte_checkpoint::ModelConfig;

use super::decoder::{Decoder, Experts};
use super::mistral;
use super::refuse;
use crate::ModelError;

pub(super) fn decoder(config: &ModelConfig) -> Result<Decoder, ModelError> {
    let decoder = mistral::decoder(config)?;
    let experts = Experts {
        module: "block_sparse_moe",
        names: ["w1", "w3", "w2"],
        count: config.usize_or("num_local_experts", 8)?,
        top_k: config.usize_or("num_experts_per_tok", 2)?,
        intermediate: decoder.intermediate,
        renormalize: true,
        plain_layers: Vec::new(),
    };
    check(config, &experts)?;
    Ok(Decoder { experts: Some(experts), ..decoder })
}

/// Refuses more experts a token than there are.
pub(super) fn check(config: &ModelConfig, experts: &Experts) -> Result<(), ModelError> {
    if experts.top_k <= experts.count {
        return Ok(());
    }
    let what = format!("{} experts for a token of {}", experts.top_k, experts.count);
    Err(refuse(config, what, "num_experts_per_tok must be at most the number of experts"))
}
