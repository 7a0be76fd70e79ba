//! The `tokenizers` crate's pipeline, with its own parts or with sentencepiece's.

use crate::sentencepiece::{SentencePiece, SentencePieceDecoder, SentencePieceNormalizer};
use serde::{Deserialize, Deserializer};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tokenizers::{
    Decoder, DecoderWrapper, Model, ModelWrapper, NormalizedString, Normalizer, NormalizerWrapper,
    PostProcessorWrapper, PreTokenizerWrapper, Result, Token, TokenizerImpl,
};

/// A tokenizer of either kind. Read from a `tokenizer.json`, all its parts are the crate's.
pub(crate) type Pipeline = TokenizerImpl<
    PipelineModel,
    PipelineNormalizer,
    PreTokenizerWrapper,
    PostProcessorWrapper,
    PipelineDecoder,
>;

/// What cuts a text into tokens.
#[derive(Debug)]
pub(crate) enum PipelineModel {
    /// Of a `tokenizer.json`.
    Json(Box<ModelWrapper>),
    /// Of a sentencepiece file.
    SentencePiece(Box<SentencePiece>),
}

/// What is done to a text before.
#[derive(Debug)]
pub(crate) enum PipelineNormalizer {
    /// As a `tokenizer.json` says.
    Json(NormalizerWrapper),
    /// As a sentencepiece file says.
    SentencePiece(SentencePieceNormalizer),
}

/// What makes a text of tokens.
#[derive(Debug)]
pub(crate) enum PipelineDecoder {
    /// As a `tokenizer.json` says.
    Json(DecoderWrapper),
    /// As a sentencepiece file says.
    SentencePiece(SentencePieceDecoder),
}

impl<'de> Deserialize<'de> for PipelineModel {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        ModelWrapper::deserialize(deserializer).map(|model| Self::Json(Box::new(model)))
    }
}

impl<'de> Deserialize<'de> for PipelineNormalizer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        NormalizerWrapper::deserialize(deserializer).map(Self::Json)
    }
}

impl<'de> Deserialize<'de> for PipelineDecoder {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        DecoderWrapper::deserialize(deserializer).map(Self::Json)
    }
}

impl Model for PipelineModel {
    type Trainer = <ModelWrapper as Model>::Trainer;

    fn tokenize(&self, text: &str) -> Result<Vec<Token>> {
        match self {
            Self::Json(model) => model.tokenize(text),
            Self::SentencePiece(model) => model.tokenize(text),
        }
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        match self {
            Self::Json(model) => model.token_to_id(token),
            Self::SentencePiece(model) => model.token_to_id(token),
        }
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        match self {
            Self::Json(model) => model.id_to_token(id),
            Self::SentencePiece(model) => model.id_to_token(id),
        }
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        match self {
            Self::Json(model) => model.get_vocab(),
            Self::SentencePiece(model) => model.get_vocab(),
        }
    }

    fn get_vocab_size(&self) -> usize {
        match self {
            Self::Json(model) => model.get_vocab_size(),
            Self::SentencePiece(model) => model.get_vocab_size(),
        }
    }

    fn save(&self, folder: &Path, prefix: Option<&str>) -> Result<Vec<PathBuf>> {
        match self {
            Self::Json(model) => model.save(folder, prefix),
            Self::SentencePiece(model) => model.save(folder, prefix),
        }
    }

    fn get_trainer(&self) -> Self::Trainer {
        match self {
            Self::Json(model) => model.get_trainer(),
            Self::SentencePiece(model) => model.get_trainer(),
        }
    }
}

impl Normalizer for PipelineNormalizer {
    fn normalize(&self, text: &mut NormalizedString) -> Result<()> {
        match self {
            Self::Json(normalizer) => normalizer.normalize(text),
            Self::SentencePiece(normalizer) => normalizer.normalize(text),
        }
    }
}

impl Decoder for PipelineDecoder {
    fn decode_chain(&self, tokens: Vec<String>) -> Result<Vec<String>> {
        match self {
            Self::Json(decoder) => decoder.decode_chain(tokens),
            Self::SentencePiece(decoder) => decoder.decode_chain(tokens),
        }
    }
}
