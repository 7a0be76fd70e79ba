//! The linear product: every weight is read once for all rows of a pass.
//!
//! A few rows (decoding) are multiplied with weights in the registers that these were decoded into; twice
//! [`Lanes::GROUP`] is as far as that pays. More rows (prompts) share a tile of decoded weights in the
//! cache, which each thread has of its own.

use super::bytes_linear;
use super::decode::{self, even_odd};
use super::exp::exp;
use super::tile::Panel;
use crate::bound::{Epilogue, Product};
use crate::layout::{padded, tile_rows};
use crate::matrix::{Matrix, Tensor};
use crate::simd::Lanes;
use crate::team::Team;
use halfbyte_backend::Act;
use std::sync::{Mutex, PoisonError};

/// Floats of activations that a job keeps in the first-level cache while its weights stream by.
const STRIP_FLOATS: usize = 4096;

/// Layer rows in one job of a direct product; even, so that gate and up stay together.
pub(super) const JOB_ROWS: usize = 16;

/// See [`Kernels::product`](crate::program::Kernels::product).
pub(crate) fn product<L: Lanes>(
    lanes: L,
    team: &Team,
    product: Product<'_>,
    x: &mut [f32],
    y: &mut [f32],
    tiles: &[Mutex<Vec<f32>>],
) {
    let Product { weight, next, epilogue, rows } = product;
    bytes_linear::expect(team, next);
    let columns = padded(weight.cols);
    // All segments have one format.
    let arranged = even_odd(&weight.tensors[0], weight.cols);
    if arranged && rows == 1 {
        decode::arrange(x);
    } else if arranged {
        team.chunks(x, columns, |_, _, x| decode::arrange(x));
    }
    let x = &*x;
    let direct = arranged || matches!(weight.tensors[0], Tensor::Dense { .. });
    if direct && rows <= 2 * L::GROUP {
        team.chunks(y, JOB_ROWS * rows, |_, job, y| {
            // What a job reads stays near, so that its later groups of rows read it from the cache.
            for (group, x) in x.chunks(L::GROUP * columns).enumerate() {
                let at = group * L::GROUP;
                lanes.run(
                    #[inline(always)]
                    || match x.len() / columns {
                        1 => direct_rows::<L, 1>(lanes, weight, job * JOB_ROWS, x, at, rows, y),
                        2 => direct_rows::<L, 2>(lanes, weight, job * JOB_ROWS, x, at, rows, y),
                        3 => direct_rows::<L, 3>(lanes, weight, job * JOB_ROWS, x, at, rows, y),
                        _ => direct_rows::<L, 4>(lanes, weight, job * JOB_ROWS, x, at, rows, y),
                    },
                );
            }
            lanes.run(
                #[inline(always)]
                || finish(lanes, weight, &epilogue, job * JOB_ROWS, rows, y),
            );
        });
        return;
    }
    let job_rows = tile_rows(columns);
    team.chunks(y, job_rows * rows, |thread, job, y| {
        let mut tile = tiles[thread].lock().unwrap_or_else(PoisonError::into_inner);
        let first = job * job_rows;
        let tile = &mut tile[..y.len() / rows * columns];
        lanes.run(
            #[inline(always)]
            || {
                for (j, tile) in tile.chunks_exact_mut(columns).enumerate() {
                    let (tensor, at) = weight.source(first + j);
                    decode::decode_row(lanes, tensor, at, weight.cols, tile);
                }
                lanes.multiply(Panel { columns, weights: tile, inputs: x, rows }, y);
            },
        );
        lanes.run(
            #[inline(always)]
            || finish(lanes, weight, &epilogue, first, rows, y),
        );
    });
}

/// Layer rows from `first` on times the `M` rows of `x`, into columns from `at_row` on of `y`, `[job rows, rows]`.
#[inline(always)]
fn direct_rows<L: Lanes, const M: usize>(
    lanes: L,
    weight: &Matrix,
    first: usize,
    x: &[f32],
    at_row: usize,
    rows: usize,
    y: &mut [f32],
) {
    let (cols, columns) = (weight.cols, padded(weight.cols));
    // A multiple of every width that kernels step by.
    let strip = (STRIP_FLOATS / M).next_multiple_of(64);
    for left in (0..cols).step_by(strip) {
        let right = cols.min(left + strip);
        let mut strips: [&[f32]; M] = [&[]; M];
        for (strip_of, x) in strips.iter_mut().zip(x.chunks_exact(columns)) {
            *strip_of = &x[left..columns.min(left + strip)];
        }
        for (j, y) in y.chunks_exact_mut(rows).enumerate() {
            let (tensor, at) = weight.source(first + j);
            let start = at * cols + left;
            let sums = match tensor {
                // These kernels are never asked for these: `bytes_linear` takes them.
                Tensor::Interleaved(_) | Tensor::Bytes(_) => [0.0; M],
                Tensor::Quant(codes) => decode::quant_dot(lanes, codes, start, right - left, strips),
                Tensor::Dense { dtype, bytes } => {
                    let size = dtype.size() as usize;
                    decode::dense_dot(lanes, *dtype, &bytes[start * size..][..(right - left) * size], strips)
                }
            };
            for (y, sum) in y[at_row..].iter_mut().zip(sums) {
                *y = if left == 0 { sum } else { *y + sum };
            }
        }
    }
}

