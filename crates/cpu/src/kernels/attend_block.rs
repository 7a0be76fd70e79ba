//! One block of keys and values: scores, the softmax so far, and the values that it weighs.

use super::attend::Query;
use super::exp::exp;
use super::records::{Records, kv_type, sixteen, tail, whole};
use crate::bound::AttendView;
use crate::simd::Lanes;
use halfbyte_backend::kv::KV_BLOCK;
use std::ops::Range;

/// Keys whose scores are held at once.
pub(super) const KEYS: usize = 64;

/// What `Q` queries have seen so far.
#[derive(Clone, Copy)]
pub(super) struct Softmax<const Q: usize> {
    /// The largest score.
    largest: [f32; Q],
    /// The sum of all weights, each relative to the largest.
    pub totals: [f32; Q],
}

impl<const Q: usize> Softmax<Q> {
    /// Nothing yet.
    pub const NEW: Self = Self { largest: [f32::NEG_INFINITY; Q], totals: [0.0; Q] };
}

/// `Q` queries over a block of at most [`KEYS`] keys, with which `keys` and `values` begin; `out` is `[Q, head_dim]`,
/// still to be divided by the totals.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the state of one softmax, in registers")]
pub(super) fn attend_block<L: Lanes, const Q: usize, const T: u8>(
    lanes: L,
    view: &AttendView<'_>,
    queries: &[Query; Q],
    softmax: &mut Softmax<Q>,
    keys: &Records<'_>,
    values: &Records<'_>,
    block: Range<usize>,
    qkv: &[f32],
    out: &mut [&mut [f32]; Q],
) {
    let dim = view.step.head_dim;
    let (first, count) = (block.start, block.len());
    let mut vectors: [&[f32]; Q] = [&[]; Q];
    for (vector, query) in vectors.iter_mut().zip(queries) {
        *vector = &qkv[query.at..][..dim];
    }
    // Beyond `count`, nothing is seen.
    let mut weights = [[f32::NEG_INFINITY; Q]; KEYS];
    let seen = &mut weights[..count];
    scores::<L, Q, T>(lanes, vectors, keys, seen);
    match view.step.softcap {
        None => {
            for score in seen.as_flattened_mut() {
                *score *= view.step.scale;
            }
        }
        Some(cap) => {
            for score in seen.as_flattened_mut() {
                *score = cap * (*score * view.step.scale / cap).tanh();
            }
        }
    }
    for (q, query) in queries.iter().enumerate() {
        let (from, until) = query.visible;
        if from > first || until < first + count {
            let hidden = |i: &usize| !(from..until).contains(&(first + i));
            (0..count).filter(hidden).for_each(|i| seen[i][q] = f32::NEG_INFINITY);
        }
    }
    let (bases, keep) = raise(&weights, &mut softmax.largest);
    let mut sums = [[0.0f32; Q]; 16];
    for sixteen in weights.as_chunks_mut::<16>().0 {
        for (weights, sums) in sixteen.iter_mut().zip(&mut sums) {
            for q in 0..Q {
                weights[q] = exp(weights[q] - bases[q]);
                sums[q] += weights[q];
            }
        }
    }
    for q in 0..Q {
        softmax.totals[q] = softmax.totals[q] * keep[q] + sums.iter().map(|sums| sums[q]).sum::<f32>();
    }
    add_weighted::<L, Q, T>(lanes, &weights[..count], values, keep, out);
}

/// Raises `largest` to the scores of a block; returns what to take from them, and what to multiply earlier sums with.
#[inline(always)]
fn raise<const Q: usize>(scores: &[[f32; Q]; KEYS], largest: &mut [f32; Q]) -> ([f32; Q], [f32; Q]) {
    // Sixteen maxima side by side, which become vectors.
    let mut tops = [[f32::NEG_INFINITY; Q]; 16];
    for sixteen in scores.as_chunks::<16>().0 {
        for (top, score) in tops.as_flattened_mut().iter_mut().zip(sixteen.as_flattened()) {
            *top = top.max(*score);
        }
    }
    let mut bases = [0.0f32; Q];
    let mut keep = [1.0f32; Q];
    for q in 0..Q {
        let top = tops.iter().fold(largest[q], |top, tops| top.max(tops[q]));
        // Nothing seen so far: no difference of infinities.
        bases[q] = if top == f32::NEG_INFINITY { 0.0 } else { top };
        keep[q] = exp(largest[q] - bases[q]);
        largest[q] = top;
    }
    (bases, keep)
}

