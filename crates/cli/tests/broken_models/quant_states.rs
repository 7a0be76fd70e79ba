//! 4-bit weights as bitsandbytes writes them, with something wrong in what says how to read them.

use crate::case::{Case, case};
use crate::command::Copy;
use serde_json::{Value, json};

/// One of the 4-bit weights.
const WEIGHT: &str = "model.layers.1.mlp.up_proj.weight";

/// Of `tests/fixtures/bnb_ckpt/llama_nf4_dq`: double quantization.
pub const NESTED: &[Case] = &[
    case(
        "NaN in the scales of scales",
        |m| poke(m, "nested_absmax", f32::NAN),
        &[WEIGHT, "nested_absmax", "NaN"],
    ),
    case("infinity in the codebook", |m| poke(m, "quant_map", f32::INFINITY), &[WEIGHT, "quant_map", "inf"]),
    case(
        "NaN in the codebook of scales",
        |m| poke(m, "nested_quant_map", f32::NAN),
        &[WEIGHT, "nested_quant_map", "NaN"],
    ),
    case(
        "an offset beyond float32",
        |m| state(m, "nested_offset", json!(1e300)),
        &[WEIGHT, "nested_offset", "1e300"],
    ),
    case("an offset that is a text", |m| state(m, "nested_offset", json!("0")), &[WEIGHT, "quant state"]),
    case("no offset", |m| state(m, "nested_offset", Value::Null), &[WEIGHT, "nested_offset"]),
    case("a blocksize of 0", |m| state(m, "blocksize", json!(0)), &[WEIGHT, "blocksize 0"]),
    case("a blocksize of 2^63", |m| state(m, "blocksize", json!(1u64 << 63)), &[WEIGHT, "absmax"]),
    case("nested blocks of 0", |m| state(m, "nested_blocksize", json!(0)), &[WEIGHT, "nested_blocksize 0"]),
    case(
        "a shape that overflows",
        |m| state(m, "shape", json!([1u64 << 40, 1u64 << 40])),
        &[WEIGHT, "overflows"],
    ),
    case(
        "a shape of 2^60",
        |m| state(m, "shape", json!([1u64 << 30, 1u64 << 30])),
        &[WEIGHT, "packed bytes"],
    ),
    case("a shape of nothing", |m| state(m, "shape", json!([])), &[WEIGHT]),
    case("a negative shape", |m| state(m, "shape", json!([-160, 64])), &[WEIGHT, "quant state"]),
    case(
        "the weight's shape turned",
        |m| state(m, "shape", json!([64, 160])),
        &[WEIGHT, "[64, 160]", "[160, 64]"],
    ),
    case("another codebook's name", |m| state(m, "quant_type", json!("fp4")), &[WEIGHT, "fp4"]),
    case("a type of integers", |m| state(m, "dtype", json!("int8")), &[WEIGHT, "int8"]),
    case("a key that is not known", |m| state(m, "zero_point", json!(1)), &[WEIGHT, "zero_point"]),
    case("no state at all", |m| set_state(m, b"".to_vec()), &[WEIGHT, "quant state"]),
    case("a state that is no JSON", |m| set_state(m, vec![0xff; 40]), &[WEIGHT, "quant state"]),
];

/// Of `tests/fixtures/bnb_ckpt/llama_nf4`: scales in 32 bits.
pub const PLAIN: &[Case] = &[
    case("NaN in the scales", |m| poke(m, "absmax", f32::NAN), &[WEIGHT, "absmax", "NaN"]),
    case("infinity in the scales", |m| poke(m, "absmax", f32::NEG_INFINITY), &[WEIGHT, "absmax", "-inf"]),
];

fn poke(model: &Copy, part: &str, with: f32) {
    model.poke(&format!("{WEIGHT}.{part}"), &with.to_le_bytes());
}

/// Changes one key of the quant state; `null` removes it.
fn state(model: &Copy, key: &str, value: Value) {
    let (header, data) = model.safetensors();
    let offsets = &header[state_name()]["data_offsets"];
    let (begin, end) = (offsets[0].as_u64().unwrap() as usize, offsets[1].as_u64().unwrap() as usize);
    let mut state: Value = serde_json::from_slice(&data[begin..end]).unwrap();
    match value {
        Value::Null => drop(state.as_object_mut().unwrap().remove(key)),
        value => state[key] = value,
    }
    set_state(model, state.to_string().into_bytes());
}

/// Gives the quant state other bytes, of any length: it becomes the last tensor of the file.
fn set_state(model: &Copy, state: Vec<u8>) {
    let (mut header, mut data) = model.safetensors();
    let offsets = header[state_name()]["data_offsets"].clone();
    let (begin, end) = (offsets[0].as_u64().unwrap(), offsets[1].as_u64().unwrap());
    data.drain(begin as usize..end as usize);
    for (_, entry) in header.as_object_mut().unwrap().iter_mut().filter(|(name, _)| *name != "__metadata__") {
        for offset in entry["data_offsets"].as_array_mut().unwrap() {
            let at = offset.as_u64().unwrap();
            *offset = json!(if at >= end { at - (end - begin) } else { at });
        }
    }
    let entry = &mut header[state_name()];
    entry["shape"] = json!([state.len()]);
    entry["data_offsets"] = json!([data.len(), data.len() + state.len()]);
    data.extend(state);
    model.write_safetensors(&header, &data);
}

fn state_name() -> String {
    format!("{WEIGHT}.quant_state.bitsandbytes__nf4")
}
