//! Tensors that are missing, misnamed, misshapen or no numbers.

use crate::case::{Case, case};
use crate::command::Copy;
use serde_json::json;

/// Of `tests/fixtures/models/llama_mha`: one file, float32, no tokenizer.
pub const TENSORS: &[Case] = &[
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
        "a thousand dimensions",
        |m| {
            m.edit_header(|h| {
                h["model.norm.weight"]["shape"] = json!(vec![2; 1000]);
            })
        },
        &["model.norm.weight", "of 1000 dimensions"],
    ),
    case(
        "a name that writes to the terminal",
        |m| rename(m, "model.norm.weight", "\u{1b}[2J\nmodel.norm.weight"),
        &["model.norm.weight"],
    ),
];

/// Values of the same model that are no numbers.
pub const NOT_FINITE: &[Case] = &[
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
        "NaN in the embedding",
        |m| m.poke("model.embed_tokens.weight", &f32::NAN.to_le_bytes()),
        &["model.embed_tokens.weight", "NaN"],
    ),
    case(
        "infinity in the head",
        |m| m.poke("lm_head.weight", &f32::NEG_INFINITY.to_le_bytes()),
        &["lm_head.weight", "infinity"],
    ),
    case(
        "NaN in a norm",
        |m| m.poke("model.norm.weight", &f32::NAN.to_le_bytes()),
        &["model.norm.weight", "NaN"],
    ),
];

/// Rows of an embedding of 16-bit floats that is too large to be read when a model is loaded from the disk.
const ROWS: usize = 10_000;

/// Of `models/stories`, whose embedding, which is the head, too, gets [`ROWS`] rows.
pub const LARGE: &[Case] = &[
    // `<s>`, which every text begins with.
    case("NaN in a row of a token", |m| enlarge(m, 1, 0x7e00), &["model.embed_tokens.weight", "NaN"]),
    case("NaN in the head alone", |m| enlarge(m, ROWS - 1, 0x7e00), &["model.embed_tokens.weight", "NaN"]),
    case("infinity in a row of a token", |m| enlarge(m, 1, 0x7c00), &["model.embed_tokens.weight"]),
];

/// Gives the embedding rows of zeros, and row `at` a value in 16 bits that is no number.
fn enlarge(model: &Copy, at: usize, value: u16) {
    let (mut header, data) = model.safetensors();
    let name = "model.embed_tokens.weight";
    let [first, last] = [0, 1].map(|end| header[name]["data_offsets"][end].as_u64().unwrap() as usize);
    let width = header[name]["shape"][1].as_u64().unwrap() as usize;
    let mut rows = data[first..last].to_vec();
    rows.resize(ROWS * width * 2, 0);
    rows[(at * width + 7) * 2..][..2].copy_from_slice(&value.to_le_bytes());
    let begin = data.len();
    header[name]["shape"] = json!([ROWS, width]);
    header[name]["data_offsets"] = json!([begin, begin + rows.len()]);
    // Nobody's bytes have no place in a file.
    header["unused"] = json!({ "dtype": "U8", "shape": [last - first], "data_offsets": [first, last] });
    model.write_safetensors(&header, &[data, rows].concat());
    model.configure("vocab_size", json!(ROWS));
}

fn rename(model: &Copy, tensor: &str, to: &str) {
    model.edit_header(|header| {
        let entry = header.as_object_mut().unwrap().remove(tensor).unwrap();
        header[to] = entry;
    });
}
