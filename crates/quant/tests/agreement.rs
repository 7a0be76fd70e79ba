//! The fast code against the scalar definition, on any length, block size, type and values.

use half::{bf16, f16};
use halfbyte_quant::{
    Absmax, QuantSpec, QuantType, Quantized, Source, SourceType, bytes_for, quantize, scalar,
};
use proptest::prelude::*;

fn specs() -> impl Strategy<Value = QuantSpec> {
    let types = prop_oneof![Just(QuantType::Nf4), Just(QuantType::Fp4)];
    (types, 5u32..=12, any::<bool>()).prop_map(|(quant_type, log, double_quant)| QuantSpec {
        quant_type,
        blocksize: 1 << log,
        double_quant,
    })
}

/// Lengths around multiples of strips, blocks and of the chunks that threads share.
fn lengths() -> impl Strategy<Value = usize> {
    prop_oneof![
        4 => 0usize..300,
        3 => 0usize..9000,
        1 => 65_500usize..65_700,
        1 => 131_000usize..140_000,
    ]
}

/// Ordinary values: a length and a seed make a tensor of several magnitudes and some zeros.
fn ordinary(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed | 1;
    let mut next = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let scales = [1.0, 0.02, 3e-3, 0.0, 1e4, 7e-6];
    (0..len).map(|i| next() * next() * scales[i / 97 % scales.len()]).collect()
}

/// All bytes of a result; NaN scales compare by their bits too.
fn bytes(tensor: &Quantized) -> (usize, Vec<u8>, Vec<u8>, Vec<u32>) {
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    match &tensor.absmax {
        Absmax::Plain(values) => (tensor.len, tensor.packed.clone(), vec![], bits(values)),
        Absmax::Nested { codes, absmax, offset, .. } => {
            let mut words = bits(absmax);
            // The sign and payload of a NaN that arithmetic makes are not specified.
            words.push(if offset.is_nan() { 0x7fc0_0000 } else { offset.to_bits() });
            (tensor.len, tensor.packed.clone(), codes.clone(), words)
        }
    }
}

fn assert_agreement(source: Source<'_>, spec: QuantSpec) {
    let fast = quantize(source, spec).unwrap();
    let slow = scalar::quantize(source, spec).unwrap();
    fast.check().unwrap();
    assert_eq!(fast.len, source.len());
    assert_eq!(fast.bytes(), bytes_for(source.len(), spec));
    assert_eq!(bytes(&fast), bytes(&slow), "{spec:?}, {} elements", source.len());

    let bits = |values: Vec<f32>| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let reference = scalar::dequantize(&fast);
    let half: Vec<u16> = reference.iter().map(|&v| f16::from_f32(v).to_bits()).collect();
    let brain: Vec<u16> = reference.iter().map(|&v| bf16::from_f32(v).to_bits()).collect();
    assert_eq!(bits(fast.dequantize()), bits(reference));
    assert!(fast.dequantize_f16().iter().map(|v| v.to_bits()).eq(half));
    assert!(fast.dequantize_bf16().iter().map(|v| v.to_bits()).eq(brain));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn ordinary_tensors(spec in specs(), len in lengths(), seed: u64) {
        let wide = ordinary(len, seed);
        let half: Vec<f16> = wide.iter().map(|&v| f16::from_f32(v)).collect();
        let brain: Vec<bf16> = wide.iter().map(|&v| bf16::from_f32(v)).collect();
        assert_agreement(Source::F32(&wide), spec);
        assert_agreement(Source::F16(&half), spec);
        assert_agreement(Source::Bf16(&brain), spec);
    }

    #[test]
    fn any_single_bits(spec in specs(), bits in prop::collection::vec(any::<u32>(), 0..5000)) {
        let values: Vec<f32> = bits.iter().map(|&b| f32::from_bits(b)).collect();
        assert_agreement(Source::F32(&values), spec);
    }

    #[test]
    fn any_half_bits(spec in specs(), bits in prop::collection::vec(any::<u16>(), 0..5000)) {
        let half: Vec<f16> = bits.iter().map(|&b| f16::from_bits(b)).collect();
        let brain: Vec<bf16> = bits.iter().map(|&b| bf16::from_bits(b)).collect();
        assert_agreement(Source::F16(&half), spec);
        assert_agreement(Source::Bf16(&brain), spec);
    }

    /// Single-precision values of one block within a few decades of each other, at any scale,
    /// subnormal and huge ones included, and none of them special.
    #[test]
    fn any_scale(spec in specs(), exponent in 0u32..250, seed: u64, len in 1usize..3000) {
        let unit = f32::from_bits(exponent << 23 | 0x0012_3456);
        let values: Vec<f32> = ordinary(len, seed).iter().map(|v| v * 1e-4 * unit).collect();
        assert_agreement(Source::F32(&values), spec);
    }

    #[test]
    fn unaligned_bytes_are_read_as_the_same_elements(
        spec in specs(),
        bits in prop::collection::vec(any::<u16>(), 0..2000),
        shift in 0usize..8,
    ) {
        let mut buffer = vec![0; shift];
        buffer.extend(bits.iter().flat_map(|b| b.to_le_bytes()));
        let half: Vec<f16> = bits.iter().map(|&b| f16::from_bits(b)).collect();
        let brain: Vec<bf16> = bits.iter().map(|&b| bf16::from_bits(b)).collect();
        for (dtype, typed) in [
            (SourceType::F16, Source::F16(&half)),
            (SourceType::Bf16, Source::Bf16(&brain)),
        ] {
            let source = Source::from_le_bytes(dtype, &buffer[shift..]).unwrap();
            prop_assert_eq!(source.dtype(), dtype);
            assert_agreement(source, spec);
            let explicit = Source::Bytes { dtype, bytes: &buffer[shift..] };
            let expected = bytes(&scalar::quantize(typed, spec).unwrap());
            prop_assert_eq!(bytes(&quantize(source, spec).unwrap()), expected.clone());
            prop_assert_eq!(bytes(&quantize(explicit, spec).unwrap()), expected);
        }
        let whole = buffer.len() - (buffer.len() - shift) % 4;
        let wide = Source::from_le_bytes(SourceType::F32, &buffer[shift..whole]).unwrap();
        assert_agreement(wide, spec);
    }

    #[test]
    fn a_range_is_the_same_as_the_whole(
        spec in specs(), len in 1usize..20_000, seed: u64, a: prop::sample::Index, b: prop::sample::Index,
    ) {
        let tensor = quantize(Source::F32(&ordinary(len, seed)), spec).unwrap();
        let (a, b) = (a.index(len + 1), b.index(len + 1));
        let (start, end) = (a.min(b), a.max(b));
        let mut part = vec![f32::NAN; end - start];
        tensor.dequantize_range(start, &mut part);
        prop_assert_eq!(&part, &tensor.dequantize()[start..end]);
        let mut half = vec![f16::NAN; end - start];
        tensor.dequantize_range_to(start, &mut half);
        prop_assert_eq!(&half, &tensor.dequantize_f16()[start..end]);
    }
}
