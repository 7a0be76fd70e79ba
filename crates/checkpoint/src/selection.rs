//! Which modules become 4-bit: transformers' rules, told from names and shapes.
//!
//! transformers asks a module for its class: `nn.Linear` and GPT-2's `Conv1D` are converted, nothing else. A
//! checkpoint has no classes, so they are told from what it has. A weight becomes 4-bit if its tensor is
//! called `….weight`, has two dimensions and float elements, and is none of these:
//! - an embedding: a part of its name says so (`embed_tokens`, `wte`, `embeddings`, …), or it has a row for
//!   each word of the vocabulary and is in no numbered layer;
//! - an output layer (`lm_head`, `embed_out`, …), which transformers keeps as well;
//! - a router of experts: a `gate` or `router` beside `experts`;
//! - what transformers keeps in 32 bits: `wo` in T5;
//! - what the caller skips (`llm_int8_skip_modules`);
//! - a classification head or a pooler, unless heads are to be converted. transformers 4 keeps
//!   `classifier`; transformers 5 converts it if it has a bias (`get_keys_to_not_convert` strips `.weight`
//!   only), and loses accuracy where it costs no memory.
//!
//! What is kept beyond what transformers would keep by itself is listed in `llm_int8_skip_modules`, so that
//! transformers builds the same model. Weights in more than two dimensions (fused experts, convolutions)
//! stay as they are, as in transformers.

use crate::config::ModelConfig;
use crate::header::TensorInfo;
use crate::index::TensorIndex;
use std::collections::{BTreeSet, HashMap};

/// What becomes of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is copied.
    Keep,
    /// It becomes 4-bit.
    Quantize,
    /// It becomes 4-bit, its dimensions exchanged: a `Conv1D` stores `[in, out]`.
    QuantizeTransposed,
}

/// What becomes of each weight of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Selection {
    quantized: HashMap<String, Fate>,
    /// Modules to list as skipped; `None` where transformers' own rules keep the same.
    skip: Option<Vec<String>>,
}

/// Parts of module names that say "embedding".
const EMBEDDINGS: &[&str] = &[
    "embed",
    "embed_in",
    "embed_positions",
    "embed_tokens",
    "embed_tokens_per_layer",
    "embedding",
    "embeddings",
    "position_embedding",
    "position_embeddings",
    "rel_embeddings",
    "relative_attention_bias",
    "shared",
    "tok_embeddings",
    "token_type_embeddings",
    "word_embedding",
    "word_embeddings",
    "wpe",
    "wte",
];

/// Last parts of output layers' names.
const OUTPUTS: &[&str] = &[
    "embed_out",
    "lm_head",
    "lm_head.decoder",
    "output_projection",
    "predictions.decoder",
    "proj_out",
    "vocab_projector",
];

/// Parts of module names that say "head of a task".
const HEADS: &[&str] = &[
    "classification_head",
    "classifier",
    "cls",
    "discriminator_predictions",
    "generator_predictions",
    "lm_head",
    "pooler",
    "pre_classifier",
    "qa_outputs",
    "score",
    "sequence_summary",
    "vocab_transform",
];

/// Models whose linear layers are `Conv1D`, and what those are called.
const CONV1D_MODELS: &[&str] = &["gpt2", "openai-gpt", "imagegpt", "decision_transformer"];
const CONV1D: &[&str] = &["c_attn", "c_fc", "c_proj", "q_attn"];

