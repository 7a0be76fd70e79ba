//! Well-known families of the Hub and the shapes of their members, so that whoever asks for a model that does not fit
//! can be told of a smaller one that does.

mod table;

use crate::{ModelError, Stored, Tensors};
use halfbyte_checkpoint::{ModelConfig, TensorDtype};
use table::{FAMILIES, Family, Member};

/// A model of the table: its configuration and the headers that its tensors have, in 16 bits.
#[derive(Debug, Clone)]
pub struct KnownModel {
    /// Its name on the Hub.
    pub name: &'static str,
    config: ModelConfig,
    fused: bool,
}

impl KnownModel {
    /// Its configuration, as far as memory goes.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn of(family: &Family, member: &Member, name: &'static str) -> Result<Self, ModelError> {
        let json = format!(
            r#"{{"architectures": ["{}"], {}, "hidden_size": {}, "num_hidden_layers": {},
            "num_attention_heads": {}, "num_key_value_heads": {}, "head_dim": {}, "intermediate_size": {},
            "vocab_size": {}, "max_position_embeddings": {}, "rms_norm_eps": 1e-6, "tie_word_embeddings": {}}}"#,
            family.architecture,
            family.config,
            member.hidden,
            member.layers,
            member.heads,
            member.kv_heads,
            member.head_dim,
            member.intermediate,
            member.vocabulary,
            member.positions,
            member.tied,
        );
        let fused = family.architecture == "Phi3ForCausalLM";
        Ok(Self { name, config: ModelConfig::parse(name, json.as_bytes())?, fused })
    }

    /// The shape of a tensor by its name; `None` if the model has no such tensor.
    fn shape(&self, name: &str) -> Result<Option<Vec<usize>>, ModelError> {
        let size = |key: &str| self.config.usize(key);
        let (hidden, intermediate) = (size("hidden_size")?, size("intermediate_size")?);
        let head_dim = size("head_dim")?;
        let q = size("num_attention_heads")? * head_dim;
        let kv = size("num_key_value_heads")? * head_dim;
        let Some((module, kind)) = name.rsplit_once('.') else { return Ok(None) };
        let (rows, cols) = match module.rsplit('.').next().unwrap_or(module) {
            "lm_head" if self.config.bool_or("tie_word_embeddings", false)? => return Ok(None),
            "embed_tokens" | "lm_head" => (size("vocab_size")?, Some(hidden)),
            "qkv_proj" if self.fused => (q + 2 * kv, Some(hidden)),
            "gate_up_proj" if self.fused => (2 * intermediate, Some(hidden)),
            "o_proj" => (hidden, Some(q)),
            "down_proj" => (hidden, Some(intermediate)),
            "q_proj" if !self.fused => (q, Some(hidden)),
            "k_proj" | "v_proj" if !self.fused => (kv, Some(hidden)),
            "gate_proj" | "up_proj" if !self.fused => (intermediate, Some(hidden)),
            "q_norm" | "k_norm" => (head_dim, None),
            norm if norm.ends_with("norm") => (hidden, None),
            _ => return Ok(None),
        };
        Ok(match (kind, cols) {
            ("weight", Some(cols)) => Some(vec![rows, cols]),
            ("weight" | "bias", _) => Some(vec![rows]),
            _ => None,
        })
    }
}

impl Tensors for KnownModel {
    fn find(&self, name: &str) -> Option<Stored> {
        self.get(name).ok()
    }

    fn get(&self, name: &str) -> Result<Stored, ModelError> {
        match self.shape(name)? {
            Some(shape) => {
                Ok(Stored { dtype: TensorDtype::BF16, shape, file: format!("{}/config.json", self.name) })
            }
            None => Err(ModelError::Invalid(format!("{} has no tensor {name}", self.name))),
        }
    }
}

