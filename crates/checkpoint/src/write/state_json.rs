//! The JSON of a quant state, byte for byte as Python's `json.dumps` writes it.

use crate::dtype::TensorDtype;
use halfbyte_quant::{NESTED_BLOCKSIZE, QuantSpec};

/// Letters that [`python_float`] needs at most: `-1.2345678901234567e-100`.
const LONGEST_FLOAT: usize = 24;

/// The quant state of a weight of `shape`, `[out, in]`; `offset` with double quantization.
pub(super) fn state_json(
    spec: QuantSpec,
    dtype: TensorDtype,
    shape: &[usize],
    offset: Option<f32>,
) -> String {
    let mut json = format!(
        r#"{{"quant_type": "{}", "blocksize": {}, "dtype": "{}", "shape": {shape:?}"#,
        spec.quant_type,
        spec.blocksize,
        torch_name(dtype),
    );
    if let Some(offset) = offset {
        let offset = python_float(offset.into());
        json += &format!(
            r#", "nested_blocksize": {NESTED_BLOCKSIZE}, "nested_dtype": "float32", "nested_offset": {offset}"#
        );
    }
    json.push('}');
    json
}

/// The most bytes that [`state_json`] can give: only the offset is not known beforehand.
pub(super) fn longest_state(spec: QuantSpec, dtype: TensorDtype, shape: &[usize]) -> usize {
    let known = state_json(spec, dtype, shape, spec.double_quant.then_some(0.0)).len();
    if spec.double_quant { known - python_float(0.0).len() + LONGEST_FLOAT } else { known }
}

/// PyTorch's name of a float type.
pub(super) fn torch_name(dtype: TensorDtype) -> &'static str {
    match dtype {
        TensorDtype::F16 => "float16",
        TensorDtype::BF16 => "bfloat16",
        TensorDtype::U8 => "uint8",
        TensorDtype::I8 => "int8",
        _ => "float32",
    }
}

/// A finite number as Python's `repr` writes it: the fewest digits that give it back, with an exponent of at
/// least two digits below 1e-4 and from 1e16 on.
fn python_float(value: f64) -> String {
    let scientific = format!("{value:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    match exponent.parse::<i32>() {
        Ok(exponent @ -4..16) => {
            let _ = exponent;
            // Rust's plain form has the fewest digits, too.
            let plain = value.to_string();
            if plain.contains('.') { plain } else { plain + ".0" }
        }
        Ok(exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
        }
        Err(_) => scientific,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_python_writes_them() {
        // Left: what `repr(value)` prints in Python 3.11.
        for (text, value) in [
            ("0.0", 0.0),
            ("-0.0", -0.0),
            ("1.0", 1.0),
            ("0.20667202770709991", f64::from(0.206_672_03_f32)),
            ("0.0001", 0.0001),
            ("1e-05", 0.00001),
            ("1.5e-07", 1.5e-7),
            ("1.401298464324817e-45", f64::from(f32::from_bits(1))),
            ("3.4028234663852886e+38", f64::from(f32::MAX)),
            ("1e+16", 1e16),
            ("1000000000000000.0", 1e15),
            ("123456.75", 123456.75),
        ] {
            assert_eq!(python_float(value), text);
            assert!(text.len() <= LONGEST_FLOAT);
        }
    }

    #[test]
    fn the_state_is_that_of_a_real_checkpoint() {
        let spec = QuantSpec::default();
        let json = state_json(spec, TensorDtype::F32, &[64, 160], Some(0.206_672_03));
        assert_eq!(
            json,
            r#"{"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [64, 160], "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.20667202770709991}"#
        );
        assert!(json.len() <= longest_state(spec, TensorDtype::F32, &[64, 160]));
        let plain = QuantSpec { double_quant: false, ..spec };
        assert_eq!(
            state_json(plain, TensorDtype::BF16, &[3, 5], None),
            r#"{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [3, 5]}"#
        );
    }
}
