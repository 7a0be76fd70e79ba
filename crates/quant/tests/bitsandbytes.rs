//! Every 4-bit case of the reference data: what bitsandbytes 0.50.2 computed on a CPU.

mod fixture;

use std::collections::HashMap;

use fixture::{Array, arrays, assert_each, cases, equal, same, ulps};
use half::{bf16, f16};
use halfbyte_quant::{
    Absmax, QuantError, QuantSpec, QuantType, Quantized, Source, SourceType, quantize, quantize_with_offset,
    scalar,
};

type Quantizer = fn(Source<'_>, QuantSpec, Option<f32>) -> Result<Quantized, QuantError>;

const QUANTIZERS: [(&str, Quantizer); 2] =
    [("fast", quantize_with_offset), ("scalar", scalar::quantize_with_offset)];

/// Calls `check` with each 4-bit case: its name, its specification without double quantization,
/// and a look-up of its fields.
fn each_case(mut check: impl FnMut(&str, QuantSpec, &dyn Fn(&str) -> Option<Array>)) {
    let mut files: HashMap<String, HashMap<String, Array>> = HashMap::new();
    let mut count = 0;
    for case in cases() {
        let (Some(file), Some(quant_type)) = (case["file"].as_str(), case["quant_type"].as_str()) else {
            continue;
        };
        let file = &*files.entry(file.to_owned()).or_insert_with(|| arrays(file));
        let name = case["name"].as_str().unwrap();
        let spec = QuantSpec {
            quant_type: quant_type.parse().unwrap(),
            blocksize: case["blocksize"].as_u64().unwrap() as usize,
            double_quant: false,
        };
        check(name, spec, &|field| file.get(&format!("{name}/{field}")).cloned());
        count += 1;
    }
    assert_eq!(count, 120, "4-bit cases in the manifest");
}

/// Fails unless a tensor dequantizes to a reference in the reference's own element type.
fn assert_dequantizes(what: &str, tensor: &Quantized, reference: &Array) {
    let (ours, theirs): (Vec<f32>, Vec<f32>) = match reference.source_type() {
        SourceType::F32 => (tensor.dequantize(), reference.f32()),
        SourceType::F16 => (
            tensor.dequantize_f16().iter().map(|x| x.to_f32()).collect(),
            reference.u16().iter().map(|&b| f16::from_bits(b).to_f32()).collect(),
        ),
        SourceType::Bf16 => (
            tensor.dequantize_bf16().iter().map(|x| x.to_f32()).collect(),
            reference.u16().iter().map(|&b| bf16::from_bits(b).to_f32()).collect(),
        ),
    };
    assert_each(what, &ours, &theirs, equal);
}

#[test]
fn codes_and_plain_scales_are_the_same_bytes() {
    each_case(|name, spec, field| {
        let input = field("input").unwrap();
        for (which, quantize) in QUANTIZERS {
            let tensor = quantize(input.source(), spec, None).unwrap();
            tensor.check().unwrap();
            assert_eq!(tensor.spec(), spec);
            assert_eq!(tensor.packed, field("packed").unwrap().u8(), "{which} {name}: packed");
            let absmax = field("absmax").unwrap().f32();
            assert_each(&format!("{which} {name}: absmax"), &tensor.absmax.expand(), &absmax, same);
        }
    });
}

#[test]
fn plain_tensors_dequantize_to_the_same_values() {
    each_case(|name, spec, field| {
        let input = field("input").unwrap();
        let tensor = quantize(input.source(), spec).unwrap();
        let reference = field("dequant").unwrap();
        assert_eq!(reference.source_type(), input.source_type());
        assert_dequantizes(name, &tensor, &reference);
        assert_each(name, &scalar::dequantize(&tensor), &tensor.dequantize(), same);
    });
}

#[test]
fn double_quantization_from_the_stored_offset_gives_the_same_codes() {
    let mut nested_cases = 0;
    each_case(|name, spec, field| {
        let Some(reference) = field("nested.absmax") else {
            return;
        };
        nested_cases += 1;
        let input = field("input").unwrap();
        let stored = field("nested.offset").unwrap().f32()[0];
        let spec = QuantSpec { double_quant: true, ..spec };
        for (which, quantize) in QUANTIZERS {
            let what = format!("{which} {name}");
            let tensor = quantize(input.source(), spec, Some(stored)).unwrap();
            tensor.check().unwrap();
            assert_eq!(tensor.spec(), spec);
            assert_eq!(tensor.bytes(), halfbyte_quant::bytes_for(tensor.len, spec));
            let Absmax::Nested { codes, absmax, offset, .. } = &tensor.absmax else {
                panic!("{what}: the scales are not double-quantized");
            };
            assert_eq!(codes, reference.u8(), "{what}: codes");
            assert!(same(*offset, stored), "{what}: offset");
            let state2 = field("nested.state2_absmax").unwrap().f32();
            assert_each(&format!("{what}: nested absmax"), absmax, &state2, |a, b| ulps(a, b) <= 2);
            let expanded = field("nested.dequant_absmax").unwrap().f32();
            assert_each(&format!("{what}: scales"), &tensor.absmax.expand(), &expanded, same);
            assert_dequantizes(&what, &tensor, &field("dequant_nested").unwrap());
        }
    });
    assert_eq!(nested_cases, 114, "cases with double quantization");
}

/// torch sums the scales in single precision, in an order of its own; we take the mean in double
/// precision. It must be near, and must change next to no code.
#[test]
fn our_own_offset_is_within_two_ulp_and_changes_next_to_no_code() {
    let (mut total, mut different) = (0, 0);
    each_case(|name, spec, field| {
        let Some(reference) = field("nested.absmax") else {
            return;
        };
        let input = field("input").unwrap();
        let spec = QuantSpec { double_quant: true, ..spec };
        let tensor = quantize(input.source(), spec).unwrap();
        let Absmax::Nested { codes, offset, .. } = &tensor.absmax else {
            panic!("{name}: the scales are not double-quantized");
        };
        let stored = field("nested.offset").unwrap().f32()[0];
        if name.ends_with("_huge") {
            // The single-precision sum overflows; the mean itself does not.
            assert!(stored.is_infinite() && offset.is_finite(), "{name}: {stored} and {offset}");
            return;
        }
        assert!(ulps(*offset, stored) <= 2, "{name}: offset {offset:e}, torch has {stored:e}");
        total += codes.len();
        different += codes.iter().zip(reference.u8()).filter(|(a, b)| a != b).count();
    });
    assert!(total > 6000, "{total} codes compared");
    assert!(different * 1000 <= total, "{different} of {total} codes differ");
}

#[test]
fn every_byte_dequantizes_to_the_same_values() {
    for quant_type in [QuantType::Nf4, QuantType::Fp4] {
        let arrays = arrays(&format!("{quant_type}_dequant_all_bytes.safetensors"));
        let code = arrays["code"].f32();
        assert_each("codebook", quant_type.codebook(), &code, same);
        let tensor = Quantized {
            len: 512,
            blocksize: 64,
            quant_type,
            code: code.try_into().unwrap(),
            packed: arrays["packed"].u8().to_vec(),
            absmax: Absmax::Plain(arrays["absmax"].f32()),
        };
        tensor.check().unwrap();
        for dtype in ["f32", "f16", "bf16"] {
            let what = format!("{quant_type} to {dtype}");
            assert_dequantizes(&what, &tensor, &arrays[&format!("{dtype}/dequant")]);
        }
    }
}

#[test]
fn the_decision_points_are_the_reference_midpoints() {
    for quant_type in [QuantType::Nf4, QuantType::Fp4] {
        let arrays = arrays(&format!("{quant_type}_edge.safetensors"));
        let midpoints = arrays[&format!("{quant_type}_thresholds/midpoints")].f32();
        assert_each("midpoints", quant_type.midpoints(), &midpoints, same);
        // For NF4 they are also bit for bit the constants of bitsandbytes' CUDA kernels.
        if quant_type == QuantType::Nf4 {
            let cuda = arrays["nf4_thresholds/cuda_constants"].f32();
            assert_each("CUDA constants", quant_type.midpoints(), &cuda, same);
        }
    }
}
