//! What the documentation promises for zeros, tiny values, infinities, NaN and empty tensors.

use halfbyte_quant::{Absmax, QuantSpec, QuantType, Quantized, Source, quantize, scalar};

/// A tensor quantized in blocks of 64 without double quantization, the same from fast and scalar code.
fn plain(values: &[f32], quant_type: QuantType) -> Quantized {
    let spec = QuantSpec { quant_type, blocksize: 64, double_quant: false };
    let tensor = quantize(Source::F32(values), spec).unwrap();
    let truth = scalar::quantize(Source::F32(values), spec).unwrap();
    assert_eq!(tensor.packed, truth.packed);
    tensor
}

const BOTH: [(QuantType, u8, u8); 2] = [(QuantType::Nf4, 7, 15), (QuantType::Fp4, 0, 3)];

#[test]
fn zeros_of_either_sign_take_the_code_of_zero() {
    for (quant_type, zero, _) in BOTH {
        for value in [0.0, -0.0] {
            let tensor = plain(&[value; 64], quant_type);
            assert_eq!(tensor.packed, [zero << 4 | zero; 32]);
            assert_eq!(tensor.absmax, Absmax::Plain(vec![0.0]));
            assert_eq!(tensor.dequantize(), [0.0; 64]);
        }
    }
}

#[test]
fn a_partial_block_of_zeros_stores_the_least_scale() {
    for (quant_type, zero, _) in BOTH {
        let tensor = plain(&[0.0; 67], quant_type);
        assert_eq!(tensor.packed, [zero << 4 | zero; 34]);
        assert_eq!(tensor.absmax, Absmax::Plain(vec![0.0, 1e-38]));
        assert_eq!(tensor.dequantize(), [0.0; 67]);
    }
}

#[test]
fn an_odd_tensor_ends_in_a_zero() {
    for (quant_type, zero, largest) in BOTH {
        let tensor = plain(&[2.5], quant_type);
        assert_eq!(tensor.packed, [largest << 4 | zero]);
        assert_eq!(tensor.dequantize(), [2.5]);
    }
}

#[test]
fn magnitudes_below_the_least_scale_lose_levels() {
    let mut block = [0.0; 64];
    block[..3].copy_from_slice(&[1e-39, -1e-39, 1e-41]);
    let tensor = plain(&block, QuantType::Nf4);
    // 1e-39 * 1e38 = 0.1 is nearest to code 8 (0.0796), -0.1 to code 6 (-0.0911).
    assert_eq!(tensor.packed[..2], [0x86, 0x77]);
    assert_eq!(tensor.absmax, Absmax::Plain(vec![1e-39]));

    block[..3].copy_from_slice(&[3.9e-40, -3.9e-40, 0.0]);
    assert_eq!(plain(&block, QuantType::Nf4).packed, [0x77; 32]);
}

#[test]
fn one_nan_takes_its_whole_block() {
    for (quant_type, _, largest) in BOTH {
        let mut values = [1.0; 192];
        values[70] = f32::NAN;
        let tensor = plain(&values, quant_type);
        assert_eq!(tensor.packed, [largest << 4 | largest; 96]);
        assert!(tensor.absmax.get(1).is_nan());
        let back = tensor.dequantize();
        assert_eq!(back[..64], [1.0; 64]);
        assert!(back[64..128].iter().all(|v| v.is_nan()));
        assert_eq!(back[128..], [1.0; 64]);
    }
}

#[test]
fn an_infinity_leaves_nothing_finite_in_its_block() {
    for (quant_type, zero, largest) in BOTH {
        let mut values = [1.0; 64];
        values[0] = f32::NEG_INFINITY;
        values[1] = f32::INFINITY;
        let tensor = plain(&values, quant_type);
        assert_eq!(tensor.packed[0], largest << 4 | largest);
        assert_eq!(tensor.packed[1..], [zero << 4 | zero; 31]);
        let back = tensor.dequantize();
        assert_eq!(back[..2], [f32::INFINITY; 2]);
        assert!(back[2..].iter().all(|v| v.is_nan()));
    }
}

#[test]
fn one_unusual_scale_takes_the_whole_tensor_with_double_quantization() {
    for unusual in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut values = [1.0; 192];
        values[100] = unusual;
        let tensor = quantize(Source::F32(&values), QuantSpec::default()).unwrap();
        tensor.check().unwrap();
        assert!(tensor.absmax.expand().iter().all(|scale| scale.is_nan()), "{unusual}");
    }
}

#[test]
fn large_scales_have_a_finite_mean() {
    let tensor = quantize(Source::F32(&[3e38; 640]), QuantSpec::default()).unwrap();
    assert_eq!(tensor.absmax.expand(), [3e38; 10]);
    assert_eq!(tensor.dequantize(), [3e38; 640]);
}

#[test]
fn an_empty_tensor_stays_empty() {
    for double_quant in [false, true] {
        let spec = QuantSpec { double_quant, ..QuantSpec::default() };
        let tensor = quantize(Source::F32(&[]), spec).unwrap();
        tensor.check().unwrap();
        assert_eq!((tensor.len, tensor.bytes()), (0, 0));
        assert!(tensor.absmax.is_empty());
        assert!(tensor.dequantize().is_empty());
        if let Absmax::Nested { offset, .. } = tensor.absmax {
            assert_eq!(offset, 0.0);
        }
    }
}
