//! sentencepiece's `tokenizer.model` (or `spiece.model`), read by our own hands and run as the library runs it.
//!
//! Parts of the `tokenizers` crate come near, but do other things with texts that come near, too: its BPE orders merges by id
//! where sentencepiece asks for scores and the leftmost pair, its Unigram takes control symbols and byte pieces for text,
//! its charsmap replaces whole clusters of characters. A model was trained with what sentencepiece did, so these parts are
//! ours: [`normalizer`], [`bpe`] and [`unigram`], [`decoder`]. Around them are the crate's added tokens, frames and offsets,
//! with what transformers adds: special tokens within a text are found, `legacy` says whether a space comes after them.

mod bpe;
mod charsmap;
mod decoder;
mod model;
mod model_file;
mod normalizer;
mod prefixes;
mod protobuf;
mod settings;
mod unigram;
mod vocabulary;
mod xlm_roberta;

pub(crate) use decoder::SentencePieceDecoder;
pub(crate) use model::SentencePiece;
pub(crate) use normalizer::SentencePieceNormalizer;
pub(crate) use settings::Settings;

use crate::error::shown;
use crate::pipeline::{Pipeline, PipelineDecoder, PipelineModel, PipelineNormalizer};
use charsmap::Charsmap;
use model_file::{Kind, ModelFile};
use normalizer::Prefix;
use serde_json::{Value, json};
use std::collections::HashSet;
use tokenizers::{AddedToken, PostProcessorWrapper};
use vocabulary::Vocabulary;

/// A file made ready.
#[derive(Debug)]
pub(crate) struct Built {
    pub pipeline: Pipeline,
    /// The token that begins a text, if the model was trained with one or its files name one.
    pub bos: Option<String>,
    /// The token that ends a text.
    pub eos: Option<String>,
}

/// A tokenizer from the bytes of a file and what is beside it. The error says what is wrong, in words that go after the file's
/// name.
pub(crate) fn build(bytes: &[u8], settings: &Settings<'_>) -> Result<Built, String> {
    let unusable =
        |problem: String| format!("not a usable sentencepiece model: {problem}; download it again");
    if let Some(other) = other_format(bytes) {
        return Err(other.to_string());
    }
    let mut file = ModelFile::parse(bytes).map_err(unusable)?;
    if settings.xlm_roberta {
        file.pieces = xlm_roberta::pieces(&file.pieces)?;
    }
    let file = file;
    let charsmap = Charsmap::parse(file.charsmap).map_err(unusable)?;
    let mut vocabulary = Vocabulary::new(&file).map_err(unusable)?;
    let added = added_tokens(&file, &mut vocabulary, settings)?;
    let known = |text: &str| vocabulary.id(text).is_some();
    let bos = settings.token("bos_token").or_else(|| file.bos.filter(|text| known(text)).map(str::to_string));
    let eos = settings.token("eos_token").or_else(|| file.eos.filter(|text| known(text)).map(str::to_string));

    let prefix = settings.prefix(file.add_dummy_prefix);
    let normalizer = SentencePieceNormalizer {
        charsmap,
        defined: vocabulary.prefixes(&[Kind::UserDefined]),
        prefix,
        space_behind: file.space_behind,
        remove_extra_whitespaces: file.remove_extra_whitespaces,
        escape_whitespaces: file.escape_whitespaces,
    };
    let decoder = SentencePieceDecoder {
        bytes: file.byte_fallback,
        prefix: prefix != Prefix::Never,
        remove_extra_whitespaces: file.remove_extra_whitespaces,
    };
    let frame = frame(settings, bos.as_deref(), eos.as_deref(), &vocabulary)?;
    let model = SentencePiece::new(vocabulary, file.method);
    let mut pipeline = Pipeline::new(PipelineModel::SentencePiece(Box::new(model)));
    pipeline.with_normalizer(Some(PipelineNormalizer::SentencePiece(normalizer)));
    pipeline.with_decoder(Some(PipelineDecoder::SentencePiece(decoder)));
    pipeline.with_post_processor(Some(frame));
    pipeline.add_tokens(&added);
    Ok(Built { pipeline, bos, eos })
}

