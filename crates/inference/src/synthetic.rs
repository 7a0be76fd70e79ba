//! Models of a true shape with random weights, made as they are asked for: nothing to download, and the
//! same work for every device as the model itself.

use half::{bf16, f16, slice::HalfFloatSliceExt};
use halfbyte_backend::{Canonical, DType, Fault, Format, Fut, Segment, WeightSource};
use halfbyte_checkpoint::{ModelConfig, TensorDtype};
use halfbyte_quant::{Source, SourceType, quantize};
use std::borrow::Cow;

use crate::{ModelError, Stored, Tensors};

/// Standard deviation of the weights: what most models are initialized with.
const DEVIATION: f32 = 0.02;

/// Elements that are made together, by one thread.
const CHUNK: usize = 1 << 16;

/// A Llama, or BERT with a classifier of two labels.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Llama,
    Bert,
}

/// The sizes of a model.
struct Shape {
    kind: Kind,
    name: &'static str,
    hidden: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    intermediate: usize,
    vocab: usize,
    max_positions: usize,
}

const SHAPES: &[Shape] = &[
    Shape {
        kind: Kind::Llama,
        name: "llama-160m",
        hidden: 768,
        layers: 12,
        heads: 12,
        kv_heads: 12,
        intermediate: 2048,
        vocab: 32000,
        max_positions: 2048,
    },
    Shape {
        kind: Kind::Llama,
        name: "tinyllama-1.1b",
        hidden: 2048,
        layers: 22,
        heads: 32,
        kv_heads: 4,
        intermediate: 5632,
        vocab: 32000,
        max_positions: 2048,
    },
    Shape {
        kind: Kind::Llama,
        name: "llama-2-7b",
        hidden: 4096,
        layers: 32,
        heads: 32,
        kv_heads: 32,
        intermediate: 11008,
        vocab: 32000,
        max_positions: 4096,
    },
    // bert-large-uncased
    Shape {
        kind: Kind::Bert,
        name: "bert-large",
        hidden: 1024,
        layers: 24,
        heads: 16,
        kv_heads: 16,
        intermediate: 4096,
        vocab: 30522,
        max_positions: 512,
    },
];

/// A model whose weights are numbers from a seed, stored in 16 bits.
///
/// Weights are about normal with a standard deviation of 0.02, norms are near 1. A tensor depends on
/// the seed and its name only, so it comes again the same as often as it is asked for.
#[derive(Debug, Clone)]
pub struct SyntheticModel {
    config: ModelConfig,
    seed: u64,
}

