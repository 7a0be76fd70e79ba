//! Shards and their index.

use crate::case::{Case, case};
use serde_json::json;

/// Of `tests/fixtures/models/llama_bf16_sharded`: four shards and an index.
pub const SHARDED: &[Case] = &[
    case(
        "a shard is missing",
        |m| m.remove("model-00003-of-00004.safetensors"),
        &["model-00003-of-00004.safetensors"],
    ),
    case(
        "a shard is another",
        |m| {
            let other = m.read("model-00001-of-00004.safetensors");
            m.write("model-00002-of-00004.safetensors", other);
        },
        &["model-0000"],
    ),
    case(
        "a shard is cut",
        |m| {
            let whole = m.read("model-00002-of-00004.safetensors");
            m.write("model-00002-of-00004.safetensors", &whole[..whole.len() / 2]);
        },
        &["model-00002-of-00004.safetensors"],
    ),
    case(
        "an index that is no JSON",
        |m| m.write("model.safetensors.index.json", b"{"),
        &["model.safetensors.index.json"],
    ),
    case(
        "an index without a map",
        |m| m.write("model.safetensors.index.json", b"{}"),
        &["model.safetensors.index.json", "weight_map"],
    ),
    case(
        "an empty map",
        |m| m.edit("model.safetensors.index.json", |i| i["weight_map"] = json!({})),
        &["model.safetensors.index.json"],
    ),
    case(
        "a map to numbers",
        |m| m.edit("model.safetensors.index.json", |i| i["weight_map"] = json!({"a": 1})),
        &["model.safetensors.index.json"],
    ),
    case(
        "a shard out of the directory",
        |m| {
            m.edit("model.safetensors.index.json", |i| {
                i["weight_map"]["model.norm.weight"] = json!("../../../../etc/passwd");
            })
        },
        &["model.safetensors.index.json", "etc/passwd"],
    ),
    case(
        "a shard by an absolute path",
        |m| {
            m.edit("model.safetensors.index.json", |i| {
                i["weight_map"]["model.norm.weight"] = json!("/etc/passwd");
            })
        },
        &["model.safetensors.index.json", "/etc/passwd"],
    ),
    case(
        "a tensor in the wrong shard",
        |m| {
            m.edit("model.safetensors.index.json", |i| {
                let map = i["weight_map"].as_object_mut().unwrap();
                let wrong = map["model.norm.weight"].as_str().unwrap().replace("00004-of", "00001-of");
                map["model.embed_tokens.weight"] = json!(wrong.replace("00001-of", "00002-of"));
            })
        },
        &["model.embed_tokens.weight"],
    ),
];