/// The members of a model's family that are smaller than it, the largest first. Each is the base model or the one
/// that talks, as `name` is. None for a family that is not known.
pub fn smaller_of_the_family(config: &ModelConfig, name: &str) -> Vec<KnownModel> {
    let size = |key: &str| config.usize(key).unwrap_or(0);
    let vocabulary = size("vocab_size");
    let family = FAMILIES
        .iter()
        .find(|one| one.architecture == config.architecture && one.vocabularies.contains(&vocabulary));
    let Some(family) = family else { return Vec::new() };
    let name = name.to_lowercase();
    let by_name = ["instruct", "chat", "-it"].iter().any(|part| name.contains(part));
    // Qwen 3 has it the other way round.
    let talks = by_name || (name.contains("qwen3") && !name.contains("base"));
    // Depth and width: what memory grows with.
    let own = size("num_hidden_layers") * size("hidden_size") * size("intermediate_size");
    let named = |member: &Member| match talks {
        true => member.chat.or(member.base),
        false => member.base.or(member.chat),
    };
    let smaller = family.members.iter().rev().filter(|one| one.layers * one.hidden * one.intermediate < own);
    smaller.filter_map(|member| KnownModel::of(family, member, named(member)?).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Settings, build};
    use halfbyte_backend::Kind;

    /// Billions of parameters, as a model's name rounds them: "8B", "135M".
    fn billions(name: &str) -> Option<f64> {
        let parts = name.split(['-', '/']);
        let sized = |part: &str| {
            let (number, unit) = part.split_at_checked(part.len().checked_sub(1)?)?;
            let number: f64 = number.parse().ok()?;
            match unit {
                "B" | "b" => Some(number),
                "M" | "m" => Some(number / 1000.0),
                _ => None,
            }
        };
        parts.filter_map(sized).next_back()
    }

    #[test]
    fn every_member_is_a_model_of_the_size_that_its_name_says() {
        let mut named = 0;
        for family in FAMILIES {
            let mut before = 0;
            for member in family.members {
                for name in [member.base, member.chat].into_iter().flatten() {
                    let model = KnownModel::of(family, member, name).unwrap();
                    let blueprint = build(model.config(), &model, &Settings::default())
                        .unwrap_or_else(|error| panic!("{name}: {error}"));
                    assert_eq!(blueprint.blocks.len(), member.layers + 2, "{name}");
                    let elements = |want: &halfbyte_backend::Want| match &want.kind {
                        Kind::Linear(shape) => shape.rows() as u64 * shape.cols() as u64,
                        _ => 0,
                    };
                    let found: u64 = blueprint.wants.iter().map(elements).sum();
                    assert!(found >= before, "{name} is smaller than the one before it");
                    before = found;
                    let Some(wanted) = billions(name) else { continue };
                    named += 1;
                    // Names round generously: 0.5 for 0.49, 1 for 1.24, 2 for 2.6, 3 for 3.2.
                    let ratio = found as f64 / 1e9 / wanted;
                    assert!((0.9..1.35).contains(&ratio), "{name}: {found} weights");
                    assert!(family.vocabularies.contains(&member.vocabulary), "{name}");
                }
            }
        }
        assert!(named > 40, "{named}");
    }

    #[test]
    fn known_counts() {
        // As the Hub's safetensors headers sum them, norms and biases apart.
        for (name, wanted) in [
            ("meta-llama/Llama-3.2-1B", 1_235_746_816_u64),
            ("meta-llama/Llama-3.1-8B", 8_029_995_008),
            ("meta-llama/Llama-2-7b-hf", 6_738_149_376),
        ] {
            let (family, member) = FAMILIES
                .iter()
                .flat_map(|family| family.members.iter().map(move |member| (family, member)))
                .find(|(_, member)| member.base == Some(name))
                .unwrap();
            let model = KnownModel::of(family, member, name).unwrap();
            let blueprint = build(model.config(), &model, &Settings::default()).unwrap();
            let elements = |want: &halfbyte_backend::Want| match &want.kind {
                Kind::Linear(shape) => shape.rows() as u64 * shape.cols() as u64,
                _ => 0,
            };
            let found: u64 = blueprint.wants.iter().map(elements).sum();
            assert_eq!(found, wanted, "{name}");
        }
    }

    #[test]
    fn local_layers_keep_a_window_and_a_submission() {
        let mut known =
            FAMILIES.iter().flat_map(|family| family.members.iter().map(move |one| (family, one)));
        let name = "google/gemma-3-1b-it";
        let (family, member) = known.find(|(_, member)| member.chat == Some(name)).unwrap();
        let model = KnownModel::of(family, member, name).unwrap();
        let cache = |rows: Option<usize>| -> u64 {
            let settings = Settings { context: Some(32768), rows, ..Settings::default() };
            let blueprint = build(model.config(), &model, &settings).unwrap();
            let bytes = |want: &halfbyte_backend::Want| match &want.kind {
                Kind::Kv(shape) => shape.bytes(),
                _ => 0,
            };
            blueprint.wants.iter().map(bytes).sum()
        };
        // 26 layers of one head of 256 features in f16, of which 22 see 512 positions.
        assert_eq!(cache(None), 26 * 32768 * 1024);
        assert_eq!(cache(Some(256)), (4 * 32768 + 22 * (512 + 255)) * 1024);
    }

    #[test]
    fn smaller_ones_are_of_the_same_kind_and_the_largest_comes_first() {
        let names = |json: &str, name: &str| -> Vec<&str> {
            let config = ModelConfig::parse("config.json", json.as_bytes()).unwrap();
            smaller_of_the_family(&config, name).iter().map(|one| one.name).collect()
        };
        let llama = |layers: usize, hidden: usize, intermediate: usize, vocabulary: usize| {
            format!(
                r#"{{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": {layers},
                "hidden_size": {hidden}, "intermediate_size": {intermediate}, "vocab_size": {vocabulary}}}"#
            )
        };
        let eight = llama(32, 4096, 14336, 128256);
        assert_eq!(
            names(&eight, "meta-llama/Llama-3.1-8B"),
            ["meta-llama/Llama-3.2-3B", "meta-llama/Llama-3.2-1B"]
        );
        assert_eq!(names(&eight, "someone/Llama-3-8b-Chat")[0], "meta-llama/Llama-3.2-3B-Instruct");
        let thirteen = names(&llama(40, 5120, 13824, 32000), "meta-llama/Llama-2-13b-hf");
        assert_eq!(thirteen, ["meta-llama/Llama-2-7b-hf", "TinyLlama/TinyLlama-1.1B-Chat-v1.0"]);
        assert!(names(&llama(22, 2048, 5632, 32000), "TinyLlama/TinyLlama_v1.1").is_empty());
        assert!(names(&llama(32, 4096, 14336, 7), "nobody/knows").is_empty());
    }
}
