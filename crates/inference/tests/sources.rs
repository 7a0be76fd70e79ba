//! A checkpoint's weights as backends get them.

mod fixture;

use fixture::Fixture;
use halfbyte_backend::{Canonical, DType, Fault, Format, QuantFormat, Segment, WeightSource};
use halfbyte_checkpoint::{Checkpoint, ModelFiles};
use halfbyte_inference::CheckpointSource;
use halfbyte_quant::{QuantSpec, QuantType, Source, quantize};
use pollster::block_on;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, serialize};

const CONFIG: &[u8] = br#"{"model_type": "llama"}"#;

fn segment(tensor: &str, rows: usize, cols: usize, format: Format, transposed: bool) -> Segment {
    Segment { tensor: tensor.into(), rows, cols, format, bias: None, transposed }
}

/// A checkpoint of `w`, 3 by 5, in several types.
fn checkpoint() -> (Checkpoint, Vec<f32>) {
    let values: Vec<f32> = (0..15).map(|i| (i as f32 - 7.0) * 0.25).collect();
    let f32s: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let f64s: Vec<u8> = values.iter().flat_map(|&value| f64::from(value).to_le_bytes()).collect();
    let view = |dtype, shape: &[usize], bytes| TensorView::new(dtype, shape.to_vec(), bytes).unwrap();
    let tensors = [
        ("w", view(Dtype::F32, &[3, 5], &f32s)),
        ("w64", view(Dtype::F64, &[3, 5], &f64s)),
        ("v", view(Dtype::F64, &[15], &f64s)),
        ("ints", view(Dtype::I32, &[3, 5], &f32s)),
    ];
    let file = serialize(tensors, None).unwrap();
    let files = ModelFiles::from_bytes("made", CONFIG.to_vec(), file, None, None);
    (Checkpoint::new(files).unwrap(), values)
}

fn dense(source: &CheckpointSource<'_>, segment: &Segment) -> Vec<f32> {
    match block_on(source.segment(segment)).unwrap() {
        Canonical::Dense { dtype: DType::F32, bytes } => {
            bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn tensors_are_transposed_converted_and_quantized() {
    let (checkpoint, values) = checkpoint();
    let source = CheckpointSource::new(&checkpoint);
    let f32 = Format::Dense(DType::F32);
    assert_eq!(dense(&source, &segment("w", 3, 5, f32, false)), values);
    assert_eq!(dense(&source, &segment("w64", 3, 5, f32, false)), values);
    let turned: Vec<f32> = (0..15).map(|i| values[i % 3 * 5 + i / 3]).collect();
    assert_eq!(dense(&source, &segment("w", 5, 3, f32, true)), turned);
    assert_eq!(block_on(source.vector("v", 15)).unwrap(), values);

    // Blocks run over the transposed matrix.
    let spec = QuantSpec { blocksize: 32, double_quant: false, quant_type: QuantType::Nf4 };
    for (tensor, transposed, wanted) in [("w", true, &turned), ("w64", false, &values)] {
        let (rows, cols) = if transposed { (5, 3) } else { (3, 5) };
        let segment = segment(tensor, rows, cols, Format::Quant(spec.into()), transposed);
        let canonical = block_on(source.segment(&segment)).unwrap();
        let Canonical::Quantized(found) = canonical else { panic!("{tensor} is not quantized") };
        assert_eq!(*found, quantize(Source::F32(wanted), spec).unwrap());
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let (checkpoint, _) = checkpoint();
    let source = CheckpointSource::new(&checkpoint);
    let f32 = Format::Dense(DType::F32);
    for (tensor, rows, cols, parts) in [
        ("w", 5, 3, ["[3, 5]", "[5, 3]"]),
        ("ints", 3, 5, ["ints", "I32"]),
        ("x", 3, 5, ["tensor x", "made/model.safetensors"]),
    ] {
        let segment = segment(tensor, rows, cols, f32, false);
        let fault = block_on(source.segment(&segment)).unwrap_err();
        assert!(matches!(fault, Fault::Source(_)), "{fault:?}");
        for part in parts {
            assert!(fault.to_string().contains(part), "{part}: {fault}");
        }
    }
    let fault = block_on(source.vector("v", 16)).unwrap_err();
    assert!(fault.to_string().contains("[15]") && fault.to_string().contains("[16]"), "{fault}");
}

#[test]
fn stored_states_are_passed_through() {
    let fixture = Fixture::open("bnb_ckpt/llama_nf4_dq");
    let source = CheckpointSource::new(&fixture.checkpoint);
    let name = "model.layers.0.self_attn.q_proj";
    let format = |blocksize, double_quant| {
        Format::Quant(QuantFormat { quant_type: QuantType::Nf4, blocksize, double_quant })
    };
    let tensor = format!("{name}.weight");
    let right = segment(&tensor, 64, 64, format(64, true), false);
    let canonical = block_on(source.segment(&right)).unwrap();
    let Canonical::Quantized(found) = canonical else { panic!("{name} is not quantized") };
    assert_eq!(found.dequantize(), fixture.floats(&format!("dequant_f32.{name}")));

    for wrong in [format(128, true), format(64, false)] {
        let fault = block_on(source.segment(&segment(&tensor, 64, 64, wrong, false))).unwrap_err();
        assert!(fault.to_string().contains(name), "{fault}");
    }
    let fault = block_on(source.segment(&segment(&tensor, 32, 128, format(64, true), false))).unwrap_err();
    assert!(fault.to_string().contains("[64, 64]") && fault.to_string().contains("[32, 128]"), "{fault}");
}
