//! Canonical bytes to device bytes: nibbles permuted, rows padded.

use crate::kernels::GROUP;
use halfbyte_quant::Quantized;

/// Appends row `row` of a matrix of `cols` columns in 4-bit codes, padded to whole groups with code 0.
///
/// Canonical bytes hold element `2i` in the high nibble of byte `i`. Here the low nibbles of a word's bytes
/// are its elements 0..4 and the high nibbles 4..8, so that a kernel unpacks with one mask and one shift.
pub(crate) fn codes_row(tensor: &Quantized, row: usize, cols: usize, out: &mut Vec<u8>) {
    let start = row * cols;
    let words = cols.div_ceil(GROUP) * (GROUP / 8);
    for word in 0..words {
        let column = word * 8;
        let byte = (start + column) / 2;
        let whole = (start.is_multiple_of(2) && column + 8 <= cols)
            .then(|| tensor.packed.get(byte..byte + 4))
            .flatten();
        let bits = if let Some(&[a, b, c, d]) = whole {
            permute(u32::from_le_bytes([a, b, c, d]))
        } else {
            (column..cols.min(column + 8)).fold(0, |bits, column| {
                let element = start + column;
                let byte = tensor.packed.get(element / 2).copied().unwrap_or(0);
                let code = byte >> (4 * (1 - element % 2)) & 15;
                let place = column % 8;
                bits | u32::from(code) << (place % 4 * 8 + place / 4 * 4)
            })
        };
        out.extend_from_slice(&bits.to_le_bytes());
    }
}

/// Eight codes of a canonical word in the order of the device.
fn permute(word: u32) -> u32 {
    let even = word >> 4 & 0x0F0F_0F0F; // elements 0, 2, 4, 6 in bytes 0..4
    let odd = word & 0x0F0F_0F0F; // elements 1, 3, 5, 7
    let element = |i: u32| [even, odd][i as usize % 2] >> (i / 2 * 8) & 15;
    (0..8).fold(0, |bits, i| bits | element(i) << (i % 4 * 8 + i / 4 * 4))
}

/// Appends row `row` of a dense matrix, padded to whole groups with zeros.
pub(crate) fn dense_row(bytes: &[u8], size: usize, row: usize, cols: usize, out: &mut Vec<u8>) {
    let end = out.len() + cols.next_multiple_of(GROUP) * size;
    let from = row * cols * size;
    out.extend_from_slice(bytes.get(from..from + cols * size).unwrap_or(&[]));
    out.resize(end, 0);
}

/// `[rows, width]` to `[rows, width]` padded to whole groups with zeros.
pub(crate) fn pad_rows(values: &[f32], width: usize) -> Vec<f32> {
    let padded = width.next_multiple_of(GROUP);
    let mut out = Vec::with_capacity(values.len() / width.max(1) * padded);
    for row in values.chunks(width.max(1)) {
        out.extend_from_slice(row);
        out.resize(out.len().next_multiple_of(GROUP), 0.0);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use halfbyte_quant::{QuantSpec, Source, quantize};

    #[test]
    fn every_code_lands_in_its_nibble() {
        // Even and odd starts, whole words and tails.
        for cols in [8, 13, 32, 45, 64, 70] {
            let rows = 5;
            let values: Vec<f32> = (0..rows * cols).map(|i| ((i * 37 % 101) as f32 - 50.0) / 9.0).collect();
            let tensor = quantize(Source::F32(&values), QuantSpec::default()).unwrap();
            let mut out = Vec::new();
            for row in 0..rows {
                codes_row(&tensor, row, cols, &mut out);
            }
            let padded = cols.next_multiple_of(GROUP);
            assert_eq!(out.len(), rows * padded / 2);
            for row in 0..rows {
                for column in 0..padded {
                    let word = (row * padded + column) / 8;
                    let place = column % 8;
                    let byte = out[word * 4 + place % 4];
                    let code = byte >> (place / 4 * 4) & 15;
                    let element = row * cols + column;
                    let expected = if column < cols {
                        tensor.packed[element / 2] >> (4 * (1 - element % 2)) & 15
                    } else {
                        0
                    };
                    assert_eq!(code, expected, "row {row}, column {column} of {cols}");
                }
            }
        }
    }
}
