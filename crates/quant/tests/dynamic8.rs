//! The 8-bit stage alone, against bitsandbytes' `quantize_blockwise` on a CPU.

mod fixture;

use fixture::{arrays, assert_each, cases, equal, same};
use halfbyte_quant::{DYNAMIC_MAP, quantize_dynamic};

#[test]
fn the_map_is_the_reference_map() {
    let arrays = arrays("dynamic8.safetensors");
    assert_each("map", &DYNAMIC_MAP, &arrays["code"].f32(), same);
    assert!(DYNAMIC_MAP.is_sorted());
    assert_eq!(DYNAMIC_MAP[127], 0.0);
    assert_eq!(DYNAMIC_MAP[255], 1.0);
}

#[test]
fn sweeps_take_the_same_codes() {
    let arrays = arrays("dynamic8.safetensors");
    let mut count = 0;
    for case in cases() {
        if case["file"] != "dynamic8.safetensors" {
            continue;
        }
        let name = case["name"].as_str().unwrap();
        let blocksize = case["blocksize"].as_u64().unwrap() as usize;
        let field = |field: &str| &arrays[&format!("{name}/{field}")];
        let (codes, maxima) = quantize_dynamic(&field("input").f32(), blocksize);
        assert_eq!(codes, field("codes").u8(), "{name}: codes");
        assert_each(&format!("{name}: absmax"), &maxima, &field("absmax").f32(), same);
        let values: Vec<f32> = codes
            .iter()
            .enumerate()
            .map(|(i, &code)| DYNAMIC_MAP[usize::from(code)] * maxima[i / blocksize])
            .collect();
        assert_each(&format!("{name}: dequant"), &values, &field("dequant").f32(), equal);
        count += 1;
    }
    assert_eq!(count, 6);
}

#[test]
fn values_that_are_not_numbers_take_code_zero() {
    let (codes, maxima) = quantize_dynamic(&[f32::NAN, 2.0, -2.0], 256);
    assert_eq!((codes, maxima), (vec![0, 255, 0], vec![2.0]));
    let (codes, maxima) = quantize_dynamic(&[f32::INFINITY, f32::NEG_INFINITY, f32::NAN], 256);
    assert_eq!((codes, maxima), (vec![0, 0, 0], vec![f32::INFINITY]));
    let (codes, maxima) = quantize_dynamic(&[f32::NAN; 3], 256);
    assert_eq!((codes, maxima), (vec![0, 0, 0], vec![0.0]));
    assert_eq!(quantize_dynamic(&[], 256), (vec![], vec![]));
}
