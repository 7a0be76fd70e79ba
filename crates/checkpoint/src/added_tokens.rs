//! Tokens that are added to a vocabulary, as transformers' files list them.

use serde_json::{Map, Value};
use tokenizers::AddedToken;

/// The tokens of an `added_tokens_decoder` with their ids, by these; what is no token is left out.
pub(crate) fn listed(added: &Map<String, Value>) -> Vec<(u32, AddedToken)> {
    let mut tokens: Vec<(u32, AddedToken)> = added
        .iter()
        .filter_map(|(id, token)| {
            let flag = |key: &str| token.get(key).and_then(Value::as_bool);
            let content = token.get("content")?.as_str().filter(|content| !content.is_empty())?;
            let special = flag("special").unwrap_or(false);
            let token = AddedToken::from(content, special)
                .single_word(flag("single_word").unwrap_or(false))
                .lstrip(flag("lstrip").unwrap_or(false))
                .rstrip(flag("rstrip").unwrap_or(false))
                .normalized(flag("normalized").unwrap_or(!special));
            Some((id.parse().ok()?, token))
        })
        .collect();
    tokens.sort_by_key(|(id, _)| *id);
    tokens
}

/// A special token's text: written as such, or as the `content` of an object.
pub(crate) fn token_text(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_string)
}