/// What a file is that is no sentencepiece model, where that is plain to see.
fn other_format(bytes: &[u8]) -> Option<&'static str> {
    if bytes.starts_with(b"version https://git-lfs") {
        return Some("a pointer of Git LFS instead of the file; fetch it with git lfs pull");
    }
    // A token in base64, and its number.
    let line = bytes.split(|&byte| byte == b'\n').next()?;
    let (token, number) = std::str::from_utf8(line).ok()?.split_once(' ')?;
    let base64 = |c: char| c.is_ascii_alphanumeric() || "+/=".contains(c);
    let tiktoken = !token.is_empty() && token.chars().all(base64) && number.parse::<u32>().is_ok();
    tiktoken.then_some(
        "a tiktoken vocabulary, which is not read; take the tokenizer.json of the model, or convert it in Python with AutoTokenizer.from_pretrained(MODEL).save_pretrained(DIR)",
    )
}

/// The tokens that are looked for in a text before all else, each with its id in the vocabulary: what the files list, control
/// symbols, and whatever is called special and is there.
fn added_tokens(
    file: &ModelFile<'_>,
    vocabulary: &mut Vocabulary,
    settings: &Settings<'_>,
) -> Result<Vec<AddedToken>, String> {
    let mut tokens: Vec<AddedToken> = Vec::new();
    for (id, token) in settings.added_tokens() {
        vocabulary.assign(id, &token.content).map_err(|problem| {
            let content = shown(&token.content);
            format!("the files beside it give token {content} the id {id}, but {problem}: they are of different models")
        })?;
        // sentencepiece normalizes a whole text, so that what is written there is what is looked for.
        tokens.push(token.normalized(false));
    }
    // The last comes first. More than a vocabulary may have are refused with the first that is assigned.
    let sentinels = settings.sentinels();
    let end = u32::try_from(sentinels).ok().and_then(|count| count.checked_add(file.pieces.len() as u32));
    let end = end.ok_or_else(|| format!("{sentinels} extra_ids are too many"))?;
    for (number, id) in (file.pieces.len() as u32..end).rev().enumerate() {
        let text = format!("<extra_id_{number}>");
        if vocabulary.id(&text).is_none() {
            vocabulary
                .assign(id, &text)
                .map_err(|problem| format!("{sentinels} extra_ids are too many: {problem}"))?;
        }
        tokens.push(special(text));
    }
    let reserved = file.pieces.iter().filter(|piece| matches!(piece.kind, Kind::Control | Kind::Unknown));
    tokens.extend(reserved.map(|piece| {
        // A mask takes the place of a word with the space before it.
        special(piece.text.to_string()).lstrip(settings.xlm_roberta && piece.text == xlm_roberta::MASK)
    }));
    tokens.extend(settings.special_texts().into_iter().map(special));
    // The first that was said of a token counts.
    let mut seen = HashSet::new();
    tokens.retain(|token| vocabulary.id(&token.content).is_some() && seen.insert(token.content.clone()));
    Ok(tokens)
}

fn special(text: String) -> AddedToken {
    AddedToken::from(text, true).normalized(false)
}

/// What is put around a text, or around two.
fn frame(
    settings: &Settings<'_>,
    bos: Option<&str>,
    eos: Option<&str>,
    vocabulary: &Vocabulary,
) -> Result<PostProcessorWrapper, String> {
    let (begins, ends) = settings.frame();
    let known = |wanted: bool, token: Option<&str>| {
        token.filter(|_| wanted).and_then(|text| Some((text.to_string(), vocabulary.id(text)?)))
    };
    let (bos, eos) = (known(begins, bos), known(ends, eos));
    let token = |token: &Option<(String, u32)>, kind: u32| {
        token.as_ref().map(|(text, _)| json!({"SpecialToken": {"id": text, "type_id": kind}}))
    };
    let part = |before: &Option<(String, u32)>, sequence: &str, kind: u32| -> Vec<Value> {
        let text = json!({"Sequence": {"id": sequence, "type_id": kind}});
        token(before, kind).into_iter().chain([text]).chain(token(&eos, kind)).collect()
    };
    let special: serde_json::Map<String, Value> = [&bos, &eos]
        .into_iter()
        .flatten()
        .map(|(text, id)| (text.clone(), json!({"id": text, "ids": [id], "tokens": [text]})))
        .collect();
    let single = part(&bos, "A", 0);
    // XLM-R knows no segments, and the second text of a pair begins with what ends the first.
    let second = if settings.xlm_roberta { part(&eos, "B", 0) } else { part(&bos, "B", 1) };
    let pair = [single.clone(), second].concat();
    let template = json!({
        "type": "TemplateProcessing",
        "single": single,
        "pair": pair,
        "special_tokens": special,
    });
    serde_json::from_value(template)
        .map_err(|error| format!("no frame around a text: {}", shown(&error.to_string())))
}
