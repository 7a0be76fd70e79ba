//! `config.json`: what the model is, read with typed getters that name what is wrong.

use crate::dtype::TensorDtype;
use crate::error::{CheckpointError, shown, shown_json};
use serde_json::{Map, Value};

/// A model's `config.json`.
///
/// The getters are for the files of the model families: each checks the kind and size of its value,
/// and its error names the file, the key, what is there and what would be right. A key that is
/// absent or `null` counts as missing.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// The first of `architectures`, such as `LlamaForCausalLM`; empty where the file names none.
    pub architecture: String,
    /// `model_type`, such as `llama`; empty where the file names none.
    pub model_type: String,
    /// The type of the checkpoint's weights (`dtype`, formerly `torch_dtype`).
    pub dtype: Option<TensorDtype>,
    /// The whole file.
    pub json: Map<String, Value>,
    /// The file's name, for messages.
    pub file: String,
    /// Where in the file this is, with a final dot: `text_config.` for a section, empty for the whole.
    prefix: String,
}

/// The most that a size may be, by key: beyond it the file is damaged or hostile, and
/// arithmetic on it would overflow or exhaust memory. All of them must be at least 1.
const LIMITS: &[(&[&str], usize)] = &[
    (&["num_hidden_layers", "n_layer", "n_layers", "num_layers"], 10_000),
    (&["hidden_size", "n_embd", "dim", "d_model", "head_dim"], 1 << 20),
    (&["intermediate_size", "n_inner", "hidden_dim", "moe_intermediate_size"], 1 << 22),
    (&["num_attention_heads", "num_key_value_heads", "n_head", "n_heads"], 1 << 14),
    (&["vocab_size"], 1 << 24),
    (&["max_position_embeddings", "n_positions", "n_ctx", "original_max_position_embeddings"], 1 << 28),
    (&["num_local_experts", "num_experts", "num_experts_per_tok"], 1 << 14),
];

/// The most that any other integer may be.
const OTHER_LIMIT: usize = 1 << 31;

impl ModelConfig {
    /// Reads `config.json`; `file` is its name for messages.
    ///
    /// # Errors
    /// Bad JSON, no object, neither `architectures` nor `model_type`, or a `dtype` that is unknown.
    pub fn parse(file: &str, json: &[u8]) -> Result<ModelConfig, CheckpointError> {
        let config = Self::parse_plain(file, json)?;
        if config.architecture.is_empty() && config.model_type.is_empty() {
            return Err(config.error(
                "architectures",
                None,
                "the model's class, such as [\"LlamaForCausalLM\"]",
            ));
        }
        Ok(config)
    }

    /// As [`parse`](Self::parse), for files of this form that name no architecture.
    pub(crate) fn parse_plain(file: &str, json: &[u8]) -> Result<ModelConfig, CheckpointError> {
        let value = serde_json::from_slice(json).map_err(|error| CheckpointError::Json {
            file: file.to_string(),
            problem: shown(&error.to_string()),
        })?;
        let Value::Object(json) = value else {
            return Err(CheckpointError::Json {
                file: file.to_string(),
                problem: "it is not a JSON object".to_string(),
            });
        };
        Self::from_map(file, String::new(), json)
    }

    fn from_map(
        file: &str,
        prefix: String,
        json: Map<String, Value>,
    ) -> Result<ModelConfig, CheckpointError> {
        let mut config = ModelConfig {
            architecture: String::new(),
            model_type: String::new(),
            dtype: None,
            json,
            file: file.to_string(),
            prefix,
        };
        config.model_type = config.str_or("model_type", "")?.to_string();
        if let Some(names) = config.opt_str_list("architectures")? {
            config.architecture = names.first().map(|name| name.to_string()).unwrap_or_default();
        }
        config.dtype = match config.opt_str("dtype")? {
            Some("auto") | None => config.opt_dtype("torch_dtype")?,
            Some(_) => config.opt_dtype("dtype")?,
        };
        Ok(config)
    }

    /// A nested configuration, such as the `text_config` of a model that also sees; `None` if there is none.
    ///
    /// # Errors
    /// If the key holds something else than an object.
    pub fn section(&self, key: &str) -> Result<Option<ModelConfig>, CheckpointError> {
        let Some(value) = self.opt(key) else {
            return Ok(None);
        };
        let map = value.as_object().ok_or_else(|| self.error(key, Some(value), "an object"))?;
        Self::from_map(&self.file, format!("{}{key}.", self.prefix), map.clone()).map(Some)
    }