/// Whether one of `keys` names `module`: wholly, its beginning up to a dot, or its end. As
/// `should_convert_module` of transformers, except that a key is a text, not a regular expression.
pub fn names_module(keys: &[String], module: &str) -> bool {
    keys.iter().any(|key| {
        let beginning = module
            .strip_prefix(key.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.') || key.ends_with('.'));
        !key.is_empty() && (beginning || module.ends_with(key.as_str()))
    })
}

impl Selection {
    /// Decides for every tensor of `index`.
    pub fn of(config: &ModelConfig, index: &TensorIndex, convert_heads: bool, skip: &[String]) -> Selection {
        let rules = Rules { config, index, convert_heads, skip, experts: expert_parents(index) };
        let mut quantized = HashMap::new();
        let mut listed = BTreeSet::new();
        let mut needed = !skip.is_empty();
        for tensor in index.iter() {
            let Some(module) = candidate(tensor) else { continue };
            match rules.kept(module, tensor) {
                None => {
                    let conv1d = CONV1D_MODELS.contains(&config.model_type.as_str())
                        && CONV1D.contains(&last_part(module));
                    let fate = if conv1d { Fate::QuantizeTransposed } else { Fate::Quantize };
                    quantized.insert(tensor.name.clone(), fate);
                }
                Some(Kept::Embedding) => {}
                Some(Kept::AsTransformers) => {
                    listed.insert(module.to_owned());
                }
                Some(Kept::ByUs) => {
                    listed.insert(module.to_owned());
                    needed = true;
                }
                Some(Kept::BySkipList) => {}
            }
        }
        // A list replaces transformers' own rules, so it must say what they say.
        listed.insert("lm_head".to_owned());
        let list = skip.iter().cloned().chain(listed).collect();
        Selection { quantized, skip: needed.then_some(list) }
    }

    /// What becomes of the tensor of this name.
    pub fn fate(&self, tensor: &str) -> Fate {
        self.quantized.get(tensor).copied().unwrap_or(Fate::Keep)
    }

    /// Whether any weight becomes 4-bit.
    pub fn any(&self) -> bool {
        !self.quantized.is_empty()
    }

    /// `llm_int8_skip_modules`: `None` where transformers would keep the same without it.
    pub fn skip_list(&self) -> Option<&[String]> {
        self.skip.as_deref()
    }
}

/// Why a weight that could be 4-bit is not.
enum Kept {
    /// It is no linear layer for transformers either.
    Embedding,
    /// transformers keeps it without being told.
    AsTransformers,
    /// transformers has to be told.
    ByUs,
    /// The caller's list, which transformers is told, says so.
    BySkipList,
}

struct Rules<'a> {
    config: &'a ModelConfig,
    index: &'a TensorIndex,
    convert_heads: bool,
    skip: &'a [String],
    /// Modules that have `experts`.
    experts: BTreeSet<&'a str>,
}

impl Rules<'_> {
    fn kept(&self, module: &str, tensor: &TensorInfo) -> Option<Kept> {
        let last = last_part(module);
        let has = |names: &[&str]| module.split('.').any(|part| names.contains(&part));
        let ends = |name: &&str| {
            module.strip_suffix(*name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        if names_module(self.skip, module) {
            return Some(Kept::BySkipList);
        }
        if has(EMBEDDINGS) && !OUTPUTS.iter().any(ends) {
            return Some(Kept::Embedding);
        }
        if OUTPUTS.iter().any(ends) {
            return Some(Kept::AsTransformers);
        }
        let vocab = self.config.opt_usize("vocab_size").ok().flatten();
        let layered = module.split('.').any(|part| part.parse::<u32>().is_ok());
        if !layered && vocab == Some(tensor.shape[0]) {
            return Some(Kept::ByUs);
        }
        let parent = module.strip_suffix(last).map_or("", |parent| parent.trim_end_matches('.'));
        let router = ["gate", "router", "shared_expert_gate"].contains(&last);
        if router && (self.experts.contains(parent) || last == "shared_expert_gate") {
            return Some(Kept::ByUs);
        }
        if ["t5", "mt5", "umt5"].contains(&self.config.model_type.as_str()) && last == "wo" {
            return Some(Kept::AsTransformers);
        }
        if has(HEADS) {
            // transformers keeps the module of the last parameter, if that is a weight.
            let lone = !module.contains('.') && !self.index.contains(&format!("{module}.bias"));
            return match (lone, self.convert_heads) {
                (true, _) => Some(Kept::AsTransformers),
                (false, true) => None,
                (false, false) => Some(Kept::ByUs),
            };
        }
        None
    }
}

/// The module of a weight that has the form of a linear layer's.
fn candidate(tensor: &TensorInfo) -> Option<&str> {
    let linear = tensor.shape.len() == 2 && tensor.dtype.is_float() && tensor.elements() > 0;
    tensor.name.strip_suffix(".weight").filter(|_| linear)
}

/// The modules whose child `experts` has tensors.
fn expert_parents(index: &TensorIndex) -> BTreeSet<&str> {
    index.iter().filter_map(|tensor| tensor.name.split_once(".experts.").map(|(parent, _)| parent)).collect()
}

fn last_part(module: &str) -> &str {
    module.rsplit('.').next().unwrap_or(module)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_name_beginnings_up_to_a_dot_and_ends() {
        let names = |key: &str, module: &str| names_module(&[key.to_owned()], module);
        assert!(names("model.layers.1", "model.layers.1.mlp.up_proj"));
        assert!(names("model.layers.1.", "model.layers.1.mlp.up_proj"));
        assert!(!names("model.layers.1", "model.layers.11.mlp.up_proj"));
        assert!(names("up_proj", "model.layers.11.mlp.up_proj"));
        assert!(names("lm_head", "lm_head"));
        assert!(!names("mlp.gate", "model.layers.0.mlp.gate_proj"));
        assert!(!names("", "lm_head"));
    }
}
