//! Rows of weights in registers: multiplied at once, or decoded to a tile.
//!
//! Where the columns of a 4-bit matrix are a multiple of 32, every stretch of a row within a block is one
//! too (blocks are powers of two from 32 on). Sixteen bytes then decode to the sixteen even and the
//! sixteen odd elements of 32, and activations are put into that order once instead of weights every
//! time: [`arrange`]. Other matrices are decoded one by one into a tile in their own order.

use crate::matrix::{Codes, Scales, Tensor};
use crate::simd::Lanes;
use crate::store::float;
use halfbyte_backend::DType;
use halfbyte_quant::NESTED_BLOCKSIZE;

/// Whether rows of `cols` weights decode 32 at a time.
pub(crate) fn even_odd(tensor: &Tensor, cols: usize) -> bool {
    matches!(tensor, Tensor::Quant(_)) && cols.is_multiple_of(32)
}

/// Puts every 32 values into the order in which codes decode: even elements, then odd ones.
pub(crate) fn arrange(x: &mut [f32]) {
    for group in x.as_chunks_mut::<32>().0 {
        let copy = *group;
        for i in 0..16 {
            group[i] = copy[2 * i];
            group[16 + i] = copy[2 * i + 1];
        }
    }
}

/// `codes[start .. start + cols] · x[m]` for `M` rows of arranged activations, each `[cols]`. `start` and
/// `cols` are multiples of 32.
#[inline(always)]
pub(crate) fn quant_dot<L: Lanes, const M: usize>(
    lanes: L,
    codes: &Codes,
    start: usize,
    cols: usize,
    x: [&[f32]; M],
) -> [f32; M] {
    match &codes.scales {
        Scales::Plain(values) => scaled_dot(
            lanes,
            codes,
            start,
            cols,
            x,
            #[inline(always)]
            |block| values[block],
        ),
        Scales::Mapped(values) => {
            let values: &[u8] = values;
            scaled_dot(
                lanes,
                codes,
                start,
                cols,
                x,
                #[inline(always)]
                |block| float(values, block),
            )
        }
        Scales::Nested { codes: scales, absmax, map, offset } => {
            let scales: &[u8] = scales;
            scaled_dot(
                lanes,
                codes,
                start,
                cols,
                x,
                #[inline(always)]
                |block| map[usize::from(scales[block])] * absmax[block / NESTED_BLOCKSIZE] + offset,
            )
        }
    }
}

/// [`quant_dot`] for one kind of scales: one look-up of a scale serves 64 weights where it can.
#[inline(always)]
fn scaled_dot<L: Lanes, const M: usize>(
    lanes: L,
    codes: &Codes,
    start: usize,
    cols: usize,
    x: [&[f32]; M],
    scale: impl Fn(usize) -> f32,
) -> [f32; M] {
    if codes.blocksize >= 64 && cols.is_multiple_of(64) && start.is_multiple_of(64) {
        grouped_dot::<L, M, 2>(lanes, codes, start, cols, x, scale)
    } else {
        grouped_dot::<L, M, 1>(lanes, codes, start, cols, x, scale)
    }
}

/// [`scaled_dot`] in steps of `32 * G` weights, each of one scale.
#[inline(always)]
fn grouped_dot<L: Lanes, const M: usize, const G: usize>(
    lanes: L,
    codes: &Codes,
    start: usize,
    cols: usize,
    x: [&[f32]; M],
    scale: impl Fn(usize) -> f32,
) -> [f32; M] {
    let packed: &[[u8; 16]] = codes.packed[start / 2..][..cols / 2].as_chunks().0;
    let packed: &[[[u8; 16]; G]] = packed.as_chunks().0;
    // Loops instead of `array::from_fn`: its closures are compiled without these instructions.
    let mut groups: [&[[[f32; 32]; G]]; M] = [&[]; M];
    for m in 0..M {
        let x: &[[f32; 32]] = x[m].as_chunks().0;
        groups[m] = &x.as_chunks().0[..packed.len()];
    }
    let shift = codes.blocksize.trailing_zeros();
    // Sums that do not wait for each other: with one row there are registers to spare.
    let chains = if M == 1 && L::GROUP > 2 { 4 } else { 2 };
    let mut sums = [[lanes.splat(0.0); 4]; M];
    for (k, packed) in packed.iter().enumerate() {
        let book = lanes.book(&codes.code, scale((start + k * 32 * G) >> shift));
        for (g, packed) in packed.iter().enumerate() {
            let (even, odd) = lanes.look_up(packed, book);
            for m in 0..M {
                let (x_even, x_odd) = halves(&groups[m][k][g]);
                let (i, j) = (2 * g % chains, (2 * g + 1) % chains);
                sums[m][i] = lanes.mul_add(even, lanes.load(x_even), sums[m][i]);
                sums[m][j] = lanes.mul_add(odd, lanes.load(x_odd), sums[m][j]);
            }
        }
    }
    let mut totals = [0.0; M];
    for (total, [a, b, c, d]) in totals.iter_mut().zip(sums) {
        *total = lanes.sum(lanes.add(lanes.add(a, c), lanes.add(b, d)));
    }
    totals
}

/// Decodes `codes[start .. start + out.len()]` in the arranged order.
#[inline(always)]
fn quant_row<L: Lanes>(lanes: L, codes: &Codes, start: usize, out: &mut [f32]) {
    let shift = codes.blocksize.trailing_zeros();
    let mut at = start;
    let groups = out.as_chunks_mut::<32>().0;
    for (packed, out) in codes.packed[start / 2..].as_chunks::<16>().0.iter().zip(groups) {
        let book = lanes.book(&codes.code, codes.scale(at >> shift));
        let (high, low) = lanes.look_up(packed, book);
        let (even, odd) = out.split_at_mut(16);
        if let (Some(even), Some(odd)) = (even.first_chunk_mut(), odd.first_chunk_mut()) {
            lanes.store(high, even);
            lanes.store(low, odd);
        }
        at += 32;
    }
}

