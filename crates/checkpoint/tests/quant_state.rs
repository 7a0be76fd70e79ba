//! Checkpoints that bitsandbytes wrote: every 4-bit weight is read, and decodes to what bitsandbytes makes of it.

use halfbyte_checkpoint::quant_state::{is_quantized, quantized_weights, read_quantized};
use halfbyte_checkpoint::{Checkpoint, ModelFiles, TensorDtype};
use proptest::prelude::*;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/bnb_ckpt").join(name)
}

#[test]
fn every_checkpoint_of_bitsandbytes_is_read() {
    let mut count = 0;
    for entry in std::fs::read_dir(fixture("")).unwrap() {
        let directory = entry.unwrap().path();
        let checkpoint = Checkpoint::open(&directory).unwrap();
        let expected: Value =
            serde_json::from_slice(&std::fs::read(directory.join("expected.json")).unwrap()).unwrap();

        let config = checkpoint.config.quantization().unwrap().unwrap();
        assert_eq!(config.quant_type.to_string(), expected["quant_type"]);
        assert_eq!(config.double_quant, expected["double_quant"].as_bool().unwrap());
        let dtype = |key: &str| TensorDtype::from_torch_name(expected[key].as_str().unwrap()).unwrap();
        assert_eq!(config.compute_dtype, dtype("compute_dtype"));
        assert_eq!(config.storage, dtype("quant_storage"));

        let modules: BTreeSet<String> = expected["linear4bit"]
            .as_array()
            .unwrap()
            .iter()
            .map(|module| format!("{}.weight", module.as_str().unwrap()))
            .collect();
        let found: BTreeSet<String> = quantized_weights(&checkpoint.index).map(str::to_string).collect();
        assert_eq!(found, modules, "{directory:?}");

        let results = std::fs::read(directory.join("expected.safetensors")).unwrap();
        let results = SafeTensors::deserialize(&results).unwrap();
        let mut compared = 0;
        for weight in &modules {
            assert!(is_quantized(&checkpoint.index, weight));
            let read = read_quantized(&checkpoint, weight).unwrap().unwrap();
            let module = weight.strip_suffix(".weight").unwrap();
            let state = format!("{weight}.quant_state.bitsandbytes__{}", config.quant_type);
            let state = expected["quant_state_json"][&state].as_str().unwrap();
            let state: Value = serde_json::from_str(state).unwrap();
            assert_eq!(json!(read.shape), state["shape"], "{weight}");
            assert_eq!(json!(read.data.blocksize), state["blocksize"]);
            assert_eq!(Some(read.dtype), TensorDtype::from_torch_name(state["dtype"].as_str().unwrap()));
            if let Ok(view) = results.tensor(&format!("dequant_f32.{module}")) {
                let reference: Vec<f32> = view
                    .data()
                    .chunks_exact(4)
                    .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
                    .collect();
                assert_eq!(view.shape(), read.shape);
                assert_eq!(read.data.dequantize(), reference, "{directory:?} {weight}");
                compared += 1;
            }
        }
        assert_eq!(compared, 1, "{directory:?} records one decoded weight");
        assert!(!is_quantized(&checkpoint.index, "lm_head.weight"));
        assert!(read_quantized(&checkpoint, "lm_head.weight").unwrap().is_none());
        count += 1;
    }
    assert_eq!(count, 9);
}

/// Tensors by name: type, shape, bytes.
type Parts = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

const WEIGHT: &str = "model.layers.0.mlp.down_proj.weight";
const STATE: &str = "model.layers.0.mlp.down_proj.weight.quant_state.bitsandbytes__nf4";

