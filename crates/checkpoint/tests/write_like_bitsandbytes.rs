//! What is written is what bitsandbytes and transformers write: compared with real checkpoints tensor by tensor.

use halfbyte_checkpoint::{Checkpoint, TensorDtype, WriteOptions, write_quantized};
use halfbyte_quant::{QuantSpec, QuantType};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

/// The source of a real 4-bit checkpoint, and the options that it was made with.
fn made_from(real: &Path) -> (Checkpoint, WriteOptions) {
    let expected: Value =
        serde_json::from_slice(&std::fs::read(real.join("expected.json")).unwrap()).unwrap();
    let source = expected["source"].as_str().unwrap().strip_prefix("fixtures/").unwrap();
    let dtype = |key: &str| TensorDtype::from_torch_name(expected[key].as_str().unwrap()).unwrap();
    let options = WriteOptions {
        spec: QuantSpec {
            quant_type: expected["quant_type"].as_str().unwrap().parse::<QuantType>().unwrap(),
            double_quant: expected["double_quant"].as_bool().unwrap(),
            ..QuantSpec::default()
        },
        storage: dtype("quant_storage"),
        compute_dtype: Some(dtype("compute_dtype")),
        // transformers 5 made them.
        convert_heads: true,
        ..WriteOptions::default()
    };
    (Checkpoint::open(&fixture(source)).unwrap(), options)
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

/// Steps between two floats of one sign.
fn ulps(a: f32, b: f32) -> u32 {
    a.to_bits().abs_diff(b.to_bits())
}

/// A quant state with its offset taken out.
fn state(bytes: &[u8]) -> (String, Option<f32>) {
    let text = std::str::from_utf8(bytes).unwrap();
    match text.split_once(r#""nested_offset": "#) {
        Some((rest, offset)) => (rest.to_owned(), Some(offset.trim_end_matches('}').parse().unwrap())),
        None => (text.to_owned(), None),
    }
}

#[test]
fn every_tensor_is_that_of_bitsandbytes() {
    let (mut compared, mut codes, mut equal_codes) = (0, 0, 0);
    for name in [
        "llama_nf4_dq",
        "llama_nf4",
        "llama_fp4_dq",
        "llama_gqa_tied_nf4_dq",
        "llama_nf4_dq_f16",
        "llama_nf4_dq_bf16_storage_bf16",
        "qwen3_nf4_dq",
        "bert_cls_nf4_dq",
    ] {
        let real = fixture("bnb_ckpt").join(name);
        let (source, options) = made_from(&real);
        let out = tempfile::tempdir().unwrap();
        write_quantized(&source, out.path(), &options, &mut |_, _, _| {}).unwrap();
        let (ours, real) = (Checkpoint::open(out.path()).unwrap(), Checkpoint::open(&real).unwrap());

        let names = |one: &Checkpoint| one.index.iter().map(|t| t.name.clone()).collect::<BTreeSet<_>>();
        assert_eq!(names(&ours), names(&real), "{name}");
        assert_eq!(ours.config.json, real.config.json, "{name}: config.json");
        for tensor in real.index.iter() {
            let found = ours.index.get(&tensor.name).unwrap();
            let (a, b) = (ours.bytes_of(found).unwrap(), real.bytes_of(tensor).unwrap());
            let what = format!("{name}: {}", tensor.name);
            assert_eq!(found.dtype, tensor.dtype, "{what}");
            if tensor.name.contains("quant_state") {
                let ((a, offset), (b, wanted)) = (state(a), state(b));
                assert_eq!(a, b, "{what}");
                assert_eq!(offset.is_some(), wanted.is_some(), "{what}");
                if let (Some(offset), Some(wanted)) = (offset, wanted) {
                    assert!(ulps(offset, wanted) <= 2, "{what}: offset {offset} for {wanted}");
                }
                continue;
            }
            assert_eq!(found.shape, tensor.shape, "{what}");
            if tensor.name.ends_with(".nested_absmax") {
                // The offset's last bit moves what is left of the scales, which are smaller than it.
                for (a, b) in floats(a).into_iter().zip(floats(b)) {
                    assert!((a - b).abs() <= 1e-6 * b.abs(), "{what}: {a} for {b}");
                }
            } else if tensor.name.ends_with(".absmax") && options.spec.double_quant {
                codes += a.len();
                equal_codes += a.iter().zip(b).filter(|(a, b)| a == b).count();
            } else if options.spec.quant_type == QuantType::Fp4 && tensor.name.ends_with(".weight") {
                // Bytes too: the source has no value near zero whose sign FP4 would lose.
                assert_eq!(a, b, "{what}");
            } else {
                assert!(a == b, "{what}: bytes differ");
            }
            compared += 1;
        }
    }
    println!("{compared} tensors, {equal_codes} of {codes} nested codes equal");
    assert!(compared > 500, "{compared}");
    assert!(equal_codes as f64 >= 0.999 * codes as f64, "{equal_codes} of {codes}");
}

#[test]
fn files_beside_the_weights_are_those_of_transformers() {
    let real = fixture("bnb_ckpt/llama_nf4_dq");
    let (source, options) = made_from(&real);
    let out = tempfile::tempdir().unwrap();
    write_quantized(&source, out.path(), &options, &mut |_, _, _| {}).unwrap();
    let read = |dir: &Path, file: &str| std::fs::read_to_string(dir.join(file)).unwrap();
    let quantization = |text: String| {
        let from = text.find("\"quantization_config\"").unwrap();
        text[from..from + text[from..].find('}').unwrap()].to_owned()
    };
    // Byte for byte, key order included; other parts of the file are the source's.
    assert_eq!(quantization(read(out.path(), "config.json")), quantization(read(&real, "config.json")));
    assert_eq!(
        read(out.path(), "generation_config.json"),
        read(&fixture("models/llama_mha"), "generation_config.json")
    );
    let mut files: Vec<_> =
        std::fs::read_dir(out.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["config.json", "generation_config.json", "model.safetensors"]);
}
