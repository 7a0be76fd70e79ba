//! A sentencepiece model as the `tokenizers` crate asks for one.

use super::bpe;
use super::model_file::{Kind, Method};
use super::prefixes::Prefixes;
use super::unigram::Unigram;
use super::vocabulary::Vocabulary;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::BpeTrainer;
use tokenizers::{Model, Result, Token};

/// Pieces and how a text is cut into them.
#[derive(Debug)]
pub(crate) struct SentencePiece {
    vocabulary: Vocabulary,
    cutting: Cutting,
}

#[derive(Debug)]
enum Cutting {
    /// Merging, but for the user's symbols.
    Bpe {
        defined: Prefixes,
    },
    Unigram(Unigram),
}

impl SentencePiece {
    pub(super) fn new(vocabulary: Vocabulary, method: Method) -> SentencePiece {
        let cutting = match method {
            Method::Bpe => Cutting::Bpe { defined: vocabulary.prefixes(&[Kind::UserDefined]) },
            Method::Unigram => Cutting::Unigram(Unigram::new(&vocabulary)),
        };
        SentencePiece { vocabulary, cutting }
    }

    /// Whether a character without a piece is spelled in bytes, instead of being unknown.
    pub(crate) fn spells_in_bytes(&self) -> bool {
        self.vocabulary.bytes().is_some()
    }
}

impl Model for SentencePiece {
    type Trainer = TrainerWrapper;

    fn tokenize(&self, text: &str) -> Result<Vec<Token>> {
        let vocabulary = &self.vocabulary;
        let ranges = match &self.cutting {
            Cutting::Bpe { defined } => bpe::cut(text, vocabulary, defined),
            Cutting::Unigram(unigram) => unigram.cut(text, vocabulary),
        };
        let mut tokens: Vec<Token> = Vec::with_capacity(ranges.len());
        for range in ranges {
            let (piece, offsets) = (&text[range.clone()], (range.start, range.end));
            let id = vocabulary.id(piece).filter(|&id| id != vocabulary.unknown());
            match (id, vocabulary.bytes()) {
                (Some(id), _) => tokens.push(Token::new(id, piece.to_string(), offsets)),
                (None, Some(bytes)) => tokens.extend(
                    piece
                        .bytes()
                        .map(|byte| Token::new(bytes[usize::from(byte)], format!("<0x{byte:02X}>"), offsets)),
                ),
                // What is unknown in a row is one token.
                (None, None) => match tokens.last_mut().filter(|last| last.id == vocabulary.unknown()) {
                    Some(last) => {
                        last.value.push_str(piece);
                        last.offsets.1 = range.end;
                    }
                    None => tokens.push(Token::new(vocabulary.unknown(), piece.to_string(), offsets)),
                },
            }
        }
        Ok(tokens)
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.vocabulary.id(token)
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.vocabulary.text(id).map(str::to_string)
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        self.vocabulary.iter().map(|(text, id)| (text.to_string(), id)).collect()
    }

    /// One more than the largest id: what is added later comes behind it.
    fn get_vocab_size(&self) -> usize {
        self.vocabulary.len()
    }

    fn save(&self, _folder: &Path, _prefix: Option<&str>) -> Result<Vec<PathBuf>> {
        Err("a sentencepiece model is copied, not written".into())
    }

    /// Of no use, since nothing is trained here; the trait wants one.
    fn get_trainer(&self) -> TrainerWrapper {
        TrainerWrapper::BpeTrainer(BpeTrainer::default())
    }
}
