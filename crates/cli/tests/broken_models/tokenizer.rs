//! Tokenizers and chat templates.

use crate::case::{Case, become_directory, case};
use crate::command::Copy;
use serde_json::json;

/// Of `models/stories`, asked for text.
pub const SPEAKING: &[Case] = &[
    case("a tokenizer that is no JSON", |m| m.write("tokenizer.json", b"{"), &["tokenizer.json"]),
    case("a tokenizer that is empty", |m| m.write("tokenizer.json", b""), &["tokenizer.json"]),
    case("a tokenizer of no kind", |m| m.write("tokenizer.json", b"{}"), &["tokenizer.json"]),
    case(
        "a tokenizer of another model",
        |m| {
            m.edit("tokenizer.json", |t| {
                t["added_tokens"].as_array_mut().unwrap().push(json!({
                    "id": 5000, "content": "<far>", "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": true
                }));
            })
        },
        &["tokenizer", "1024"],
    ),
    case(
        "a tokenizer that Git LFS left out",
        |m| m.write("tokenizer.json", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"),
        &["tokenizer.json", "git lfs pull"],
    ),
    case("no tokenizer", |m| m.remove("tokenizer.json"), &["tokenizer.json"]),
    case(
        "tokenizer_config is no JSON",
        |m| m.write("tokenizer_config.json", b"{"),
        &["tokenizer_config.json"],
    ),
    case(
        "tokenizer_config is a list",
        |m| m.write("tokenizer_config.json", b"[]"),
        &["tokenizer_config.json"],
    ),
    case(
        "a directory for the tokenizer",
        |m| become_directory(m, "tokenizer.json"),
        &["tokenizer.json", "directory"],
    ),
];

/// The same with a sentencepiece tokenizer in place of its own.
pub const SENTENCEPIECE: &[Case] = &[
    case(
        "a sentencepiece tokenizer that is empty",
        |m| sentencepiece(m, |_| Vec::new()),
        &["tokenizer.model", "no pieces"],
    ),
    case(
        "one that is cut off",
        |m| sentencepiece(m, |all| all[..1000].to_vec()),
        &["tokenizer.model", "more bytes"],
    ),
    case(
        "one that is text",
        |m| sentencepiece(m, |_| b"not found\n".to_vec()),
        &["tokenizer.model", "wire type"],
    ),
    case(
        "one of tiktoken",
        |m| sentencepiece(m, |_| b"IQ== 0\nIg== 1\n".to_vec()),
        &["tokenizer.model", "tiktoken", "tokenizer.json"],
    ),
    case(
        "one for which the model has no embedding",
        |m| {
            sentencepiece(m, <[u8]>::to_vec);
            let token = json!({"2000": {"content": "<far>", "special": true}});
            m.edit("tokenizer_config.json", |c| c["added_tokens_decoder"] = token);
        },
        &["tokenizer", "2000", "1024"],
    ),
    case(
        "a directory for it",
        |m| {
            sentencepiece(m, <[u8]>::to_vec);
            become_directory(m, "tokenizer.model");
        },
        &["tokenizer.model", "directory"],
    ),
];

fn sentencepiece(model: &Copy, change: impl Fn(&[u8]) -> Vec<u8>) {
    let file = crate::command::repository("tests/fixtures/sentencepiece/llama/tokenizer.model");
    model.remove("tokenizer.json");
    model.write("tokenizer.model", change(&std::fs::read(file).unwrap()));
}

/// Chat templates of `models/stories`.
pub const TEMPLATES: &[Case] = &[
    case("a template that does not parse", |m| template(m, "{% for %}"), &["chat template"]),
    case("a template that calls nothing", |m| template(m, "{{ nothing() }}"), &["chat template"]),
    case(
        "a template without end",
        |m| template(m, "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}"),
        &["chat template"],
    ),
    case(
        "a template that calls itself",
        |m| template(m, "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
        &["chat template"],
    ),
    case(
        "a template that refuses",
        |m| template(m, "{{ raise_exception('only\\nnouns') }}"),
        &["chat template", "only"],
    ),
    case(
        "a template that is a number",
        |m| m.edit("tokenizer_config.json", |c| c["chat_template"] = json!(7)),
        &["tokenizer_config.json"],
    ),
    case("a template of nothing", |m| template(m, ""), &["empty"]),
];

fn template(model: &Copy, text: &str) {
    model.edit("tokenizer_config.json", |config| config["chat_template"] = json!(text));
}