#[inline(always)]
fn halves(group: &[f32; 32]) -> (&[f32; 16], &[f32; 16]) {
    let pair: &[[f32; 16]] = group.as_chunks().0;
    (&pair[0], &pair[1])
}

/// Decodes row `row` of a tensor into a row of a tile, `[padded(cols)]`: arranged if
/// [`even_odd`], in its own order otherwise. The padding becomes zero.
#[inline(always)]
pub(crate) fn decode_row<L: Lanes>(lanes: L, tensor: &Tensor, row: usize, cols: usize, out: &mut [f32]) {
    let (out, padding) = out.split_at_mut(cols);
    padding.fill(0.0);
    match tensor {
        Tensor::Quant(codes) if cols.is_multiple_of(32) => quant_row(lanes, codes, row * cols, out),
        Tensor::Quant(codes) => {
            for (i, value) in out.iter_mut().enumerate() {
                *value = codes.element(row * cols + i);
            }
        }
        Tensor::Interleaved(held) => {
            for (i, value) in out.iter_mut().enumerate() {
                *value = held.element(row * cols + i);
            }
        }
        Tensor::Bytes(held) => {
            for (i, value) in out.iter_mut().enumerate() {
                *value = held.element(row * cols + i);
            }
        }
        Tensor::Dense { dtype, bytes } => {
            let size = dtype.size() as usize;
            widen(lanes, *dtype, &bytes[row * cols * size..][..cols * size], out);
        }
    }
}

/// Widens a row of dense weights, `[cols]`.
#[inline(always)]
pub(crate) fn widen<L: Lanes>(lanes: L, dtype: DType, bytes: &[u8], out: &mut [f32]) {
    let whole = out.len() / 16 * 16;
    let (body, tail) = out.split_at_mut(whole);
    let body = body.as_chunks_mut::<16>().0;
    match dtype {
        DType::F32 => {
            bytes.as_chunks().0.iter().zip(body).for_each(|(b, out)| lanes.store(lanes.load_f32(b), out))
        }
        DType::F16 => {
            bytes.as_chunks().0.iter().zip(body).for_each(|(b, out)| lanes.store(lanes.load_f16(b), out))
        }
        DType::Bf16 => {
            bytes.as_chunks().0.iter().zip(body).for_each(|(b, out)| lanes.store(lanes.load_bf16(b), out))
        }
    }
    for (i, value) in tail.iter_mut().enumerate() {
        *value = crate::matrix::element(dtype, bytes, whole + i);
    }
}

/// `row · x[m]` for a row of dense weights, `[cols]`, and `M` rows of activations, each `[padded(cols)]`.
#[inline(always)]
pub(crate) fn dense_dot<L: Lanes, const M: usize>(
    lanes: L,
    dtype: DType,
    bytes: &[u8],
    x: [&[f32]; M],
) -> [f32; M] {
    match dtype {
        DType::F32 => dense_dot_of(
            lanes,
            dtype,
            bytes,
            x,
            #[inline(always)]
            |b: &[u8; 64]| lanes.load_f32(b),
        ),
        DType::F16 => dense_dot_of(
            lanes,
            dtype,
            bytes,
            x,
            #[inline(always)]
            |b: &[u8; 32]| lanes.load_f16(b),
        ),
        DType::Bf16 => dense_dot_of(
            lanes,
            dtype,
            bytes,
            x,
            #[inline(always)]
            |b: &[u8; 32]| lanes.load_bf16(b),
        ),
    }
}

#[inline(always)]
fn dense_dot_of<L: Lanes, const M: usize, const BYTES: usize>(
    lanes: L,
    dtype: DType,
    bytes: &[u8],
    x: [&[f32]; M],
    load: impl Fn(&[u8; BYTES]) -> L::V,
) -> [f32; M] {
    let (body, tail) = bytes.as_chunks::<BYTES>();
    let mut chunks: [&[[f32; 16]]; M] = [&[]; M];
    for m in 0..M {
        chunks[m] = x[m].as_chunks().0;
    }
    let (pairs, last) = body.as_chunks::<2>();
    let mut sums = [[lanes.splat(0.0); 2]; M];
    for (k, pair) in pairs.iter().enumerate() {
        let w = [load(&pair[0]), load(&pair[1])];
        for m in 0..M {
            sums[m][0] = lanes.mul_add(w[0], lanes.load(&chunks[m][2 * k]), sums[m][0]);
            sums[m][1] = lanes.mul_add(w[1], lanes.load(&chunks[m][2 * k + 1]), sums[m][1]);
        }
    }
    if let Some(last) = last.first() {
        let w = load(last);
        for m in 0..M {
            sums[m][0] = lanes.mul_add(w, lanes.load(&chunks[m][2 * pairs.len()]), sums[m][0]);
        }
    }
    let mut totals = [0.0; M];
    for (total, [a, b]) in totals.iter_mut().zip(sums) {
        *total = lanes.sum(lanes.add(a, b));
    }
    for (total, x) in totals.iter_mut().zip(chunks) {
        for (i, x) in
            x[body.len()..].as_flattened().iter().take(tail.len() / dtype.size() as usize).enumerate()
        {
            *total += crate::matrix::element(dtype, tail, i) * x;
        }
    }
    totals
}
