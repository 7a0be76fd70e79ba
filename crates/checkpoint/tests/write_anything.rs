//! Any shapes, any values, any interruption: what is written is read back, or refused in one line.

use halfbyte_checkpoint::quant_state::{is_quantized, read_quantized};
use halfbyte_checkpoint::{Checkpoint, ModelFiles, TensorDtype, WriteOptions, write_quantized};
use halfbyte_quant::{QuantSpec, QuantType, Source, SourceType, quantize};
use proptest::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use std::collections::BTreeMap;
use std::path::Path;

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn model(config: &str, tensors: &Tensors) -> Checkpoint {
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    let bytes = safetensors::serialize(views, None).unwrap();
    Checkpoint::new(ModelFiles::from_bytes("m", config.as_bytes().to_vec(), bytes, None, None)).unwrap()
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn write(checkpoint: &Checkpoint, dir: &Path, options: &WriteOptions) -> Result<(), String> {
    let written = write_quantized(checkpoint, dir, options, &mut |_, _, _| {});
    written.map(|_| ()).map_err(|error| {
        let text = error.to_string();
        assert_eq!(text.lines().count(), 1, "{text}");
        text
    })
}

const LLAMA: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}"#;

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_shape_and_values_come_back(
        shapes in prop::collection::vec((1usize..70, 1usize..150), 1..4),
        seed in any::<u32>(),
        scale in prop::sample::select(vec![1e-38f32, 1e-3, 1.0, 1e30]),
        fp4 in any::<bool>(),
        double_quant in any::<bool>(),
        blocksize in prop::sample::select(vec![32usize, 64, 256, 4096]),
        max_shard_bytes in prop::sample::select(vec![1u64, 3000, u64::MAX]),
        half in any::<bool>(),
    ) {
        let mut state = seed;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 8) as f32 / (1 << 24) as f32 - 0.5) * scale
        };
        let mut tensors = Tensors::new();
        for (layer, &(rows, cols)) in shapes.iter().enumerate() {
            let values: Vec<f32> = (0..rows * cols).map(|_| random()).collect();
            let (dtype, bytes) = if half {
                (Dtype::BF16, values.iter().flat_map(|value| value.to_le_bytes()[2..].to_vec()).collect())
            } else {
                (Dtype::F32, floats(&values))
            };
            tensors.insert(format!("model.layers.{layer}.mlp.up_proj.weight"), (dtype, vec![rows, cols], bytes));
            tensors.insert(format!("model.layers.{layer}.norm.weight"), (Dtype::F32, vec![1], floats(&[1.0])));
        }
        tensors.insert("lm_head.weight".into(), (Dtype::F32, vec![2, 3], floats(&[0.5; 6])));
        let source = model(LLAMA, &tensors);
        let quant_type = if fp4 { QuantType::Fp4 } else { QuantType::Nf4 };
        let spec = QuantSpec { quant_type, blocksize, double_quant };
        let out = tempfile::tempdir().unwrap();
        write(&source, out.path(), &WriteOptions { spec, max_shard_bytes, ..WriteOptions::default() }).unwrap();
        let found = Checkpoint::open(out.path()).unwrap();
        for (name, (dtype, shape, bytes)) in &tensors {
            if name.contains("up_proj") {
                let source_type = if *dtype == Dtype::F32 { SourceType::F32 } else { SourceType::Bf16 };
                let wanted = quantize(Source::from_le_bytes(source_type, bytes).unwrap(), spec).unwrap();
                let weight = read_quantized(&found, name).unwrap().unwrap();
                prop_assert_eq!(&weight.data, &wanted);
                prop_assert_eq!(&weight.shape, shape);
            } else {
                prop_assert!(!is_quantized(&found.index, name));
                prop_assert_eq!(found.tensor_bytes(name).unwrap(), bytes.as_slice());
            }
        }
    }

    #[test]
    fn any_bits_are_written_or_refused(bits in prop::collection::vec(any::<u32>(), 1..200), double_quant in any::<bool>()) {
        let bytes: Vec<u8> = bits.iter().flat_map(|bits| bits.to_le_bytes()).collect();
        let finite = bits.iter().all(|&bits| f32::from_bits(bits).is_finite());
        let mut tensors = Tensors::new();
        tensors.insert("model.layers.0.up_proj.weight".into(), (Dtype::F32, vec![1, bits.len()], bytes));
        let out = tempfile::tempdir().unwrap();
        let options = WriteOptions { spec: QuantSpec { double_quant, ..QuantSpec::default() }, ..WriteOptions::default() };
        match write(&model(LLAMA, &tensors), out.path(), &options) {
            Ok(()) => {
                let found = Checkpoint::open(out.path()).unwrap();
                prop_assert!(read_quantized(&found, "model.layers.0.up_proj.weight").unwrap().is_some());
                prop_assert!(finite);
            }
            // A mean of finite scales can overflow, too.
            Err(text) => {
                prop_assert!(text.contains("no numbers"), "{}", text);
                prop_assert!(!out.path().join("config.json").exists());
            }
        }
    }
}

