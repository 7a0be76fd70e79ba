//! What the files beside a sentencepiece model say about it: transformers' `tokenizer_config.json` and its older companions.

use super::normalizer::Prefix;
use crate::added_tokens::{listed, token_text};
use serde_json::{Map, Value};
use tokenizers::AddedToken;

/// Sentinels that T5's tokenizer adds where its configuration does not say how many.
const T5_SENTINELS: u64 = 100;

/// The files beside a model, as far as they are there.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Settings<'a> {
    /// `tokenizer_config.json`.
    pub config: Option<&'a Map<String, Value>>,
    /// `special_tokens_map.json`.
    pub special: Option<&'a Map<String, Value>>,
    /// `added_tokens.json`: ids by text, of models before `added_tokens_decoder`.
    pub added: Option<&'a Map<String, Value>>,
    /// The pieces have XLM-R's ids.
    pub xlm_roberta: bool,
}

impl Settings<'_> {
    /// The text of a special token, such as `bos_token`, where it has one.
    pub fn token(&self, key: &str) -> Option<String> {
        let values = self.values(key);
        values.filter_map(token_text).find(|text| !text.is_empty())
    }

    /// Where a space is put before a text; `model` says whether sentencepiece itself does.
    pub(super) fn prefix(&self, model: bool) -> Prefix {
        match (self.flag("add_prefix_space").unwrap_or(model), self.flag("legacy")) {
            (false, _) => Prefix::Never,
            (true, Some(false)) => Prefix::First,
            (true, _) => Prefix::Always,
        }
    }

    /// Whether the tokens that begin and end a text are put around it. Where nothing is said, the first alone, as Llama and
    /// Gemma do; of T5 the last alone, of XLM-R both.
    pub(super) fn frame(&self) -> (bool, bool) {
        let (begins, ends) = (!self.is_t5(), self.is_t5() || self.xlm_roberta);
        (self.flag("add_bos_token").unwrap_or(begins), self.flag("add_eos_token").unwrap_or(ends))
    }

    /// The tokens that are added to the pieces, with their ids.
    pub(super) fn added_tokens(&self) -> Vec<(u32, AddedToken)> {
        match self.config.and_then(|config| config.get("added_tokens_decoder")) {
            Some(Value::Object(added)) => listed(added),
            _ => {
                let special = self.special_texts();
                let tokens = self.added.into_iter().flatten();
                let ids = tokens.filter_map(|(text, id)| Some((u32::try_from(id.as_u64()?).ok()?, text)));
                ids.map(|(id, text)| (id, AddedToken::from(text, special.contains(text)))).collect()
            }
        }
    }

    /// How many sentinels `<extra_id_0>`, `<extra_id_1>`, … come behind the pieces, the last first.
    pub(super) fn sentinels(&self) -> u64 {
        let said = self.config.and_then(|config| config.get("extra_ids")).and_then(Value::as_u64);
        said.unwrap_or(if self.is_t5() { T5_SENTINELS } else { 0 })
    }

    /// The texts of all tokens that are called special.
    pub(super) fn special_texts(&self) -> Vec<String> {
        const NAMES: [&str; 7] =
            ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
        let more = ["additional_special_tokens", "extra_special_tokens"];
        let lists = more.into_iter().flat_map(|key| self.values(key).filter_map(Value::as_array).flatten());
        let named = NAMES.into_iter().filter_map(|key| self.token(key));
        named.chain(lists.filter_map(token_text)).collect()
    }

    fn is_t5(&self) -> bool {
        let class = self.config.and_then(|config| config.get("tokenizer_class")).and_then(Value::as_str);
        class.is_some_and(|class| class.starts_with("T5Tokenizer"))
    }

    fn flag(&self, key: &str) -> Option<bool> {
        self.config?.get(key)?.as_bool()
    }

    fn values<'k>(&'k self, key: &'k str) -> impl Iterator<Item = &'k Value> {
        [self.config, self.special].into_iter().flatten().filter_map(move |map| map.get(key))
    }
}
