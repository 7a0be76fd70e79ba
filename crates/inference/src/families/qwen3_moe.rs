//! Qwen 3 MoE (Yang et al. 2025, arXiv:2505.09388): Qwen 3 with a mixture of experts in all layers but
//! those that the configuration names.

use halfbyte_checkpoint::ModelConfig;

use super::decoder::{Decoder, Experts};
use super::{mixtral, qwen3};
use crate::ModelError;

pub(super) fn decoder(config: &ModelConfig) -> Result<Decoder, ModelError> {
    let decoder = qwen3::decoder(config)?;
    let step = config.usize_or("decoder_sparse_step", 1)?.max(1);
    let listed = config.opt("mlp_only_layers").and_then(|value| value.as_array());
    let listed = |layer: usize| {
        listed.is_some_and(|layers| layers.iter().any(|one| one.as_u64() == Some(layer as u64)))
    };
    let plain = |layer: &usize| listed(*layer) || !(layer + 1).is_multiple_of(step);
    let experts = Experts {
        module: "mlp",
        names: ["gate_proj", "up_proj", "down_proj"],
        // transformers 5 writes the latter.
        count: match config.opt_usize("num_experts")? {
            Some(count) => count,
            None => config.usize_or("num_local_experts", 128)?,
        },
        top_k: config.usize_or("num_experts_per_tok", 8)?,
        intermediate: config.usize("moe_intermediate_size")?,
        renormalize: config.bool_or("norm_topk_prob", false)?,
        plain_layers: (0..decoder.layers.len()).filter(plain).collect(),
    };
    mixtral::check(config, &experts)?;
    Ok(Decoder { experts: Some(experts), ..decoder })
}
