//! Layers that a checkpoint stores and its config does not count.

use std::collections::BTreeSet;
use std::fmt;

/// Stored layers past the last one that the model has: it was trained with them, and answers nonsense without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UnusedLayers {
    /// Layers of the model.
    used: usize,
    /// Stored layers that come after them.
    unused: usize,
    /// Tensors of those.
    tensors: usize,
}

impl UnusedLayers {
    /// Compares the names of a model's blocks (`model.layers.0`) with those of the stored tensors.
    pub(crate) fn of<'a>(
        blocks: impl Iterator<Item = &'a str>,
        tensors: impl Iterator<Item = &'a str>,
    ) -> Option<Self> {
        let layers: Vec<(&str, usize)> = blocks.filter_map(numbered).collect();
        let &(stem, _) = layers.first()?;
        let used = layers.iter().map(|&(_, number)| number + 1).max()?;
        let past: Vec<usize> = tensors
            .filter_map(numbered)
            .filter(|&(other, number)| number >= used && same_layers(stem, other))
            .map(|(_, number)| number)
            .collect();
        let unused = past.iter().collect::<BTreeSet<_>>().len();
        (unused > 0).then_some(Self { used, unused, tensors: past.len() })
    }
}

/// `model.layers` and 3 of `model.layers.3.mlp.up_proj.weight`.
fn numbered(name: &str) -> Option<(&str, usize)> {
    let mut from = 0;
    for part in name.split('.') {
        if from > 0 && part.bytes().all(|byte| byte.is_ascii_digit()) {
            return part.parse().ok().map(|number| (&name[..from - 1], number));
        }
        from += part.len() + 1;
    }
    None
}

/// Whether both name the same layers: some checkpoints leave out what stands before (`h` for `transformer.h`). Layers
/// of another part of a model (`vision_tower.layers`) are others.
fn same_layers(block: &str, tensor: &str) -> bool {
    let ends = |long: &str, short: &str| long.strip_suffix(short).is_some_and(|rest| rest.ends_with('.'));
    block == tensor || ends(block, tensor) || ends(tensor, block)
}

impl fmt::Display for UnusedLayers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { used, unused, tensors } = self;
        let all = used + unused;
        let plural = if *unused == 1 { "" } else { "s" };
        write!(
            f,
            "its config counts {used} layers, but {all} are stored: {unused} layer{plural} ({tensors} tensors) \
             not used. Unless that is meant, correct the number of layers in config.json"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(blocks: &[&str], tensors: &[&str]) -> Option<UnusedLayers> {
        UnusedLayers::of(blocks.iter().copied(), tensors.iter().copied())
    }

    #[test]
    fn layers_past_the_last_are_counted_and_those_of_other_parts_are_not() {
        let blocks = ["model.embed_tokens", "model.layers.0", "model.layers.1", "lm_head"];
        let stored = ["model.layers.0.a", "model.layers.1.a", "vision_tower.layers.7.a", "model.norm"];
        assert_eq!(found(&blocks, &stored), None);
        let more = [&stored[..], &["model.layers.2.a", "model.layers.2.b.0.c", "model.layers.3.a"]].concat();
        assert_eq!(found(&blocks, &more), Some(UnusedLayers { used: 2, unused: 2, tensors: 3 }));
        let unused = found(&["transformer.h.0"], &["h.0.a", "h.1.a"]);
        assert_eq!(unused, Some(UnusedLayers { used: 1, unused: 1, tensors: 1 }));
        assert_eq!(found(&["head"], &["h.1.a"]), None);
    }
}