    /// The value of a key, if it is there and not `null`.
    pub fn opt(&self, key: &str) -> Option<&Value> {
        self.json.get(key).filter(|value| !value.is_null())
    }

    /// A size that must be there: an integer of at least 1 for the known sizes (such as
    /// `hidden_size`), at least 0 for others, and not absurdly large.
    ///
    /// # Errors
    /// If it is missing or not such an integer.
    pub fn usize(&self, key: &str) -> Result<usize, CheckpointError> {
        self.opt_usize(key)?.ok_or_else(|| self.error(key, None, &expected_size(key)))
    }

    /// As [`usize`](Self::usize), with a default where it is missing.
    ///
    /// # Errors
    /// If it is not such an integer.
    pub fn usize_or(&self, key: &str, default: usize) -> Result<usize, CheckpointError> {
        Ok(self.opt_usize(key)?.unwrap_or(default))
    }

    /// As [`usize`](Self::usize), `None` where it is missing.
    ///
    /// # Errors
    /// If it is not such an integer.
    pub fn opt_usize(&self, key: &str) -> Result<Option<usize>, CheckpointError> {
        let Some(value) = self.opt(key) else {
            return Ok(None);
        };
        let (least, most) = size_limits(key);
        value
            .as_u64()
            .and_then(|size| usize::try_from(size).ok())
            .filter(|size| (least..=most).contains(size))
            .map(Some)
            .ok_or_else(|| self.error(key, Some(value), &expected_size(key)))
    }

    /// A finite number that must be there.
    ///
    /// # Errors
    /// If it is missing or not a number.
    pub fn f64(&self, key: &str) -> Result<f64, CheckpointError> {
        self.opt_f64(key)?.ok_or_else(|| self.error(key, None, "a number"))
    }

    /// As [`f64`](Self::f64), with a default where it is missing.
    ///
    /// # Errors
    /// If it is not a number.
    pub fn f64_or(&self, key: &str, default: f64) -> Result<f64, CheckpointError> {
        Ok(self.opt_f64(key)?.unwrap_or(default))
    }

    /// As [`f64`](Self::f64), `None` where it is missing.
    ///
    /// # Errors
    /// If it is not a number.
    pub fn opt_f64(&self, key: &str) -> Result<Option<f64>, CheckpointError> {
        self.opt_as(key, "a number", |value| value.as_f64().filter(|number| number.is_finite()))
    }

    /// The epsilon of a normalization, with a default where it is missing: a number from 0 to 1.
    ///
    /// # Errors
    /// If it is not such a number.
    pub fn epsilon_or(&self, key: &str, default: f64) -> Result<f64, CheckpointError> {
        let epsilon = self.f64_or(key, default)?;
        if (0.0..=1.0).contains(&epsilon) {
            return Ok(epsilon);
        }
        Err(self.error(key, self.opt(key), "a number from 0 to 1"))
    }

    /// A truth value, with a default where it is missing.
    ///
    /// # Errors
    /// If it is neither `true` nor `false`.
    pub fn bool_or(&self, key: &str, default: bool) -> Result<bool, CheckpointError> {
        Ok(self.opt_bool(key)?.unwrap_or(default))
    }

    /// A truth value, `None` where it is missing.
    ///
    /// # Errors
    /// If it is neither `true` nor `false`.
    pub fn opt_bool(&self, key: &str) -> Result<Option<bool>, CheckpointError> {
        self.opt_as(key, "true or false", Value::as_bool)
    }

    /// A text that must be there.
    ///
    /// # Errors
    /// If it is missing or not a text.
    pub fn str(&self, key: &str) -> Result<&str, CheckpointError> {
        self.opt_str(key)?.ok_or_else(|| self.error(key, None, "a text"))
    }

    /// A text, with a default where it is missing.
    ///
    /// # Errors
    /// If it is not a text.
    pub fn str_or<'a>(&'a self, key: &str, default: &'a str) -> Result<&'a str, CheckpointError> {
        Ok(self.opt_str(key)?.unwrap_or(default))
    }