impl SyntheticModel {
    /// The shapes that [`named`](Self::named) knows.
    pub fn names() -> impl Iterator<Item = &'static str> {
        SHAPES.iter().map(|shape| shape.name)
    }

    /// A model of a well-known shape, such as `llama-2-7b`.
    ///
    /// # Errors
    /// If there is none of that name; the message lists them.
    pub fn named(name: &str, seed: u64) -> Result<Self, ModelError> {
        let Some(shape) = SHAPES.iter().find(|shape| shape.name == name) else {
            let known: Vec<&str> = Self::names().collect();
            return Err(ModelError::Unsupported {
                what: format!("the shape \"{}\"", halfbyte_checkpoint::error::shown(name)),
                instead: format!("known are {}", known.join(", ")),
            });
        };
        let own = match shape.kind {
            Kind::Llama => {
                r#""architectures": ["LlamaForCausalLM"], "model_type": "llama", "rms_norm_eps": 1e-5,
                "hidden_act": "silu""#
            }
            Kind::Bert => {
                r#""architectures": ["BertForSequenceClassification"], "model_type": "bert",
                "layer_norm_eps": 1e-12, "hidden_act": "gelu", "type_vocab_size": 2"#
            }
        };
        let json = format!(
            r#"{{{own}, "dtype": "float16", "hidden_size": {}, "num_hidden_layers": {},
            "num_attention_heads": {}, "num_key_value_heads": {}, "intermediate_size": {},
            "vocab_size": {}, "max_position_embeddings": {}}}"#,
            shape.hidden,
            shape.layers,
            shape.heads,
            shape.kv_heads,
            shape.intermediate,
            shape.vocab,
            shape.max_positions
        );
        Ok(Self::new(ModelConfig::parse(name, json.as_bytes())?, seed))
    }

    /// A model of any configuration whose tensors have the names of Llama's or BERT's.
    pub fn new(config: ModelConfig, seed: u64) -> Self {
        Self { config, seed }
    }

    /// Its configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The shape of a tensor by its name; `None` if the model has no such tensor.
    fn shape(&self, name: &str) -> Result<Option<Vec<usize>>, ModelError> {
        let config = &self.config;
        let hidden = config.usize("hidden_size")?;
        let intermediate = config.usize("intermediate_size")?;
        if config.model_type == "bert" {
            return self.bert_shape(name, hidden, intermediate);
        }
        let heads = config.usize("num_attention_heads")?;
        let kv_heads = config.usize_or("num_key_value_heads", heads)?;
        let head_dim = config.usize_or("head_dim", hidden / heads)?;
        let Some(module) = name.strip_suffix(".weight") else { return Ok(None) };
        Ok(Some(match module.rsplit('.').next().unwrap_or(module) {
            "embed_tokens" | "lm_head" => vec![config.usize("vocab_size")?, hidden],
            "q_proj" => vec![heads * head_dim, hidden],
            "k_proj" | "v_proj" => vec![kv_heads * head_dim, hidden],
            "o_proj" => vec![hidden, heads * head_dim],
            "gate_proj" | "up_proj" => vec![intermediate, hidden],
            "down_proj" => vec![hidden, intermediate],
            "norm" | "input_layernorm" | "post_attention_layernorm" => vec![hidden],
            _ => return Ok(None),
        }))
    }

    /// [`shape`](Self::shape) of a BERT with a classifier.
    fn bert_shape(
        &self,
        name: &str,
        hidden: usize,
        intermediate: usize,
    ) -> Result<Option<Vec<usize>>, ModelError> {
        let config = &self.config;
        let Some((module, kind)) = name.rsplit_once('.') else { return Ok(None) };
        let end = |suffix: &str| module.ends_with(suffix);
        let (rows, cols) = match module {
            _ if end("word_embeddings") => (config.usize("vocab_size")?, Some(hidden)),
            _ if end("position_embeddings") => (config.usize("max_position_embeddings")?, Some(hidden)),
            _ if end("token_type_embeddings") => (config.usize_or("type_vocab_size", 2)?, Some(hidden)),
            _ if end("LayerNorm") => (hidden, None),
            _ if end("query") || end("key") || end("value") => (hidden, Some(hidden)),
            _ if end("attention.output.dense") || end("pooler.dense") => (hidden, Some(hidden)),
            _ if end("intermediate.dense") => (intermediate, Some(hidden)),
            _ if end("output.dense") => (hidden, Some(intermediate)),
            "classifier" => (config.labels()?.len(), Some(hidden)),
            _ => return Ok(None),
        };
        Ok(match (kind, cols) {
            ("weight", Some(cols)) => Some(vec![rows, cols]),
            ("weight" | "bias", _) => Some(vec![rows]),
            _ => None,
        })
    }

    /// The number that a tensor's weights are drawn by.
    fn key(&self, name: &str) -> u64 {
        mix(self.seed
            ^ name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
                // FNV-1a
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            }))
    }

    /// The weights in their stored type: drawn and converted a chunk at a time, so that a 16-bit head never
    /// stands in memory as float32, too.
    fn dense(&self, name: &str, len: usize, dtype: DType) -> Vec<u8> {
        let key = self.key(name);
        let size = match dtype {
            DType::F32 => 4,
            DType::F16 | DType::Bf16 => 2,
        };
        let mut out = vec![0; len * size];
        let draw = |(index, out): (usize, &mut [u8])| {
            let mut values = vec![0.0; out.len() / size];
            fill(key, index * CHUNK, &mut values);
            if is_norm(name) {
                values.iter_mut().for_each(|value| *value += 1.0);
            }
            out.copy_from_slice(&bytes(&values, dtype));
        };
        halfbyte_quant::threads::each(out.chunks_mut(CHUNK * size).enumerate(), draw);
        out
    }

    /// `len` weights of the tensor `name`, as they are stored.
    fn values(&self, name: &str, len: usize) -> Vec<f32> {
        let bytes = self.dense(name, len, DType::F16);
        bytes.as_chunks::<2>().0.iter().map(|&half| f16::from_le_bytes(half).to_f32()).collect()
    }

    /// The bytes of a tensor as it is stored: 16-bit floats, little-endian; `None` if there is no such tensor.
    pub fn tensor(&self, name: &str) -> Option<Vec<u8>> {
        let shape = self.shape(name).ok().flatten()?;
        Some(self.dense(name, shape.iter().product(), DType::F16))
    }

    /// The number that its weights are drawn from.
    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }
}

/// Whether a tensor is the weight of a norm: near 1.
fn is_norm(name: &str) -> bool {
    name.ends_with("norm.weight") || name.ends_with("LayerNorm.weight")
}

impl Tensors for SyntheticModel {
    fn find(&self, name: &str) -> Option<Stored> {
        self.get(name).ok()
    }

    fn get(&self, name: &str) -> Result<Stored, ModelError> {
        match self.shape(name)? {
            Some(shape) => Ok(Stored { dtype: TensorDtype::F16, shape, file: self.config.file.clone() }),
            None => Err(ModelError::Unsupported {
                what: format!("a synthetic tensor {name}"),
                instead: "synthetic models have the tensors of a Llama without biases, or of BERT".into(),
            }),
        }
    }
}

