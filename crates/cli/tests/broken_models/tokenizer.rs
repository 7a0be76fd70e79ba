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
