//! How a model is to be held: its quantization, its context, its KV cache.

use halfbyte_backend::KvType;
use halfbyte_checkpoint::ModelConfig;
use halfbyte_quant::QuantSpec;

use crate::{ModelError, Task};

/// The context that is taken where nobody asks for one; shorter where the model's own is.
pub const DEFAULT_CONTEXT: usize = 4096;

/// What the user chooses about a model, apart from where it lives.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// How linear layers that are stored in 16 or 32 bits are quantized; `None` keeps them as they
    /// are. A checkpoint that is already quantized keeps what it has.
    pub quant: Option<QuantSpec>,
    /// Element type of cached keys and values.
    pub kv: KvType,
    /// Positions of each sequence. `None` takes the model's own, but no more than
    /// [`DEFAULT_CONTEXT`].
    pub context: Option<usize>,
    /// Sequences at once.
    pub sequences: usize,
    /// Rows of one sequence in a submission at most, if that is known: layers with a sliding window then keep no more
    /// positions than the window and such a submission take. `None` keeps the whole context everywhere.
    pub rows: Option<usize>,
    /// Modules that are not quantized, as `llm_int8_skip_modules` in transformers: whole parts of their
    /// path (`lm_head`, `model.layers.1`, `self_attn`), or its end (`v_proj`). Output heads and
    /// embeddings never are.
    pub skip_modules: Vec<String>,
    /// What the model is to be for; `None` takes what its architecture says. An encoder without a
    /// classifier can be made one, with a head that is drawn at random.
    pub task: Option<Task>,
    /// Whether the linear layers of classifiers and poolers are quantized too, as transformers 5 does.
    /// They are small, and what they lose goes straight into the answer: transformers 4 kept them.
    pub convert_heads: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            quant: Some(QuantSpec::default()),
            kv: KvType::F16,
            context: None,
            sequences: 1,
            rows: None,
            skip_modules: Vec::new(),
            task: None,
            convert_heads: false,
        }
    }
}

/// How the linear layers that are stored unquantized will be held.
#[derive(Debug, Clone)]
pub(crate) struct Quantization {
    spec: Option<QuantSpec>,
    skip: Vec<String>,
}

impl Quantization {
    /// The user's wish, unless the checkpoint has been quantized already: what it left alone then
    /// stays as it is.
    pub(crate) fn of(config: &ModelConfig, settings: &Settings) -> Result<Self, ModelError> {
        if let Some(spec) = settings.quant {
            spec.validate().map_err(|error| ModelError::Unsupported {
                what: format!("quantization in blocks of {}", spec.blocksize),
                instead: error.to_string(),
            })?;
        }
        let stored = config.quantization()?;
        let mut skip = settings.skip_modules.clone();
        skip.push("lm_head".into());
        Ok(Self { spec: if stored.is_some() { None } else { settings.quant }, skip })
    }

    /// How `module` (a tensor's name without `.weight`) is to be quantized, if it is.
    pub(crate) fn spec(&self, module: &str) -> Option<QuantSpec> {
        let path = format!(".{module}.");
        let names = |key: &String| path.contains(&format!(".{key}.")) || module.ends_with(key.as_str());
        let skipped = self.skip.iter().filter(|key| !key.is_empty()).any(names);
        self.spec.filter(|_| !skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skip_lists_name_parts_of_the_path_or_its_end() {
        let config = ModelConfig::parse("config.json", br#"{"model_type": "llama"}"#).unwrap();
        let skip = ["v_proj", "model.layers.1", "shared", ""].map(str::to_owned).to_vec();
        let settings = Settings { skip_modules: skip, ..Settings::default() };
        let quantization = Quantization::of(&config, &settings).unwrap();
        let kept = [
            "lm_head",
            "model.layers.0.self_attn.v_proj",
            "model.layers.1.mlp.up_proj",
            "model.layers.0.shared.up_proj",
        ];
        for module in kept {
            assert_eq!(quantization.spec(module), None, "{module}");
        }
        for module in ["model.layers.0.self_attn.q_proj", "model.layers.10.mlp.up_proj", "shared2.up_proj"] {
            assert!(quantization.spec(module).is_some(), "{module}");
        }
    }
}