/// `scores[i][q] = queries[q] · keys[i]`, sixteen at a time.
#[inline(always)]
fn scores<L: Lanes, const Q: usize, const T: u8>(
    lanes: L,
    queries: [&[f32]; Q],
    keys: &Records<'_>,
    scores: &mut [[f32; Q]],
) {
    let mut first = 0;
    for scores in scores.chunks_mut(16 / Q) {
        let mut products = [lanes.splat(0.0); 16];
        let mut key = 0;
        while key < scores.len() {
            // Two keys at a time, where there are registers for their products: queries are loaded half as often.
            if L::GROUP >= 4 && key + 2 <= scores.len() {
                let records = [keys.get(first + key), keys.get(first + key + 1)];
                multiply::<L, Q, 2, T>(lanes, queries, records, &mut products[key * Q..]);
                key += 2;
            } else {
                multiply::<L, Q, 1, T>(lanes, queries, [keys.get(first + key)], &mut products[key * Q..]);
                key += 1;
            }
        }
        let sums = lanes.sums(&products);
        let dim = queries[0].len();
        let whole = whole(kv_type(T), dim);
        for (i, scores) in scores.iter_mut().enumerate() {
            scores.copy_from_slice(&sums[i * Q..][..Q]);
            if whole < dim {
                let mut rest = [0.0; KV_BLOCK];
                tail(kv_type(T), keys.get(first + i), dim, whole, &mut rest);
                for (score, query) in scores.iter_mut().zip(queries) {
                    *score += query[whole..].iter().zip(rest).map(|(q, k)| q * k).sum::<f32>();
                }
            }
        }
        first += scores.len();
    }
}

/// The products of `Q` queries with `G` keys, still to be summed: `sums` is `[G, Q]`.
#[inline(always)]
fn multiply<L: Lanes, const Q: usize, const G: usize, const T: u8>(
    lanes: L,
    queries: [&[f32]; Q],
    records: [&[u8]; G],
    sums: &mut [L::V],
) {
    let dim = queries[0].len();
    let chunks = whole(kv_type(T), dim) / 16;
    let mut vectors: [&[[f32; 16]]; Q] = [&[]; Q];
    for (vector, query) in vectors.iter_mut().zip(queries) {
        *vector = &query.as_chunks().0[..chunks];
    }
    let mut all = [[lanes.splat(0.0); Q]; G];
    for chunk in 0..chunks {
        for (sums, record) in all.iter_mut().zip(records) {
            let key = sixteen::<L, T>(lanes, record, dim, chunk);
            for (sum, vector) in sums.iter_mut().zip(vectors) {
                *sum = lanes.mul_add(key, lanes.load(&vector[chunk]), *sum);
            }
        }
    }
    sums[..Q * G].copy_from_slice(all.as_flattened());
}

/// `out[q] = keep[q] * out[q] + sum of weights[i][q] * values[i]`
#[inline(always)]
fn add_weighted<L: Lanes, const Q: usize, const T: u8>(
    lanes: L,
    weights: &[[f32; Q]],
    values: &Records<'_>,
    keep: [f32; Q],
    out: &mut [&mut [f32]; Q],
) {
    let dim = out[0].len();
    let whole = whole(kv_type(T), dim);
    let chunks = whole / 16;
    let mut chunk = 0;
    while chunk < chunks {
        // As many features at once as there are registers for: the chains of sums do not wait for each other.
        let left = chunks - chunk;
        if Q == 1 && left >= 4 {
            add_chunks::<L, Q, 4, T>(lanes, weights, values, keep, out, chunk);
            chunk += 4;
        } else if L::GROUP >= 4 && left >= 2 {
            add_chunks::<L, Q, 2, T>(lanes, weights, values, keep, out, chunk);
            chunk += 2;
        } else {
            add_chunks::<L, Q, 1, T>(lanes, weights, values, keep, out, chunk);
            chunk += 1;
        }
    }
    if whole < dim {
        for (out, keep) in out.iter_mut().zip(keep) {
            out[whole..].iter_mut().for_each(|value| *value *= keep);
        }
        for (i, weights) in weights.iter().enumerate() {
            let mut rest = [0.0; KV_BLOCK];
            tail(kv_type(T), values.get(i), dim, whole, &mut rest);
            for (out, weight) in out.iter_mut().zip(weights) {
                out[whole..].iter_mut().zip(rest).for_each(|(out, value)| *out += weight * value);
            }
        }
    }
}

/// [`add_weighted`] for the features from `16 chunk` on, `16 C` of them.
#[inline(always)]
fn add_chunks<L: Lanes, const Q: usize, const C: usize, const T: u8>(
    lanes: L,
    weights: &[[f32; Q]],
    values: &Records<'_>,
    keep: [f32; Q],
    out: &mut [&mut [f32]; Q],
    chunk: usize,
) {
    let dim = out[0].len();
    let mut sums = [[lanes.splat(0.0); Q]; C];
    for (i, weights) in weights.iter().enumerate() {
        let record = values.get(i);
        for (c, sums) in sums.iter_mut().enumerate() {
            let value = sixteen::<L, T>(lanes, record, dim, chunk + c);
            for (sum, &weight) in sums.iter_mut().zip(weights) {
                *sum = lanes.mul_add(value, lanes.splat(weight), *sum);
            }
        }
    }
    for (c, sums) in sums.into_iter().enumerate() {
        for ((sum, out), keep) in sums.into_iter().zip(&mut *out).zip(keep) {
            if let Some(out) = out[16 * (chunk + c)..].first_chunk_mut::<16>() {
                lanes.store(lanes.mul_add(lanes.load(out), lanes.splat(keep), sum), out);
            }
        }
    }
}
