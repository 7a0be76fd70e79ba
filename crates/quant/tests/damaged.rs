//! Quantized tensors and specifications that must be refused, and what the errors say.

use halfbyte_quant::{
    Absmax, QuantError, QuantSpec, QuantType, Quantized, Source, SourceType, quantize, scalar,
};

fn sound(double_quant: bool) -> Quantized {
    let values: Vec<f32> = (0..40_001).map(|i| (i as f32).cos()).collect();
    let spec = QuantSpec { double_quant, ..QuantSpec::default() };
    let tensor = quantize(Source::F32(&values), spec).unwrap();
    tensor.check().unwrap();
    tensor
}

/// The error after a change to a sound tensor.
fn damage(double_quant: bool, change: impl FnOnce(&mut Quantized)) -> String {
    let mut tensor = sound(double_quant);
    change(&mut tensor);
    tensor.check().unwrap_err().to_string()
}

#[test]
fn arrays_of_the_wrong_length_are_named() {
    let packed = "packed of an nf4 tensor of 40001 elements has 20000 entries where 20001 are \
                  needed: the checkpoint is damaged or its shape is wrong";
    assert_eq!(damage(true, |t| t.packed.truncate(20_000)), packed);

    let plain = damage(false, |t| {
        let Absmax::Plain(values) = &mut t.absmax else {
            panic!("not plain");
        };
        values.push(1.0);
    });
    assert!(plain.starts_with("absmax of an nf4"), "{plain}");
    assert!(plain.contains("has 627 entries where 626"), "{plain}");

    let codes = damage(true, |t| {
        let Absmax::Nested { codes, .. } = &mut t.absmax else {
            panic!("not nested");
        };
        codes.clear();
    });
    assert!(codes.starts_with("absmax codes of"), "{codes}");
    assert!(codes.contains("has 0 entries where 626"), "{codes}");

    let nested = damage(true, |t| {
        let Absmax::Nested { absmax, .. } = &mut t.absmax else {
            panic!("not nested");
        };
        absmax.pop();
    });
    assert!(nested.starts_with("nested absmax of"), "{nested}");
    assert!(nested.contains("has 2 entries where 3"), "{nested}");
}

#[test]
fn lengths_and_block_sizes_that_do_not_fit_are_refused() {
    assert!(damage(true, |t| t.len = usize::MAX).contains("packed of"));
    assert!(damage(true, |t| t.len = 0).contains("where 0 are needed"));
    assert!(damage(false, |t| t.blocksize = 128).contains("absmax of"));
    assert!(damage(true, |t| t.blocksize = 0).contains("blocksize 0 is not supported"));
    let zero = damage(true, |t| {
        let Absmax::Nested { blocksize, .. } = &mut t.absmax else {
            panic!("not nested");
        };
        *blocksize = 0;
    });
    assert!(zero.contains("nested blocksize is 0"), "{zero}");
}

#[test]
fn only_powers_of_two_from_32_to_4096_are_block_sizes() {
    for blocksize in [0, 1, 16, 31, 33, 63, 96, 4095, 8192, usize::MAX] {
        let spec = QuantSpec { blocksize, ..QuantSpec::default() };
        let refused = Err(QuantError::Blocksize(blocksize));
        assert_eq!(spec.validate(), refused.clone());
        assert_eq!(quantize(Source::F32(&[1.0]), spec).map(drop), refused.clone());
        assert_eq!(scalar::quantize(Source::F32(&[1.0]), spec).map(drop), refused);
    }
    for blocksize in [32, 64, 128, 256, 512, 1024, 2048, 4096] {
        let spec = QuantSpec { blocksize, ..QuantSpec::default() };
        assert_eq!(spec.validate(), Ok(()));
    }
}

#[test]
fn a_part_of_an_element_is_refused() {
    let error = Source::from_le_bytes(SourceType::F32, &[0; 6]).unwrap_err();
    assert_eq!(error, QuantError::PartialElement { bytes: 6, width: 4 });
    let error = Source::from_le_bytes(SourceType::Bf16, &[0; 5]).unwrap_err();
    assert_eq!(error, QuantError::PartialElement { bytes: 5, width: 2 });
}

#[test]
fn type_names_are_those_of_checkpoints() {
    for quant_type in [QuantType::Nf4, QuantType::Fp4] {
        assert_eq!(quant_type.to_string().parse(), Ok(quant_type));
    }
    let error = "int4".parse::<QuantType>().unwrap_err();
    assert_eq!(error.to_string(), "unknown quantization type \"int4\": use \"nf4\" or \"fp4\"");
}
