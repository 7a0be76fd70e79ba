//! The fewest tokens that a text can have, without cutting it: cutting takes fifty times a text's memory.
//!
//! A token stands for no more bytes than its own text has, but for what a normalizer makes shorter and what is left out.
//! Where these are not known, nothing is certain, and nothing is said.

use crate::pipeline::{Pipeline, PipelineModel, PipelineNormalizer};
use serde_json::Value;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{ModelWrapper, NormalizedString, Normalizer};

/// How much shorter a text becomes in one of Unicode's normal forms, at most: a character of four bytes decomposes into one
/// byte at least, and composing again makes a third of that at least (UAX #15, 9.1).
const NORMAL_FORMS: usize = 4 * 3;
/// How much shorter lower case is, at most: a character of four bytes has one byte at least.
const LOWER_CASE: usize = 4;

/// How sentencepiece writes a space, which is one to it in a text, too.
const SPACE: char = '▁';

/// How much of a text one token may stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reach {
    /// The most bytes.
    bytes: usize,
    /// White space may be left out, or taken by a neighbour: it does not count.
    without_spaces: bool,
}

/// The fewest tokens that `text` can have; 0 where nothing is certain.
pub(crate) fn fewest_tokens(pipeline: &Pipeline, text: &str) -> usize {
    let Some(reach) = reach(pipeline) else { return 0 };
    let bytes = match reach.without_spaces {
        true => text.chars().filter(|&c| !c.is_whitespace() && c != SPACE).map(char::len_utf8).sum(),
        false => text.len(),
    };
    bytes.div_ceil(reach.bytes.max(1))
}

fn reach(pipeline: &Pipeline) -> Option<Reach> {
    let mut reach = Reach { bytes: longest(pipeline)?, without_spaces: false };
    match pipeline.get_normalizer() {
        None => {}
        Some(PipelineNormalizer::Json(normalizer)) => {
            reach.normalized(&serde_json::to_value(normalizer).ok()?)?;
        }
        Some(PipelineNormalizer::SentencePiece(normalizer)) => {
            reach.without_spaces |= normalizer.removes_spaces()?;
        }
    }
    let mut in_bytes = false;
    if let Some(cut) = pipeline.get_pre_tokenizer() {
        reach.cut(&serde_json::to_value(cut).ok()?, &mut in_bytes)?;
    }
    if !names_everything(pipeline, in_bytes) {
        return None;
    }
    let added = pipeline.get_added_tokens_decoder();
    reach.without_spaces |= added.values().any(|token| token.lstrip || token.rstrip);
    Some(reach)
}

/// Bytes of the longest token's text.
fn longest(pipeline: &Pipeline) -> Option<usize> {
    let mut longest = pipeline.get_vocab(true).keys().map(String::len).max()?;
    for token in pipeline.get_added_tokens_decoder().into_values().filter(|token| token.normalized) {
        // It is looked for as it is when normalized, which may be longer.
        let mut text = NormalizedString::from(token.content);
        if let Some(normalizer) = pipeline.get_normalizer() {
            normalizer.normalize(&mut text).ok()?;
        }
        longest = longest.max(text.get().len());
    }
    Some(longest)
}

impl Reach {
    /// What a normalizer of a `tokenizer.json` changes; `None` where it may leave out more than spaces.
    fn normalized(&mut self, normalizer: &Value) -> Option<()> {
        let shorter = match kind(normalizer)? {
            "Sequence" => {
                let parts = normalizer.get("normalizers")?.as_array()?;
                return parts.iter().try_for_each(|part| self.normalized(part));
            }
            "NFC" | "NFD" | "NFKC" | "NFKD" => NORMAL_FORMS,
            "Lowercase" => LOWER_CASE,
            "Prepend" => 1,
            "Strip" => {
                self.without_spaces = true;
                1
            }
            "Replace" => {
                let from = normalizer.get("pattern")?.get("String")?.as_str()?;
                let to = normalizer.get("content")?.as_str()?;
                if to.is_empty() || to.contains(char::is_whitespace) {
                    return None;
                }
                from.len().div_ceil(to.len()).max(1)
            }
            _ => return None,
        };
        self.bytes = self.bytes.checked_mul(shorter)?;
        Some(())
    }

    /// What a pre-tokenizer changes, and whether it writes a text in the letters that stand for bytes; `None` where it
    /// leaves out more than spaces.
    fn cut(&mut self, cut: &Value, in_bytes: &mut bool) -> Option<()> {
        match kind(cut)? {
            "Sequence" => {
                let parts = cut.get("pretokenizers")?.as_array()?;
                return parts.iter().try_for_each(|part| self.cut(part, in_bytes));
            }
            "ByteLevel" => *in_bytes = true,
            "Metaspace" | "Digits" | "UnicodeScripts" => {}
            "Split" | "Punctuation" if cut.get("behavior")? != "Removed" => {}
            "Whitespace" | "WhitespaceSplit" | "BertPreTokenizer" => self.without_spaces = true,
            _ => return None,
        }
        Some(())
    }
}

fn kind(part: &Value) -> Option<&str> {
    part.get("type")?.as_str()
}

/// Whether every character has tokens of its own, so that none is left out and none are taken together as unknown.
fn names_everything(pipeline: &Pipeline, in_bytes: bool) -> bool {
    let has = |token: &str| pipeline.token_to_id(token).is_some();
    let has_bytes = || (0..=u8::MAX).all(|byte| has(&format!("<0x{byte:02X}>")));
    match pipeline.get_model() {
        PipelineModel::SentencePiece(model) => model.spells_in_bytes(),
        PipelineModel::Json(model) => match &**model {
            ModelWrapper::BPE(bpe) => {
                let as_they_are = bpe.continuing_subword_prefix.is_none() && bpe.end_of_word_suffix.is_none();
                let has_letters = || ByteLevel::alphabet().iter().all(|letter| has(&letter.to_string()));
                as_they_are && (bpe.byte_fallback && has_bytes() || in_bytes && has_letters())
            }
            ModelWrapper::Unigram(unigram) => unigram.byte_fallback() && has_bytes(),
            _ => false,
        },
    }
}
