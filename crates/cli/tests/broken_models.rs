//! Broken and hostile models: one line that names the file and what is wrong with it, exit code 1, no
//! panic, and nothing half-written.

mod command;

use command::{Copy, Outcome, halfbyte, text};
use serde_json::{Value, json};

/// A model with one thing wrong, and what the refusal must name.
struct Case {
    name: &'static str,
    break_it: fn(&Copy),
    parts: &'static [&'static str],
}

const fn case(name: &'static str, break_it: fn(&Copy), parts: &'static [&'static str]) -> Case {
    Case { name, break_it, parts }
}

/// `tests/fixtures/models/llama_mha`: one file, float32, no tokenizer.
const SINGLE: &[Case] = &[
    // The container.
    case("empty file", |m| m.write("model.safetensors", b""), &["model.safetensors", "0 bytes"]),
    case("7 bytes", |m| m.write("model.safetensors", b"1234567"), &["model.safetensors", "7 bytes"]),
    case("truncated header", |m| truncate(m, 100), &["model.safetensors", "100"]),
    case("truncated data", |m| truncate(m, 700_000), &["model.safetensors", "o_proj.weight", "696920"]),
    case(
        "header longer than the file",
        |m| header_length(m, 1 << 40),
        &["model.safetensors", "1099511627776"],
    ),
    case(
        "header length of all ones",
        |m| header_length(m, u64::MAX),
        &["model.safetensors", "18446744073709551615"],
    ),
    case("header of no length", |m| header_length(m, 0), &["model.safetensors"]),
    case("header is no JSON", |m| raw_header(m, b"{\"a\": "), &["model.safetensors"]),
    case("header is a list", |m| raw_header(m, b"[]      "), &["model.safetensors"]),
    case("header is not UTF-8", |m| raw_header(m, b"{\"\xff\xfe\": 1}"), &["model.safetensors"]),
    case(
        "header nested without end",
        |m| raw_header(m, "[".repeat(100_000).as_bytes()),
        &["model.safetensors"],
    ),
    case("no tensors", |m| raw_header(m, b"{}"), &["model.safetensors"]),
    case(
        "a picture",
        |m| m.write("model.safetensors", b"\x89PNG\r\n\x1a\n0000000000000000"),
        &["model.safetensors"],
    ),
    case(
        "trailing data",
        |m| {
            let (header, mut data) = m.safetensors();
            data.extend_from_slice(&[0; 64]);
            m.write_safetensors(&header, &data);
        },
        &["model.safetensors", "734017"],
    ),
    // Tensors.
    case(
        "overlapping tensors",
        |m| {
            m.edit_header(|h| {
                let offsets = &mut h["model.layers.1.input_layernorm.weight"]["data_offsets"];
                let [begin, end] = [0, 1].map(|at| offsets[at].as_u64().unwrap() - 128);
                *offsets = json!([begin, end]);
            })
        },
        &["model.safetensors", "overlap"],
    ),
    case(
        "offsets backwards",
        |m| {
            m.edit_header(|h| {
                h["model.norm.weight"]["data_offsets"] = json!([256, 0]);
            })
        },
        &["model.safetensors", "model.norm.weight"],
    ),
    case(
        "offsets beyond the file",
        |m| {
            m.edit_header(|h| {
                h["model.norm.weight"]["data_offsets"] = json!([1u64 << 50, (1u64 << 50) + 256]);
            })
        },
        &["model.safetensors", "model.norm.weight"],
    ),
    case(
        "negative offsets",
        |m| {
            m.edit_header(|h| {
                h["model.norm.weight"]["data_offsets"] = json!([-256, 0]);
            })
        },
        &["model.safetensors", "model.norm.weight"],
    ),
    case(
        "a shape that overflows",
        |m| {
            m.edit_header(|h| {
                h["model.norm.weight"]["shape"] = json!([1u64 << 33, 1u64 << 33]);
            })
        },
        &["model.safetensors", "model.norm.weight"],
    ),
    case(
        "a shape that is not its bytes",
        |m| {
            m.edit_header(|h| {
                h["model.norm.weight"]["shape"] = json!([63]);
            })
        },
        &["model.safetensors", "model.norm.weight"],
    ),
    case(
        "an unknown type",
        |m| {
            m.edit_header(|h| {
                h["model.norm.weight"]["dtype"] = json!("F31");
            })
        },
        &["model.safetensors", "model.norm.weight", "F31"],
    ),
    case(
        "integers for floats",
        |m| {
            m.edit_header(|h| {
                h["model.norm.weight"]["dtype"] = json!("I32");
            })
        },
        &["model.norm.weight", "I32"],
    ),
    case(
        "integers for a matrix",
        |m| {
            m.edit_header(|h| {
                h["model.layers.1.mlp.up_proj.weight"]["dtype"] = json!("I32");
            })
        },
        &["model.layers.1.mlp.up_proj.weight", "I32"],
    ),
    case(
        "a tensor is missing",
        |m| rename(m, "model.layers.2.mlp.up_proj.weight", "model.layers.2.mlp.upp.weight"),
        &["model.layers.2.mlp.up_proj.weight", "model.safetensors"],
    ),
    case(
        "a norm is missing",
        |m| rename(m, "model.norm.weight", "model.gnorm.weight"),
        &["model.norm.weight"],
    ),
    case(
        "the embedding is missing",
        |m| rename(m, "model.embed_tokens.weight", "x"),
        &["model.embed_tokens.weight"],
    ),
    case("the head is missing", |m| rename(m, "lm_head.weight", "x"), &["lm_head.weight"]),
    case(
        "a matrix is turned",
        |m| {
            m.edit_header(|h| {
                h["model.layers.0.mlp.down_proj.weight"]["shape"] = json!([160, 64]);
            })
        },
        &["model.layers.0.mlp.down_proj.weight", "[160, 64]", "[64, 160]", "model.safetensors"],
    ),
    case(
        "a matrix is a vector",
        |m| {
            m.edit_header(|h| {
                h["model.layers.0.mlp.down_proj.weight"]["shape"] = json!([10240]);
            })
        },
        &["model.layers.0.mlp.down_proj.weight", "[10240]", "model.safetensors"],
    ),
    case(
        "a name that writes to the terminal",
        |m| rename(m, "model.norm.weight", "\u{1b}[2J\nmodel.norm.weight"),
        &["model.norm.weight"],
    ),
    // Values.
    case(
        "NaN in a matrix",
        |m| m.poke("model.layers.1.self_attn.o_proj.weight", &f32::NAN.to_le_bytes()),
        &["model.layers.1.self_attn.o_proj.weight", "NaN"],
    ),
    case(
        "infinity in a matrix",
        |m| m.poke("model.layers.1.self_attn.o_proj.weight", &f32::INFINITY.to_le_bytes()),
        &["model.layers.1.self_attn.o_proj.weight", "infinity"],
    ),
    case(
        "NaN in a norm",
        |m| m.poke("model.norm.weight", &f32::NAN.to_le_bytes()),
        &["model.norm.weight", "NaN"],
    ),
    // The configuration.
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
    // generation_config.json
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
    // The directory.
    case(
        "an empty directory",
        |m| {
            for entry in std::fs::read_dir(m.path()).unwrap() {
                std::fs::remove_file(entry.unwrap().path()).unwrap();
            }
        },
        &["model.safetensors", "empty"],
    ),
    case("weights as a pickle", |m| become_file(m, "pytorch_model.bin"), &["pytorch_model.bin", "pickle"]),
    case("weights as GGUF", |m| become_file(m, "model-q4_0.gguf"), &["model-q4_0.gguf", "GGUF"]),
    case(
        "weights by another name",
        |m| {
            m.remove("expected.safetensors");
            become_file(m, "weights.safetensors");
        },
        &["weights.safetensors", "model.safetensors"],
    ),
    case(
        "a directory for the weights",
        |m| become_directory(m, "model.safetensors"),
        &["model.safetensors", "directory"],
    ),
    case("a directory for the config", |m| become_directory(m, "config.json"), &["config.json", "directory"]),
    #[cfg(unix)]
    case("weights that link to themselves", |m| become_loop(m, "model.safetensors"), &["model.safetensors"]),
    #[cfg(unix)]
    case("a config that links to itself", |m| become_loop(m, "config.json"), &["config.json"]),
    #[cfg(unix)]
    case(
        "weights that link to nothing",
        |m| {
            m.remove("model.safetensors");
            std::os::unix::fs::symlink("gone", m.file("model.safetensors")).unwrap();
        },
        &["model.safetensors"],
    ),
];

/// `tests/fixtures/models/llama_bf16_sharded`: four shards and an index.
const SHARDED: &[Case] = &[
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

/// `models/stories`, asked for text.
const SPEAKING: &[Case] = &[
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
const TEMPLATES: &[Case] = &[
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

fn truncate(model: &Copy, bytes: usize) {
    let whole = model.read("model.safetensors");
    model.write("model.safetensors", &whole[..bytes]);
}

fn header_length(model: &Copy, length: u64) {
    let mut bytes = model.read("model.safetensors");
    bytes[..8].copy_from_slice(&length.to_le_bytes());
    model.write("model.safetensors", bytes);
}

fn raw_header(model: &Copy, header: &[u8]) {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header);
    model.write("model.safetensors", bytes);
}

fn rename(model: &Copy, tensor: &str, to: &str) {
    model.edit_header(|header| {
        let entry = header.as_object_mut().unwrap().remove(tensor).unwrap();
        header[to] = entry;
    });
}

fn become_file(model: &Copy, name: &str) {
    std::fs::rename(model.file("model.safetensors"), model.file(name)).unwrap();
}

fn become_directory(model: &Copy, name: &str) {
    model.remove(name);
    std::fs::create_dir(model.file(name)).unwrap();
}

#[cfg(unix)]
fn become_loop(model: &Copy, name: &str) {
    model.remove(name);
    std::os::unix::fs::symlink(name, model.file(name)).unwrap();
}

fn template(model: &Copy, text: &str) {
    model.edit("tokenizer_config.json", |config| config["chat_template"] = json!(text));
}

/// Breaks copies of `model` and calls the command on each; tells all cases that go wrong, not the first.
fn check(model: &str, cases: &[Case], call: impl Fn(&Copy) -> Outcome) {
    let mut wrong = Vec::new();
    for case in cases {
        let copy = Copy::of(model);
        (case.break_it)(&copy);
        let outcome = call(&copy);
        let check = std::panic::AssertUnwindSafe(|| outcome.refused_with(case.parts));
        if std::panic::catch_unwind(check).is_err() {
            let said: String = outcome.stderr.chars().take(600).collect();
            wrong.push(format!("{}: code {:?}, {said:?}, wanted {:?}", case.name, outcome.code, case.parts));
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

/// `logits`, which must leave nothing behind.
fn logits(model: &Copy) -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("out.safetensors");
    let outcome =
        halfbyte(&["logits", model.name(), "--device-map", "cpu", "--ids", "1,2,3", "-o", text(&file)]);
    let left = std::fs::read_dir(folder.path()).unwrap().count();
    assert!(left == 0 || outcome.code == Some(0), "{} left a file", outcome.line);
    outcome
}

#[test]
fn broken_models_of_one_file() {
    check("tests/fixtures/models/llama_mha", SINGLE, logits);
}

#[test]
fn broken_models_of_several_files() {
    check("tests/fixtures/models/llama_bf16_sharded", SHARDED, logits);
}

#[test]
fn broken_tokenizers() {
    check("models/stories", SPEAKING, |model| {
        halfbyte(&["run", model.name(), "--device-map", "cpu", "-p", "Once", "-n", "2"])
    });
}

#[test]
fn broken_chat_templates() {
    check("models/stories", TEMPLATES, |model| {
        command::halfbyte_with(&["chat", model.name(), "--device-map", "cpu", "-n", "2"], b"Hello\n")
    });
}

#[test]
fn a_broken_tokenizer_does_not_matter_to_a_plan() {
    let model = Copy::of("models/stories");
    model.write("tokenizer.json", b"{");
    let json = halfbyte(&["plan", model.name(), "--device-map", "cpu", "--json"]).ok().json();
    assert_eq!(json["fits"], true);
}

#[test]
fn hostile_headers_are_refused_by_a_plan_too() {
    check("tests/fixtures/models/llama_mha", &SINGLE[..20], |model| {
        halfbyte(&["plan", model.name(), "--device-map", "cpu"])
    });
}

#[test]
fn a_file_is_no_directory() {
    let model = Copy::of("tests/fixtures/models/llama_mha");
    let file = model.file("model.safetensors");
    halfbyte(&["plan", text(&file), "--offline"]).refused_with(&["model.safetensors"]);
}
