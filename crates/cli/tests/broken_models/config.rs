//! Configurations that are broken, or not for this program.

use crate::case::{Case, case};
use serde_json::{Value, json};

/// `config.json` of `tests/fixtures/models/llama_mha`.
pub const CONFIG: &[Case] = &[
    case("no config.json", |m| m.remove("config.json"), &["config.json"]),
    case("config is empty", |m| m.write("config.json", b""), &["config.json"]),
    case("config is no JSON", |m| m.write("config.json", b"<html>Access denied</html>"), &["config.json"]),
    case("config is a list", |m| m.write("config.json", b"[1]"), &["config.json", "object"]),
    case(
        "config is nested without end",
        |m| m.write("config.json", "{\"a\":".repeat(100_000)),
        &["config.json"],
    ),
    case("config is not UTF-8", |m| m.write("config.json", b"{\"model_type\": \"\xff\"}"), &["config.json"]),
    case(
        "config names a model type alone",
        |m| m.configure("architectures", json!(null)),
        &["config.json names no architecture", "\"architectures\"", "LlamaForCausalLM"],
    ),
    case("config says nothing", |m| m.write("config.json", b"{}"), &["config.json", "architectures"]),
    case(
        "an unknown architecture",
        |m| m.configure("architectures", json!(["FalconForCausalLM"])),
        &["FalconForCausalLM", "LlamaForCausalLM"],
    ),
    case(
        "an architecture to confuse",
        |m| m.configure("architectures", json!(["\u{1b}[31mX\nerror: y"])),
        &["not supported"],
    ),
    case(
        "a number for the architecture",
        |m| m.configure("architectures", json!(7)),
        &["config.json", "architectures", "7"],
    ),
    case(
        "hidden_size 1e12",
        |m| m.configure("hidden_size", json!(1_000_000_000_000u64)),
        &["config.json", "hidden_size", "1000000000000"],
    ),
    case("hidden_size 1e300", |m| m.configure("hidden_size", json!(1e300)), &["config.json", "hidden_size"]),
    case("hidden_size 0", |m| m.configure("hidden_size", json!(0)), &["config.json", "hidden_size is 0"]),
    case(
        "hidden_size -64",
        |m| m.configure("hidden_size", json!(-64)),
        &["config.json", "hidden_size is -64"],
    ),
    case(
        "hidden_size is a text",
        |m| m.configure("hidden_size", json!("64")),
        &["config.json", "hidden_size is \"64\""],
    ),
    case(
        "hidden_size is absent",
        |m| m.configure("hidden_size", Value::Null),
        &["config.json", "hidden_size is missing"],
    ),
    case(
        "hidden_size of another model",
        |m| m.configure("hidden_size", json!(128)),
        &["[320, 64]", "model.safetensors"],
    ),
    case(
        "a million layers",
        |m| m.configure("num_hidden_layers", json!(1_000_000)),
        &["config.json", "num_hidden_layers"],
    ),
    case(
        "10000 layers",
        |m| m.configure("num_hidden_layers", json!(10_000)),
        &["model.layers.3", "model.safetensors"],
    ),
    case("no layers", |m| m.configure("num_hidden_layers", json!(0)), &["config.json", "num_hidden_layers"]),
    case("3 heads of 4", |m| m.configure("num_key_value_heads", json!(3)), &["num_key_value_heads", "3"]),
    case(
        "no heads",
        |m| m.configure("num_attention_heads", json!(0)),
        &["config.json", "num_attention_heads"],
    ),
    case("an odd head_dim", |m| m.configure("head_dim", json!(15)), &["[60, 64]"]),
    case("another vocabulary", |m| m.configure("vocab_size", json!(321)), &["[320, 64]", "[321, 64]"]),
    case(
        "no positions",
        |m| m.configure("max_position_embeddings", json!(0)),
        &["config.json", "max_position_embeddings"],
    ),
    case(
        "an epsilon below 0",
        |m| m.configure("rms_norm_eps", json!(-1)),
        &["config.json", "rms_norm_eps", "-1"],
    ),
    case(
        "an epsilon that is a text",
        |m| m.configure("rms_norm_eps", json!("small")),
        &["config.json", "rms_norm_eps"],
    ),
    case(
        "a rope base of 0",
        |m| m.configure("rope_parameters", json!({"rope_type": "default", "rope_theta": 0})),
        &["config.json", "rope_theta"],
    ),
    case(
        "a rope of no kind",
        |m| m.configure("rope_parameters", json!({"rope_type": "spiral", "rope_theta": 1e4})),
        &["spiral"],
    ),
    case("an unknown activation", |m| m.configure("hidden_act", json!("xielu")), &["xielu"]),
    // Other people's quantizations.
    case(
        "GPTQ",
        |m| m.configure("quantization_config", json!({"quant_method": "gptq", "bits": 4})),
        &["gptq"],
    ),
    case("AWQ", |m| m.configure("quantization_config", json!({"quant_method": "awq", "bits": 4})), &["awq"]),
    case(
        "8 bits",
        |m| m.configure("quantization_config", json!({"quant_method": "bitsandbytes", "load_in_8bit": true})),
        &["8"],
    ),
    case(
        "a quantization of no kind",
        |m| m.configure("quantization_config", json!([1])),
        &["config.json", "quantization_config"],
    ),
];

/// `generation_config.json` beside it.
pub const GENERATION: &[Case] = &[
    case(
        "generation_config is no JSON",
        |m| m.write("generation_config.json", b"{"),
        &["generation_config.json"],
    ),
    case(
        "a temperature that is a text",
        |m| m.write("generation_config.json", br#"{"temperature": "hot"}"#),
        &["generation_config.json", "temperature"],
    ),
    case(
        "a temperature below 0",
        |m| m.write("generation_config.json", br#"{"temperature": -1}"#),
        &["generation_config.json", "temperature"],
    ),
    case(
        "top_p 7",
        |m| m.write("generation_config.json", br#"{"top_p": 7}"#),
        &["generation_config.json", "top_p"],
    ),
    case(
        "a stop token that is a text",
        |m| m.write("generation_config.json", br#"{"eos_token_id": "</s>"}"#),
        &["generation_config.json", "eos_token_id"],
    ),
];
