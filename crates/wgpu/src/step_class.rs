//! What a dispatch is in a model, and what it has to read: for profiles.

use crate::pipeline::Launch;
use halfbyte_shaders::{Flag, Kernel};

/// A dispatch's class and reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StepClass {
    /// As profiles name it.
    pub(crate) name: &'static str,
    /// Bytes of weights.
    pub(crate) weights: u64,
    /// Bytes of the KV cache for each position of the context, and the most positions.
    pub(crate) cache: (u64, u64),
}

impl StepClass {
    /// The class of a launch, told by its flags and constants.
    pub(crate) fn of(launch: &Launch<'_>) -> Self {
        let constant = |wanted: &str| {
            launch.constants.iter().find(|(name, _)| *name == wanted).map_or(0.0, |&(_, value)| value)
        };
        let flag = |flag| launch.variant.flags.has(flag);
        let is_product = matches!(launch.variant.kernel, Kernel::NormLinear | Kernel::LinearTiled);
        let name = match launch.variant.kernel {
            _ if is_product && flag(Flag::Expert) => "expert",
            _ if is_product && constant("SELECT") != 0.0 => "head",
            _ if is_product && flag(Flag::Merge) => "merge_linear",
            _ if is_product && constant("GATED") != 0.0 => "norm_gate_up",
            _ if is_product && (flag(Flag::Residual) || constant("ACCUMULATE") != 0.0) => "linear_residual",
            kernel => kernel.name(),
        };
        // An expert reads nothing where no row takes it.
        let bound = launch.bindings.iter().filter(|b| is_product && (3..=5).contains(&b.index));
        let weights = if name == "expert" { 0 } else { bound.map(|b| b.buffer.size()).sum() };
        let cache = match launch.variant.kernel {
            Kernel::Attend => {
                let words =
                    2.0 * constant("SHARD_HEADS") * (constant("CODE_WORDS") + constant("SCALE_WORDS"));
                let window = constant("WINDOW") as u64;
                (words as u64 * 4, if window > 0 { window } else { u64::MAX })
            }
            _ => (0, 0),
        };
        Self { name, weights, cache }
    }

    /// Bytes that the dispatch reads when its row is at `position`.
    pub(crate) fn bytes(&self, position: u64) -> u64 {
        self.weights + self.cache.0 * (position + 1).min(self.cache.1)
    }
}
