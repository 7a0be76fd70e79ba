//! Files that are no safetensors.

use crate::case::{Case, case};
use crate::command::Copy;

/// Of `tests/fixtures/models/llama_mha`: one file, float32, no tokenizer.
pub const CONTAINER: &[Case] = &[
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