impl WeightSource for SyntheticModel {
    fn segment<'a>(&'a self, segment: &'a Segment) -> Fut<'a, Canonical<'a>> {
        Box::pin(async move {
            let len = segment.rows * segment.cols;
            Ok(match segment.format {
                Format::Quant(format) => {
                    let bytes = self.dense(&segment.tensor, len, DType::F16);
                    let data = Source::from_le_bytes(SourceType::F16, &bytes)
                        .and_then(|source| quantize(source, format.into()))
                        .map_err(|error| Fault::Source(format!("quantizing {}: {error}", segment.tensor)))?;
                    Canonical::Quantized(Cow::Owned(data))
                }
                Format::Dense(dtype) => {
                    let bytes = self.dense(&segment.tensor, len, dtype);
                    Canonical::Dense { dtype, bytes: Cow::Owned(bytes) }
                }
            })
        })
    }

    fn vector<'a>(&'a self, name: &'a str, len: usize) -> Fut<'a, Vec<f32>> {
        Box::pin(async move { Ok(self.values(name, len)) })
    }
}

/// Elements `at ..` of a tensor: each is the sum of four bytes of a hash of its position, which is close
/// to normal (Irwin-Hall), scaled to [`DEVIATION`].
fn fill(key: u64, at: usize, out: &mut [f32]) {
    // The variance of a byte is (256² - 1) / 12.
    const BYTES: f32 = 4.0;
    let scale = DEVIATION / (BYTES * 65535.0 / 12.0).sqrt();
    let element = |word: u32| {
        // Four bytes are summed in pairs: two in each half, then both halves.
        let pairs = (word & 0x00ff_00ff) + (word >> 8 & 0x00ff_00ff);
        let sum = (pairs + (pairs >> 16)) & 0xffff;
        (sum as f32 - BYTES * 127.5) * scale
    };
    for (index, pair) in out.chunks_mut(2).enumerate() {
        let bits = mix(key.wrapping_add((at / 2 + index) as u64));
        for (value, word) in pair.iter_mut().zip([bits as u32, (bits >> 32) as u32]) {
            *value = element(word);
        }
    }
}

/// The finalizer of SplitMix64 (Steele et al. 2014, "Fast splittable pseudorandom number generators").
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn bytes(values: &[f32], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        DType::F16 => {
            let mut halves = vec![f16::ZERO; values.len()];
            halves.convert_from_f32_slice(values);
            halves.iter().flat_map(|value| value.to_le_bytes()).collect()
        }
        DType::Bf16 => {
            let mut halves = vec![bf16::ZERO; values.len()];
            halves.convert_from_f32_slice(values);
            halves.iter().flat_map(|value| value.to_le_bytes()).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Settings, build};

    #[test]
    fn weights_are_near_normal_and_come_again_the_same() {
        let model = SyntheticModel::named("llama-160m", 7).unwrap();
        let values = model.values("model.layers.0.mlp.up_proj.weight", 3 * CHUNK + 5);
        let n = values.len() as f64;
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let variance = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
        let fourth = values.iter().map(|&v| (f64::from(v) - mean).powi(4)).sum::<f64>() / n;
        assert!(mean.abs() < 3e-4, "{mean}");
        assert!((variance.sqrt() - 0.02).abs() < 2e-4, "{variance}");
        // A normal distribution's is 3, the sum of four uniforms' 2.7.
        assert!((fourth / variance.powi(2) - 2.7).abs() < 0.05);
        assert_eq!(values, model.values("model.layers.0.mlp.up_proj.weight", 3 * CHUNK + 5));
        assert_ne!(values[..8], model.values("model.layers.1.mlp.up_proj.weight", 8)[..]);
        let other = SyntheticModel::named("llama-160m", 8).unwrap();
        assert_ne!(values[..8], other.values("model.layers.0.mlp.up_proj.weight", 8)[..]);
    }

    #[test]
    fn bert_large_has_its_weights() {
        let model = SyntheticModel::named("bert-large", 0).unwrap();
        let blueprint = build(model.config(), &model, &Settings::default()).unwrap();
        // Embedding, 24 layers, classifier.
        assert_eq!(blueprint.blocks.len(), 26);
        // 24 layers of 4 h² + 2 * 4 h², the pooler's h² and two labels.
        assert_eq!(blueprint.linear_weights(), 24 * 12 * 1024 * 1024 + 1024 * 1024 + 2 * 1024);
        assert!(blueprint.initialized.is_empty());
    }

    #[test]
    fn llama_2_7b_has_its_224_linears_and_their_weights() {
        let model = SyntheticModel::named("llama-2-7b", 0).unwrap();
        let blueprint = build(model.config(), &model, &Settings::default()).unwrap();
        assert_eq!(blueprint.blocks.len(), 34);
        assert_eq!(blueprint.linear_weights(), 6_476_005_376);
        assert!(SyntheticModel::named("llama-9", 0).unwrap_err().to_string().contains("llama-2-7b"));
    }
}
