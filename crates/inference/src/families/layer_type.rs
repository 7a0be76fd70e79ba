//! Which layers see how far: sliding windows and layer types.

use halfbyte_checkpoint::ModelConfig;

use super::refuse;
use crate::ModelError;

/// How far the rows of a layer see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LayerType {
    /// The whole context.
    Full,
    /// The last so many positions, their own included.
    Sliding(usize),
}

impl LayerType {
    /// The window, if there is one.
    pub(super) fn window(self) -> Option<usize> {
        match self {
            LayerType::Full => None,
            LayerType::Sliding(window) => Some(window),
        }
    }
}

/// The type of each layer: as `layer_types` says, or, in configurations from before it, sliding where
/// `slides` of the layer's index is true.
pub(super) fn layer_types(
    config: &ModelConfig,
    layers: usize,
    slides: impl Fn(usize) -> bool,
) -> Result<Vec<LayerType>, ModelError> {
    let sliding = || -> Result<LayerType, ModelError> {
        match config.usize("sliding_window")? {
            0 => Err(refuse(config, "sliding_window of 0", "it must be at least 1, or null")),
            window => Ok(LayerType::Sliding(window)),
        }
    };
    let Some(types) = config.opt_str_list("layer_types")? else {
        return (0..layers)
            .map(|layer| if slides(layer) { sliding() } else { Ok(LayerType::Full) })
            .collect();
    };
    if types.len() != layers {
        let counts = format!("{} layer_types for {layers} layers", types.len());
        return Err(refuse(config, counts, "there must be one for each"));
    }
    types
        .into_iter()
        .map(|name| match name {
            "full_attention" => Ok(LayerType::Full),
            "sliding_attention" => sliding(),
            other => Err(refuse(
                config,
                format!("layer type \"{}\"", halfbyte_checkpoint::error::shown(other)),
                "known are full_attention and sliding_attention",
            )),
        })
        .collect()
}
