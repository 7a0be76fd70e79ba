//! The way back from codes to elements.

use crate::threads::each;
use crate::{Element, Quantized};

/// Elements of one parallel task: a multiple of every block size.
const CHUNK: usize = 1 << 16;

/// Dequantizes the whole tensor into `out`, `[tensor.len]`.
pub(crate) fn dequantize<T: Element>(tensor: &Quantized, out: &mut [T]) {
    let chunks = out.chunks_mut(CHUNK).enumerate();
    each(chunks, |(i, out)| dequantize_range(tensor, i * CHUNK, out));
}

/// Dequantizes elements `start .. start + out.len()`, which must exist.
pub(crate) fn dequantize_range<T: Element>(tensor: &Quantized, start: usize, out: &mut [T]) {
    let (mut at, mut out) = (start, out);
    while !out.is_empty() {
        let block = at / tensor.blocksize;
        let left = tensor.blocksize - at % tensor.blocksize;
        let (now, later) = out.split_at_mut(left.min(out.len()));
        // Sixteen products and roundings a block instead of one an element.
        let scale = tensor.absmax.get(block);
        let values = T::narrow_all(tensor.code.map(|code| code * scale));
        look_up(&tensor.packed, at, &values, now);
        at += now.len();
        out = later;
    }
}

/// Writes the values of codes `start .. start + out.len()`.
#[inline(always)]
fn look_up<T: Element>(packed: &[u8], start: usize, values: &[T; 16], out: &mut [T]) {
    let (first, rest) = out.split_at_mut(out.len().min(start % 2));
    if let [first] = first {
        *first = values[usize::from(packed[start / 2] & 15)];
    }
    let packed = &packed[start.div_ceil(2)..];
    let (pairs, last) = rest.as_chunks_mut::<2>();
    for (pair, &byte) in pairs.iter_mut().zip(packed) {
        *pair = [values[usize::from(byte >> 4)], values[usize::from(byte & 15)]];
    }
    if let [last] = last {
        *last = values[usize::from(packed[pairs.len()] >> 4)];
    }
}