fn small() -> Checkpoint {
    let mut tensors = Tensors::new();
    for layer in 0..4 {
        let values: Vec<f32> = (0..256).map(|i| (i as f32 + layer as f32).sin()).collect();
        tensors.insert(
            format!("model.layers.{layer}.up_proj.weight"),
            (Dtype::F32, vec![16, 16], floats(&values)),
        );
    }
    model(LLAMA, &tensors)
}

/// All files of a directory.
fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect()
}

#[test]
fn an_interrupted_run_goes_on_and_gives_the_same() {
    let several = WriteOptions { max_shard_bytes: 1, ..WriteOptions::default() };
    // Four shards, index and config; or one file and config.
    for (options, files) in [(several, 4 + 2), (WriteOptions::default(), 1 + 1)] {
        let whole = tempfile::tempdir().unwrap();
        write_quantized(&small(), whole.path(), &options, &mut |_, _, _| {}).unwrap();
        let wanted = contents(whole.path());
        assert_eq!(wanted.len(), files);

        for stop in 0..4 {
            let out = tempfile::tempdir().unwrap();
            // As a kill: nothing is cleaned up.
            let killed = std::panic::catch_unwind(|| {
                let mut seen = 0;
                write_quantized(&small(), out.path(), &options, &mut |_, _, _| {
                    seen += 1;
                    assert!(seen <= stop, "killed");
                })
            });
            assert!(killed.is_err());
            assert!(!out.path().join("config.json").exists());
            let mut seen = Vec::new();
            let report = write_quantized(&small(), out.path(), &options, &mut |name, done, total| {
                seen.push((name.to_owned(), done * 4 / total));
            });
            let report = report.unwrap();
            assert_eq!(report.resumed, if files == 6 { stop } else { 0 }, "finished shards are kept");
            assert_eq!(report.resumed_tensors, stop + 1, "so are tensors of the one that is not finished");
            // It begins where the other ended, and names what it does itself.
            assert_eq!(seen[0], (String::new(), stop as u64 + 1));
            assert_eq!(seen.len(), 4 - stop, "{seen:?}");
            assert!(contents(out.path()) == wanted, "stopped at {stop}");

            // Finished: not ours to write again.
            let error = write(&small(), out.path(), &options).unwrap_err();
            assert!(error.contains("new or empty"), "{error}");
        }
    }
}