/// One weight of the double-quantized fixture, to be damaged.
fn parts() -> Parts {
    let bytes = std::fs::read(fixture("llama_nf4_dq/model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.iter()
        .filter(|(name, _)| name.starts_with(WEIGHT))
        .map(|(name, view)| {
            let part = (view.dtype(), view.shape().to_vec(), view.data().to_vec());
            (name.to_string(), part)
        })
        .collect()
}

fn checkpoint(parts: &Parts) -> Checkpoint {
    let views = parts
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    let bytes = safetensors::serialize(views, None).unwrap();
    let config = br#"{"model_type": "llama"}"#.to_vec();
    Checkpoint::new(ModelFiles::from_bytes("m", config, bytes, None, None)).unwrap()
}

fn put_state(parts: &mut Parts, text: &str) {
    let bytes = text.as_bytes().to_vec();
    parts.insert(STATE.to_string(), (Dtype::U8, vec![bytes.len()], bytes));
}

fn with_state(change: impl Fn(&mut Value)) -> Parts {
    let mut parts = parts();
    let mut state: Value = serde_json::from_slice(&parts[STATE].2).unwrap();
    change(&mut state);
    put_state(&mut parts, &state.to_string());
    parts
}

fn with_part(part: &str, change: impl Fn(&mut (Dtype, Vec<usize>, Vec<u8>))) -> Parts {
    let mut parts = parts();
    change(parts.get_mut(&format!("{WEIGHT}{part}")).unwrap());
    parts
}

fn shortened(part: &str, size: usize) -> Parts {
    with_part(part, |(_, shape, bytes)| {
        shape[0] -= 1;
        bytes.truncate(bytes.len() - size);
    })
}

fn without(part: &str) -> Parts {
    let mut parts = parts();
    parts.remove(&format!("{WEIGHT}{part}")).unwrap();
    parts
}

#[test]
fn every_damaged_weight_has_its_error() {
    assert!(read_quantized(&checkpoint(&parts()), WEIGHT).unwrap().is_some());
    let text = |text: &str| {
        let mut parts = parts();
        put_state(&mut parts, text);
        parts
    };
    #[rustfmt::skip]
    let table: Vec<(&str, Parts, &str)> = vec![
        ("state is empty", text(""), "its quant state: EOF"),
        ("state is no JSON", text("nf4"), "its quant state: expected ident"),
        ("state has an unknown key", with_state(|s| s["evil"] = json!(1)), "unknown field `evil`"),
        ("state lacks its shape", with_state(|s| { s.as_object_mut().unwrap().remove("shape"); }), "missing field `shape`"),
        ("state of the other type", with_state(|s| s["quant_type"] = json!("fp4")), "says quant_type \"fp4\", but is named nf4"),
        ("blocksize 0", with_state(|s| s["blocksize"] = json!(0)), "its blocksize 0 is impossible"),
        ("blocksize of no power", with_state(|s| s["blocksize"] = json!(65)), "its absmax is U8 [160], expected U8 [158]"),
        ("blocksize negative", with_state(|s| s["blocksize"] = json!(-64)), "its quant state: invalid value"),
        ("another blocksize", with_state(|s| s["blocksize"] = json!(128)), "its absmax is U8 [160], expected U8 [80]"),
        ("nested blocksize 0", with_state(|s| s["nested_blocksize"] = json!(0)), "its nested_blocksize 0 is impossible"),
        ("another nested blocksize", with_state(|s| s["nested_blocksize"] = json!(64)), "its nested_absmax is F32 [1], expected F32 [3]"),
        ("nested without offset", with_state(|s| { s.as_object_mut().unwrap().remove("nested_offset"); }), "only one of nested_blocksize and nested_offset"),
        ("nested of another type", with_state(|s| s["nested_dtype"] = json!("float64")), "its nested_dtype is \"float64\""),
        ("shape overflows", with_state(|s| s["shape"] = json!([1u64 << 40, 1u64 << 40])), "overflows"),
        ("shape is huge", with_state(|s| s["shape"] = json!([1u64 << 30, 1u64 << 30])), "it has 5120 packed bytes, but [1073741824, 1073741824] of 4 bits needs 576460752303423488"),
        ("shape is too small", with_state(|s| s["shape"] = json!([64, 159])), "it has 5120 packed bytes, but [64, 159] of 4 bits needs 5088"),
        ("shape is negative", with_state(|s| s["shape"] = json!([-64, 160])), "its quant state: invalid value"),
        ("dtype is an integer", with_state(|s| s["dtype"] = json!("int8")), "its dtype \"int8\" is no float type"),
        ("state is of floats", with_part(STATE.strip_prefix(WEIGHT).unwrap(), |part| *part = (Dtype::F32, vec![1], vec![0; 4])), "its quant state is of type F32"),
        ("no codes", without(""), "a quant state but no packed codes"),
        ("no absmax", without(".absmax"), "its absmax is missing"),
        ("no quant_map", without(".quant_map"), "its quant_map is missing"),
        ("no nested_absmax", without(".nested_absmax"), "its nested_absmax is missing"),
        ("no nested_quant_map", without(".nested_quant_map"), "its nested_quant_map is missing"),
        ("codes cut", shortened("", 1), "it has 5119 packed bytes"),
        ("absmax cut", shortened(".absmax", 1), "its absmax is U8 [159], expected U8 [160]"),
        ("quant_map cut", shortened(".quant_map", 4), "its quant_map is F32 [15], expected F32 [16]"),
        ("nested_absmax cut", shortened(".nested_absmax", 4), "its nested_absmax is F32 [0], expected F32 [1]"),
        ("nested_quant_map cut", shortened(".nested_quant_map", 4), "its nested_quant_map is F32 [255]"),
        ("quant_map of integers", with_part(".quant_map", |part| part.0 = Dtype::I32), "its quant_map is I32 [16]"),
        ("plain state over nested absmax", with_state(|s| {
            for key in ["nested_blocksize", "nested_dtype", "nested_offset"] { s.as_object_mut().unwrap().remove(key); }
        }), "its absmax is U8 [160], expected F32 [160]"),
        ("two states", { let mut p = parts(); let state = p[STATE].clone(); p.insert(format!("{WEIGHT}.quant_state.bitsandbytes__fp4"), state); p }, "an NF4 and an FP4"),
    ];
    for (name, parts, fragment) in table {
        let error = read_quantized(&checkpoint(&parts), WEIGHT).expect_err(name).to_string();
        assert!(error.starts_with(&format!("4-bit weight {WEIGHT}: ")), "{name}: {error}");
        assert!(error.contains(fragment), "{name}: {error}");
        assert_eq!(error.lines().count(), 1);
    }
}

#[test]
fn codes_may_be_stored_under_any_type() {
    let plain = read_quantized(&checkpoint(&parts()), WEIGHT).unwrap();
    for (dtype, size) in [(Dtype::I8, 1), (Dtype::F16, 2), (Dtype::BF16, 2), (Dtype::F32, 4), (Dtype::F64, 8)]
    {
        let parts = with_part("", |(stored, shape, bytes)| {
            *stored = dtype;
            *shape = vec![bytes.len() / size, 1];
        });
        assert_eq!(read_quantized(&checkpoint(&parts), WEIGHT).unwrap(), plain, "{dtype:?}");
    }
}

proptest! {
    #[test]
    fn mutated_states_never_panic(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut parts = parts();
        let state = &mut parts.get_mut(STATE).unwrap().2;
        let at = at.index(state.len());
        state[at] = byte;
        if let Ok(Some(weight)) = read_quantized(&checkpoint(&parts), WEIGHT) {
            prop_assert!(weight.data.check().is_ok());
            prop_assert_eq!(weight.data.dequantize().len(), weight.shape.iter().product::<usize>());
        }
    }
}

#[test]
fn other_quantizations_are_refused_by_name() {
    let refusal = |quantization: Value| {
        let config = json!({"model_type": "llama", "quantization_config": quantization});
        let config =
            halfbyte_checkpoint::ModelConfig::parse("config.json", config.to_string().as_bytes()).unwrap();
        config.quantization().map_err(|error| error.to_string())
    };
    #[rustfmt::skip]
    let table = [
        (json!({"quant_method": "gptq", "bits": 4}), "GPTQ quantization (\"gptq\") is not supported"),
        (json!({"quant_method": "awq"}), "AWQ quantization"),
        (json!({"quant_method": "mxfp4"}), "MXFP4"),
        (json!({"quant_method": "vendor-x"}), "by the method \"vendor-x\""),
        (json!({"quant_method": "bitsandbytes", "load_in_8bit": true}), "8-bit (LLM.int8)"),
        (json!({"bits": 4}), "quantization_config.quant_method is missing"),
        (json!({"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "int4"}), "bnb_4bit_quant_type is \"int4\""),
        (json!({"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_compute_dtype": "int8"}), "expected a float type"),
        (json!("nf4"), "quantization_config is \"nf4\", expected an object"),
    ];
    for (quantization, fragment) in table {
        let error = refusal(quantization).unwrap_err();
        assert!(error.contains(fragment), "{error}");
    }
    // bitsandbytes' own default is FP4 without double quantization, computed in float32.
    let default = refusal(json!({"load_in_4bit": true})).unwrap().unwrap();
    assert_eq!(default.quant_type, halfbyte_quant::QuantType::Fp4);
    assert!(!default.double_quant);
    assert_eq!((default.compute_dtype, default.storage), (TensorDtype::F32, TensorDtype::U8));
    assert_eq!(refusal(json!({"quant_method": "bitsandbytes", "load_in_4bit": false})).unwrap(), None);
}