    /// A text, `None` where it is missing.
    ///
    /// # Errors
    /// If it is not a text.
    pub fn opt_str(&self, key: &str) -> Result<Option<&str>, CheckpointError> {
        self.opt_as(key, "a text", Value::as_str)
    }

    /// A list of texts, such as `layer_types`; `None` where it is missing.
    ///
    /// # Errors
    /// If it is not such a list.
    pub fn opt_str_list(&self, key: &str) -> Result<Option<Vec<&str>>, CheckpointError> {
        self.opt_as(key, "a list of texts", |value| value.as_array()?.iter().map(Value::as_str).collect())
    }

    /// A list of finite numbers; `None` where it is missing.
    ///
    /// # Errors
    /// If it is not such a list.
    pub fn opt_f64_list(&self, key: &str) -> Result<Option<Vec<f64>>, CheckpointError> {
        self.opt_as(key, "a list of numbers", |value| {
            let finite = |item: &Value| item.as_f64().filter(|number| number.is_finite());
            value.as_array()?.iter().map(finite).collect()
        })
    }

    /// A type as PyTorch names it, `None` where it is missing.
    ///
    /// # Errors
    /// If no such type is known.
    pub fn opt_dtype(&self, key: &str) -> Result<Option<TensorDtype>, CheckpointError> {
        self.opt_as(key, "a type such as \"float16\"", |value| TensorDtype::from_torch_name(value.as_str()?))
    }

    /// A classifier's labels in the order of their logits: from `id2label`, else `LABEL_0` and so on
    /// for `num_labels`, which is 2 where nothing is said, as in transformers.
    ///
    /// # Errors
    /// If `id2label` does not name each of 0, 1, … once.
    pub fn labels(&self) -> Result<Vec<String>, CheckpointError> {
        let Some(value) = self.opt("id2label") else {
            let count = self.usize_or("num_labels", 2)?;
            if count > 1 << 20 {
                let found = self.opt("num_labels");
                return Err(self.error("num_labels", found, "at most 1048576 labels"));
            }
            return Ok((0..count).map(|at| format!("LABEL_{at}")).collect());
        };
        let read = |map: &Map<String, Value>| -> Option<Vec<String>> {
            (0..map.len()).map(|at| map.get(&at.to_string())?.as_str().map(str::to_string)).collect()
        };
        value.as_object().filter(|map| !map.is_empty()).and_then(read).ok_or_else(|| {
            self.error("id2label", Some(value), "an object with a text for each of \"0\", \"1\", …")
        })
    }

    /// One or several token ids (`eos_token_id` is a number or a list); empty where it is missing.
    ///
    /// # Errors
    /// If it is neither.
    pub fn token_ids(&self, key: &str) -> Result<Vec<u32>, CheckpointError> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = self.opt_as(key, "a token id or a list of token ids", |value| match value {
            Value::Array(items) => items.iter().map(id).collect(),
            // Some configurations say -1 for "none".
            Value::Number(number) if number.as_i64() == Some(-1) => Some(Vec::new()),
            single => id(single).map(|id| vec![id]),
        })?;
        Ok(ids.unwrap_or_default())
    }

    fn opt_as<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, CheckpointError> {
        let Some(value) = self.opt(key) else {
            return Ok(None);
        };
        match read(value) {
            Some(read) => Ok(Some(read)),
            None => Err(self.error(key, Some(value), expected)),
        }
    }

    /// An error about a key, for a family that finds a value which it cannot use.
    pub fn error(&self, key: &str, found: Option<&Value>, expected: &str) -> CheckpointError {
        CheckpointError::Config {
            file: self.file.clone(),
            key: format!("{}{}", self.prefix, shown(key)),
            found: found.map_or_else(|| "missing".to_string(), shown_json),
            expected: expected.to_string(),
        }
    }
}

/// The least and the most that a size may be.
fn size_limits(key: &str) -> (usize, usize) {
    LIMITS.iter().find(|(keys, _)| keys.contains(&key)).map_or((0, OTHER_LIMIT), |&(_, most)| (1, most))
}

fn expected_size(key: &str) -> String {
    let (least, most) = size_limits(key);
    format!("an integer from {least} to {most}")
}