#[test]
fn a_source_that_changed_meanwhile_is_not_mixed_with_what_was_done() {
    let source = tempfile::tempdir().unwrap();
    let save = |scale: f32| {
        let values: Vec<f32> = (0..256).map(|i| (i as f32).sin() * scale).collect();
        let bytes = floats(&values);
        let views = (0..3).map(|layer| {
            let view = TensorView::new(Dtype::F32, vec![16, 16], &bytes).unwrap();
            (format!("model.layers.{layer}.up_proj.weight"), view)
        });
        let file = source.path().join("model.safetensors");
        // The length is the same: the time of change tells them apart, and a clock may tick slowly.
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::fs::write(file, safetensors::serialize(views, None).unwrap()).unwrap();
    };
    std::fs::write(source.path().join("config.json"), LLAMA).unwrap();
    let run = |out: &Path, last: &str| {
        let checkpoint = Checkpoint::open(source.path()).unwrap();
        write_quantized(&checkpoint, out, &WriteOptions::default(), &mut |name, _, _| {
            assert!(!name.contains(last), "killed");
        })
    };
    let (out, whole) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    save(1.0);
    let killed = std::panic::catch_unwind(|| run(out.path(), ".1."));
    assert!(killed.is_err());
    save(2.0);
    let report = run(out.path(), "none").unwrap();
    assert_eq!(report.resumed_tensors, 0);
    run(whole.path(), "none").unwrap();
    assert!(contents(out.path()) == contents(whole.path()));
}

#[test]
fn what_another_run_left_is_started_again() {
    let out = tempfile::tempdir().unwrap();
    let options = WriteOptions { max_shard_bytes: 1, ..WriteOptions::default() };
    let killed = std::panic::catch_unwind(|| {
        write_quantized(&small(), out.path(), &options, &mut |name, _, _| {
            assert!(!name.contains(".2."), "killed")
        })
    });
    assert!(killed.is_err());
    assert!(contents(out.path()).len() > 2);
    let options = WriteOptions { spec: QuantSpec { blocksize: 128, ..QuantSpec::default() }, ..options };
    let report = write_quantized(&small(), out.path(), &options, &mut |_, _, _| {}).unwrap();
    assert_eq!(report.resumed, 0);
    let found = Checkpoint::open(out.path()).unwrap();
    let weight = read_quantized(&found, "model.layers.0.up_proj.weight").unwrap().unwrap();
    assert_eq!(weight.data.blocksize, 128);
}

#[test]
fn foreign_directories_are_refused_untouched() {
    let out = tempfile::tempdir().unwrap();
    std::fs::write(out.path().join("thesis.tex"), "mine").unwrap();
    let error = write(&small(), out.path(), &WriteOptions::default()).unwrap_err();
    assert!(error.contains("new or empty"), "{error}");
    assert_eq!(contents(out.path()).len(), 1);
    let file = out.path().join("thesis.tex");
    let error = write(&small(), &file, &WriteOptions::default()).unwrap_err();
    assert!(error.contains("it is a file"), "{error}");
}

#[test]
fn what_cannot_be_is_refused_in_one_line() {
    let out = tempfile::tempdir().unwrap();
    let target = out.path().join("out");
    let refused = |checkpoint: &Checkpoint, options: WriteOptions, words: &str| {
        let error = write(checkpoint, &target, &options).unwrap_err();
        assert!(error.contains(words), "{error}");
        assert!(!target.exists(), "{words}");
    };
    let with = |config: &str| {
        model(config, &Tensors::from([("a.weight".into(), (Dtype::F32, vec![1, 3], floats(&[1.0; 3])))]))
    };
    let options = WriteOptions::default;
    let blocks = QuantSpec { blocksize: 48, ..QuantSpec::default() };
    refused(&with(LLAMA), WriteOptions { spec: blocks, ..options() }, "48");
    refused(
        &with(LLAMA),
        WriteOptions { storage: TensorDtype::F32, ..options() },
        "2 packed bytes of a.weight",
    );
    refused(&with(LLAMA), WriteOptions { storage: TensorDtype::I64, ..options() }, "I64");
    refused(
        &with(LLAMA),
        WriteOptions { skip_modules: vec!["a".into()], ..options() },
        "without linear layers",
    );
    let done = r#"{"model_type": "llama", "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": true}}"#;
    refused(&with(done), options(), "quantized already");
    let gptq = r#"{"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}}"#;
    refused(&with(gptq), options(), "GPTQ");
}