/// Adds biases and applies the epilogue to layer rows from `first` on: `y` is `[job rows, rows]`.
#[inline(always)]
pub(super) fn finish<L: Lanes>(
    _lanes: L,
    weight: &Matrix,
    epilogue: &Epilogue,
    first: usize,
    rows: usize,
    y: &mut [f32],
) {
    if !weight.bias.is_empty() {
        for (y, bias) in y.chunks_exact_mut(rows).zip(&weight.bias[first..]) {
            y.iter_mut().for_each(|value| *value += bias);
        }
    }
    if epilogue.gated && rows == 1 {
        // Decoding: gates side by side become vectors.
        for pairs in y.as_chunks_mut::<2>().0.chunks_mut(16) {
            let mut gates = [0.0; 16];
            gates.iter_mut().zip(&*pairs).for_each(|(gate, pair)| *gate = pair[0]);
            activate(epilogue.act, &mut gates);
            pairs.iter_mut().zip(gates).for_each(|(pair, gate)| pair[0] = gate * pair[1]);
        }
    } else if epilogue.gated {
        for pair in y.chunks_exact_mut(2 * rows) {
            let (gate, up) = pair.split_at_mut(rows);
            activate(epilogue.act, gate);
            gate.iter_mut().zip(up).for_each(|(gate, up)| *gate *= *up);
        }
    } else {
        activate(epilogue.act, y);
    }
    finish_values(epilogue, y);
}

/// What follows on the activation.
#[inline(always)]
pub(super) fn finish_values(epilogue: &Epilogue, y: &mut [f32]) {
    if epilogue.scale != 1.0 {
        y.iter_mut().for_each(|value| *value *= epilogue.scale);
    }
    if let Some(cap) = epilogue.softcap {
        y.iter_mut().for_each(|value| *value = cap * (*value / cap).tanh());
    }
}

#[inline(always)]
pub(super) fn activate(act: Act, values: &mut [f32]) {
    let each = |f: fn(f32) -> f32, values: &mut [f32]| values.iter_mut().for_each(|value| *value = f(*value));
    match act {
        Act::Identity => {}
        Act::Silu => {
            // A loop instead of `each`: it becomes vectors.
            for value in values {
                *value /= 1.0 + exp(-*value);
            }
        }
        Act::Gelu => each(|x| 0.5 * x * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2)), values),
        Act::GeluTanh => each(
            |x| {
                const FACTOR: f32 = 0.797_884_6; // sqrt(2 / pi)
                0.5 * x * (1.0 + (FACTOR * (x + 0.044715 * x * x * x)).tanh())
            },
            values,
        ),
        Act::Relu => each(|x| x.max(0.0), values),
        Act::Tanh => each(f32::tanh, values),
    }
}

/// Results of a gated product that a thread puts in place at a time.
const PLACED: usize = 1024;

/// See [`Kernels::place`](crate::program::Kernels::place).
pub(crate) fn place(
    team: &Team,
    y: &[f32],
    step: usize,
    at: usize,
    residual: Option<&[f32]>,
    rows: usize,
    out: &mut [f32],
) {
    let width = out.len() / rows;
    let row = |row: usize, out: &mut [f32]| {
        let residual = residual.map(|all| if all.is_empty() { all } else { &all[row * width + at..] });
        let (y, out) = (&y[row..], &mut out[at..]);
        // The steps of decoding as constants: whole vectors instead of values one by one.
        match step * rows {
            1 => place_row(y.iter(), residual, out),
            2 => place_row(y.chunks(2).map(|pair| &pair[0]), residual, out),
            step => place_row(y.iter().step_by(step), residual, out),
        }
    };
    if rows == 1 && step == 2 && residual.is_none() {
        // A gated product's row is the longest of a layer, and lies in the caches of those who made it.
        let pairs = y.as_chunks::<2>().0;
        team.chunks(&mut out[at..at + pairs.len()], PLACED, |_, job, out| {
            out.iter_mut().zip(&pairs[job * PLACED..]).for_each(|(out, pair)| *out = pair[0]);
        });
    } else if rows == 1 {
        row(0, out);
    } else {
        team.chunks(out, width, |_, index, out| row(index, out));
    }
}

/// One row of [`place`].
fn place_row<'a>(y: impl Iterator<Item = &'a f32>, residual: Option<&[f32]>, out: &mut [f32]) {
    match residual {
        None => out.iter_mut().zip(y).for_each(|(out, value)| *out = *value),
        Some([]) => out.iter_mut().zip(y).for_each(|(out, value)| *out += value),
        Some(residual) => {
            out.iter_mut().zip(y).zip(residual).for_each(|((out, value), residual)| *out = residual + value);
        }
    }
}
