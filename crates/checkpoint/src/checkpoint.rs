//! A whole checkpoint: configuration, tensors and their bytes, tokenizer.

use crate::config::ModelConfig;
use crate::dtype::TensorDtype;
use crate::error::{CheckpointError, shown};
use crate::files::{FileBytes, ModelFiles, SENTENCEPIECE, TokenizerFiles};
use crate::generation::GenerationConfig;
use crate::header::{Header, TensorInfo};
use crate::index::{ShardIndex, TensorIndex};
use crate::region::Region;
use crate::tokenizer::Tokenizer;

/// A model's files, checked: every tensor of the index lies inside its shard.
#[derive(Debug)]
pub struct Checkpoint {
    /// The model's name for messages: its directory or Hub id.
    pub name: String,
    /// `config.json`.
    pub config: ModelConfig,
    /// All tensors by name.
    pub index: TensorIndex,
    /// Sampling defaults and stop tokens, from `generation_config.json` and `config.json`.
    pub generation: GenerationConfig,
    shards: Vec<FileBytes>,
    tokenizer: TokenizerFiles,
    generation_file: Option<FileBytes>,
}

impl Checkpoint {
    /// Reads and checks the configuration and the headers; the weights themselves are not touched.
    ///
    /// # Errors
    /// Whatever is wrong with one of the files.
    pub fn new(files: ModelFiles) -> Result<Checkpoint, CheckpointError> {
        let (file, json) = files.config.named();
        let config = ModelConfig::parse(file, json)?;
        let headers = files
            .shards
            .iter()
            .map(|shard| Header::parse(shard.name(), shard.bytes(), shard.len()))
            .collect::<Result<Vec<_>, _>>()?;
        let index = match files.shard_index.as_ref().map(FileBytes::named) {
            Some((file, json)) => TensorIndex::sharded(&ShardIndex::parse(file, json)?, headers)?,
            None => TensorIndex::new(headers)?,
        };
        let generation = GenerationConfig::parse(files.generation.as_ref().map(FileBytes::named), &config)?;
        let model_type = config.model_type.clone();
        Ok(Checkpoint {
            name: files.name,
            config,
            index,
            generation,
            shards: files.shards,
            tokenizer: TokenizerFiles { model_type: Some(model_type), ..files.tokenizer },
            generation_file: files.generation,
        })
    }

    /// The bytes of a tensor that the model must have, little-endian in its own type.
    ///
    /// # Errors
    /// If there is no such tensor.
    pub fn tensor_bytes(&self, name: &str) -> Result<&[u8], CheckpointError> {
        self.bytes_of(self.index.get(name)?)
    }

    /// The bytes of a tensor of this checkpoint's index.
    ///
    /// # Errors
    /// If the tensor is of another checkpoint and lies outside of this one's files.
    pub fn bytes_of(&self, tensor: &TensorInfo) -> Result<&[u8], CheckpointError> {
        let range = usize::try_from(tensor.begin).ok().zip(usize::try_from(tensor.end).ok());
        self.shards
            .get(tensor.file)
            .zip(range)
            .and_then(|(shard, (begin, end))| shard.bytes().get(begin..end))
            .ok_or_else(|| self.outside(tensor))
    }

    fn outside(&self, tensor: &TensorInfo) -> CheckpointError {
        CheckpointError::MissingTensor {
            tensor: shown(&tensor.name),
            files: self.name.clone(),
            hint: format!(
                ": bytes {} to {} of shard {} are not there",
                tensor.begin, tensor.end, tensor.file
            ),
        }
    }

    /// A tensor of this checkpoint's index where it lies, to be kept.
    ///
    /// # Errors
    /// As [`bytes_of`](Self::bytes_of).
    pub fn region_of(&self, tensor: &TensorInfo) -> Result<Region, CheckpointError> {
        self.bytes_of(tensor)?;
        let range = usize::try_from(tensor.begin).ok().zip(usize::try_from(tensor.end).ok());
        let region = self
            .shards
            .get(tensor.file)
            .zip(range)
            .and_then(|(shard, (begin, end))| shard.region(begin..end));
        region.ok_or_else(|| self.outside(tensor))
    }

    /// The type of the model's 16- or 32-bit weights: as the configuration says, else of the first float tensor.
    pub fn dtype(&self) -> Option<TensorDtype> {
        self.config.dtype.or_else(|| {
            let mut dtypes = self.index.iter().map(|tensor| tensor.dtype);
            dtypes.find(|dtype| dtype.is_float())
        })
    }

    /// The small files that came with it, by the names that they have in a model's directory, without
    /// `config.json`.
    pub fn companions(&self) -> impl Iterator<Item = (&'static str, &FileBytes)> {
        let files = [
            ("generation_config.json", &self.generation_file),
            ("tokenizer.json", &self.tokenizer.tokenizer),
            ("tokenizer_config.json", &self.tokenizer.config),
            (self.sentencepiece_name(), &self.tokenizer.sentencepiece),
            ("special_tokens_map.json", &self.tokenizer.special_tokens),
            ("added_tokens.json", &self.tokenizer.added_tokens),
            ("chat_template.jinja", &self.tokenizer.chat_template),
        ];
        files.into_iter().filter_map(|(name, file)| Some((name, file.as_ref()?)))
    }

    /// What the sentencepiece file is called in a model's directory.
    fn sentencepiece_name(&self) -> &'static str {
        let name = self.tokenizer.sentencepiece.as_ref().map_or("", FileBytes::name);
        SENTENCEPIECE.iter().find(|file| name.ends_with(**file)).unwrap_or(&SENTENCEPIECE[0])
    }

    /// Bytes of the shards that are not here: all but the headers, if only those were fetched.
    pub fn missing_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.len().saturating_sub(shard.bytes().len() as u64)).sum()
    }

    /// Whether the checkpoint came with a tokenizer.
    pub fn has_tokenizer(&self) -> bool {
        self.tokenizer.main().is_some()
    }

    /// Why the tokenizer that the checkpoint came with cannot be had, where it is one of a kind that is not read.
    pub fn other_tokenizer(&self) -> Option<CheckpointError> {
        self.tokenizer.other.as_ref().and_then(|_| self.tokenizer.required(&self.name).err())
    }

    /// Builds the tokenizer; where the configuration states a vocabulary, the tokenizer must fit into it.
    ///
    /// # Errors
    /// If there is none, or it is damaged or of another model.
    pub fn tokenizer(&self) -> Result<Tokenizer, CheckpointError> {
        let tokenizer = Tokenizer::from_files(&self.name, &self.tokenizer)?;
        if let Some(embedded) = self.config.opt_usize("vocab_size")? {
            tokenizer.check_vocab(embedded)?;
        }
        Ok(tokenizer)
    }
}
