//! The fewest tokens of a text are never more than it has, and for the tokenizers of causal models not far fewer.

use halfbyte_checkpoint::{FileBytes, Tokenizer, TokenizerFiles};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn repository(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(file)
}

fn stories() -> Value {
    serde_json::from_slice(&std::fs::read(repository("models/stories/tokenizer.json")).unwrap()).unwrap()
}

fn tokenizer(json: &Value) -> Tokenizer {
    Tokenizer::from_bytes("tokenizer.json", json.to_string().as_bytes()).unwrap()
}

fn sentencepiece(kind: &str) -> Tokenizer {
    let file = repository("tests/fixtures/sentencepiece").join(kind).join("tokenizer.model");
    Tokenizer::from_sentencepiece("tokenizer.model", &std::fs::read(file).unwrap()).unwrap()
}

/// The stories' tokenizer with other parts.
fn with(parts: Value) -> Tokenizer {
    let mut json = stories();
    for (key, part) in parts.as_object().unwrap() {
        json[key] = part.clone();
    }
    tokenizer(&json)
}

/// A byte-fallback BPE that has a token for no letter at all, and one for a run of sixteen spaces.
fn fallback(normalizer: Value, complete: bool) -> Value {
    let mut vocab: Vec<String> = vec!["<unk>".into()];
    vocab.extend((0..if complete { 256 } else { 255 }).map(|byte| format!("<0x{byte:02X}>")));
    let mut merges = Vec::new();
    vocab.push("▁".into());
    for length in [1, 2, 4, 8] {
        let half = "▁".repeat(length);
        vocab.push(half.repeat(2));
        merges.push(json!([half, half]));
    }
    let vocab: serde_json::Map<String, Value> =
        vocab.into_iter().enumerate().map(|(id, token)| (token, json!(id))).collect();
    json!({
        "version": "1.0", "added_tokens": [], "normalizer": normalizer, "pre_tokenizer": null,
        "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges, "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true},
    })
}

/// Texts that become as few tokens as can be, for one tokenizer or another.
fn texts() -> Vec<String> {
    let mut texts: Vec<String> = [
        "Once there was a fox. ",
        " ",
        "\n",
        "▁",
        "\u{3000}",
        "\u{a0}",
        "\u{ad}",
        "K",
        "ﷺ",
        "e\u{301}",
        "\u{1100}\u{1161}\u{11a8}",
        "Ω",
        "\u{390}",
        "🦊",
        "狐狸",
        "</s>",
        "<s>   ",
        "   </s>",
        "\u{a8}",
        "\u{37a}",
        "x\t\t\t\t",
        "İ",
    ]
    .iter()
    .map(|text| text.repeat(600))
    .collect();
    texts.push(format!("{}x{}", " ".repeat(9000), "▁".repeat(9000)));
    texts
}

/// The fewest tokens and the tokens of each text.
fn counts(tokenizer: &Tokenizer) -> Vec<(usize, usize)> {
    let count = |text: &String| (tokenizer.fewest_tokens(text), tokenizer.encode(text, false).unwrap().len());
    texts().iter().map(count).collect()
}

#[test]
fn they_are_never_more_than_the_tokens() {
    let replaced = json!({"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ]});
    let eats = json!([{"id": 1, "content": "<s>", "single_word": false, "lstrip": true, "rstrip": true, "normalized": false, "special": true}]);
    let mut tokenizers = vec![
        ("stories".to_owned(), tokenizer(&stories())),
        ("replaced".into(), tokenizer(&fallback(replaced, true))),
        ("a token that takes spaces".into(), with(json!({"added_tokens": eats}))),
    ];
    let normalizers = [
        json!({"type": "NFC"}),
        json!({"type": "NFD"}),
        json!({"type": "NFKC"}),
        json!({"type": "NFKD"}),
        json!({"type": "Lowercase"}),
        json!({"type": "Strip", "strip_left": true, "strip_right": true}),
        json!({"type": "Replace", "pattern": {"String": "Once there was a fox. "}, "content": "x"}),
        json!({"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}, {"type": "Strip", "strip_left": true, "strip_right": true}]}),
    ];
    for normalizer in normalizers {
        tokenizers.push((normalizer.to_string(), with(json!({"normalizer": normalizer}))));
        tokenizers.push((format!("fallback {normalizer}"), tokenizer(&fallback(normalizer, true))));
    }
    tokenizers
        .extend(["llama", "extended", "gemma", "suffix"].map(|kind| (kind.to_owned(), sentencepiece(kind))));
    for (name, tokenizer) in &tokenizers {
        let counts = counts(tokenizer);
        for ((fewest, tokens), text) in counts.iter().zip(texts()) {
            let start: String = text.chars().take(30).collect();
            assert!(fewest <= tokens, "{name}: {fewest} of {tokens} tokens of {start:?}…");
        }
        assert!(counts[0].0 > 0, "{name} says nothing");
    }
}

#[test]
fn they_say_enough_to_refuse_what_is_too_long() {
    // A hundredth of a text's tokens at least, so that 300 MB are too much for any context.
    for tokenizer in [tokenizer(&stories()), sentencepiece("llama"), sentencepiece("gemma")] {
        for (fewest, tokens) in counts(&tokenizer).into_iter().take(1) {
            assert!(fewest * 100 > tokens, "{fewest} of {tokens}");
        }
    }
}

#[test]
fn where_text_may_vanish_nothing_is_said() {
    let silent = |name: &str, tokenizer: &Tokenizer| {
        assert!(counts(tokenizer).iter().all(|(fewest, _)| *fewest == 0), "{name}");
    };
    // Unknown characters in a row are one token, or a charsmap removes.
    silent("a byte is missing", &tokenizer(&fallback(Value::Null, false)));
    for kind in ["plain", "t5"] {
        silent(kind, &sentencepiece(kind));
    }
    for normalizer in [
        json!({"type": "Replace", "pattern": {"String": "x"}, "content": ""}),
        json!({"type": "Replace", "pattern": {"Regex": "x+"}, "content": "x"}),
        json!({"type": "StripAccents"}),
        json!({"type": "Nmt"}),
    ] {
        silent(&normalizer.to_string(), &with(json!({"normalizer": normalizer})));
    }
    let split = |behavior: &str| {
        let cut =
            json!({"type": "Split", "pattern": {"String": "fox"}, "behavior": behavior, "invert": false});
        with(json!({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            cut, {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        ]}}))
    };
    silent("a split that removes", &split("Removed"));
    assert!(split("Isolated").fewest_tokens("the fox") > 0);
    // WordPiece: a long word is one unknown token.
    let sentiment = std::fs::read(repository("models/sentiment/tokenizer.json")).unwrap();
    let files = TokenizerFiles {
        tokenizer: Some(FileBytes::new("tokenizer.json", sentiment)),
        ..TokenizerFiles::default()
    };
    silent("sentiment", &Tokenizer::from_files("m", &files).unwrap());
}
