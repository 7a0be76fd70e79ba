//! A made-up model as a checkpoint's headers, so that it can be planned and written like one.

use halfbyte_backend::Kind;
use halfbyte_checkpoint::{Checkpoint, FileBytes, ModelFiles, TokenizerFiles};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

use crate::{ModelError, Settings, SyntheticModel, build};

impl SyntheticModel {
    /// The headers of a checkpoint that holds this model in 16 bits, without its weights: to plan it, or to
    /// write it with `write_quantized_from`, which takes them from [`tensor`](Self::tensor).
    ///
    /// # Errors
    /// If the model cannot be built.
    pub fn outline(&self) -> Result<Checkpoint, ModelError> {
        let blueprint = build(self.config(), self, &Settings { quant: None, ..Settings::default() })?;
        let mut names: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for want in &blueprint.wants {
            match &want.kind {
                Kind::Linear(shape) => {
                    for segment in &shape.segments {
                        names.insert(&segment.tensor, vec![segment.rows, segment.cols]);
                        names.extend(segment.bias.as_deref().map(|bias| (bias, vec![segment.rows])));
                    }
                }
                Kind::Norm(shape) => {
                    names.insert(&shape.weight, vec![shape.len]);
                    names.extend(shape.bias.as_deref().map(|bias| (bias, vec![shape.len])));
                }
                Kind::Rope(_) | Kind::Kv(_) => {}
            }
        }
        let mut at = 0;
        let mut header = Map::new();
        for (name, shape) in names {
            let end = at + 2 * shape.iter().product::<usize>();
            let entry = json!({"dtype": "F16", "shape": shape, "data_offsets": [at, end]});
            header.insert(name.to_owned(), entry);
            at = end;
        }
        let header = Value::Object(header).to_string();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        let whole = (bytes.len() + at) as u64;
        let name = format!("synthetic:{}", self.config().file);
        let config = Value::Object(self.config().json.clone()).to_string();
        let files = ModelFiles {
            config: FileBytes::new(format!("{name}/config.json"), config.into_bytes()),
            shard_index: None,
            // Another seed is another model.
            shards: vec![FileBytes::beginning(format!("{name}/{}.safetensors", self.seed()), bytes, whole)],
            generation: None,
            tokenizer: TokenizerFiles::default(),
            name,
        };
        Ok(Checkpoint::new(files)?)
    }
}
