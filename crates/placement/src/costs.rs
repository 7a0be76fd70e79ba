//! What blocks cost, asked of the model and the backends' layouts.

use halfbyte_backend::{Footprint, Purpose};
use std::ops::Range;

/// The exact costs of a model's blocks, without a device: the caller answers from the shapes of the
/// checkpoint and each backend's [`Layout`](halfbyte_backend::Layout).
///
/// Costs must be monotone: a longer range or a longer context never takes fewer bytes.
pub trait Costs {
    /// How many blocks the model has: the embedding, the layers, the head.
    fn blocks(&self) -> usize;

    /// A block's name, as device maps write it: `model.embed_tokens`, `model.layers.0`, `lm_head`.
    fn name(&self, block: usize) -> String;

    /// Everything that `blocks` need on `device` (an index into the devices of the plan) for `context`
    /// tokens: weights, KV cache, the compiled program, and what the backend holds while it is open.
    ///
    /// # Errors
    /// What the device lacks, if it cannot run these blocks; the planner then keeps them off it.
    fn stretch(&self, device: usize, blocks: Range<usize>, context: usize) -> Result<Footprint, String>;

    /// Bytes of weights that decoding one token reads from `block` on `device`.
    ///
    /// As provided: the block's weights and embeddings, mapped ones included, but nothing for block 0, since an embedding is
    /// looked up and not multiplied with. A mixture of experts overrides it: only the experts that a
    /// token chooses are read.
    ///
    /// # Errors
    /// As [`stretch`](Self::stretch).
    fn reads(&self, device: usize, block: usize) -> Result<u64, String> {
        if block == 0 {
            return Ok(0);
        }
        let footprint = self.stretch(device, block..block + 1, crate::CONTEXT_STEP)?;
        let read = [Purpose::Weights, Purpose::Embeddings, Purpose::Mapped];
        Ok(read.into_iter().fold(0, |sum: u64, purpose| sum.saturating_add(footprint.get(purpose))))
    }

    /// Multiplications and additions of one token in `block`, 0 as provided: then nothing is known of prompts.
    fn products(&self, block: usize) -> u64 {
        let _ = block;
        0
    }

    /// Bytes of one token that cross the link when `block` streams: keys and values, and hidden states both ways.
    fn row_bytes(&self, block: usize) -> u64 {
        let _ = block;
        0
    }

    /// What it takes to stream `blocks`, of a model whose `first` stage is these blocks on this device, to the GPU
    /// `to`: on the first stage's device and on the GPU.
    ///
    /// # Errors
    /// Why it cannot be, as is provided.
    fn streaming(
        &self,
        first: (usize, Range<usize>),
        blocks: Range<usize>,
        to: usize,
        context: usize,
    ) -> Result<(Footprint, Footprint), String> {
        let _ = (first, blocks, to, context);
        Err("this model does not stream".into())
    }
}
