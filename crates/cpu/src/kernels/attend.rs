//! Attention: keys and values are read in their stored form, scores never leave the first-level cache.
//!
//! The softmax is computed online (Milakov & Gimelshein 2018, arXiv:1805.02867): a block of keys at a
//! time, rescaling what was summed before when a larger score appears.

use super::norm::norm;
use crate::bound::AttendView;
use crate::cache::{Cache, decode, decode_block, encode, record_scale};
use crate::simd::Lanes;
use halfbyte_backend::kv::KV_BLOCK;
use halfbyte_backend::{KvType, Pairing, RopeTable};
use rayon::prelude::*;

/// Keys whose scores are held at once.
const KEYS: usize = 64;

/// Query heads over one key-value head that share a pass over its keys.
const QUERIES: usize = 8;

/// See [`Kernels::attend`](crate::program::Kernels::attend).
pub(crate) fn attend<L: Lanes>(
    lanes: L,
    view: &AttendView<'_>,
    cache: Option<&mut Cache>,
    qkv: &mut [f32],
    out: &mut [f32],
) {
    let (heads, kv_heads, dim) = (view.step.heads, view.step.kv_heads, view.step.head_dim);
    qkv.par_chunks_mut(view.width()).enumerate().for_each(|(row, qkv)| {
        lanes.run(
            #[inline(always)]
            || prepare(lanes, view, row, qkv),
        );
    });
    let qkv = &*qkv;
    let cache = cache.map(|cache| {
        store(view, cache, qkv);
        &*cache
    });
    let group = heads / kv_heads;
    out.par_chunks_mut(group * dim).enumerate().for_each(|(index, out)| {
        let (row, head) = (index / kv_heads, index % kv_heads);
        let queries = &qkv[row * view.width() + head * group * dim..][..group * dim];
        let (keys, values) = records(view, cache, qkv, row, head);
        for (queries, out) in queries.chunks(QUERIES * dim).zip(out.chunks_mut(QUERIES * dim)) {
            lanes.run(
                #[inline(always)]
                || attend_group(lanes, view, queries, &keys, &values, out),
            );
        }
    });
}

/// Norms and rotates the queries and keys of one row, `[(heads + 2 kv_heads) * head_dim]`.
#[inline(always)]
fn prepare<L: Lanes>(lanes: L, view: &AttendView<'_>, row: usize, qkv: &mut [f32]) {
    let (heads, kv_heads) = (view.step.heads, view.step.kv_heads);
    let position = view.places[row].position as usize;
    for (head, x) in qkv.chunks_exact_mut(view.step.head_dim).take(heads + kv_heads).enumerate() {
        let weight = if head < heads { &view.q_norm } else { &view.k_norm };
        if let Some(weight) = weight {
            norm(lanes, weight, x);
        }
        if let Some((table, rotated, pairing)) = view.rope {
            rotate(table, position, pairing, &mut x[..rotated]);
        }
    }
}

/// Rotates the pairs of `x`, `[dim]`.
#[inline(always)]
fn rotate(table: &RopeTable, position: usize, pairing: Pairing, x: &mut [f32]) {
    let angles = table.values[position * table.pairs * 2..][..table.pairs * 2].as_chunks::<2>().0;
    match pairing {
        Pairing::Half => {
            let (first, second) = x.split_at_mut(x.len() / 2);
            for ((a, b), [cos, sin]) in first.iter_mut().zip(second).zip(angles) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
        Pairing::Adjacent => {
            for ([a, b], [cos, sin]) in x.as_chunks_mut::<2>().0.iter_mut().zip(angles) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}

/// Stores the keys and values of all rows, each thread those of some heads.
fn store(view: &AttendView<'_>, cache: &mut Cache, qkv: &[f32]) {
    let (heads, kv_heads, dim) = (view.step.heads, view.step.kv_heads, view.step.head_dim);
    let (bytes, dtype) = (cache.shape.head_bytes() as usize, cache.shape.dtype);
    let stride = cache.head_stride();
    let records = cache.keys.par_chunks_mut(stride).zip(cache.values.par_chunks_mut(stride));
    records.enumerate().with_min_len(4).for_each(|(index, (keys, values))| {
        let (sequence, head) = (index / kv_heads, index % kv_heads);
        let mut row = 0;
        while row < view.places.len() {
            let span = view.spans[row];
            if view.places[row].sequence as usize == sequence {
                for row in span.start as usize..span.end as usize {
                    let at = view.places[row].position as usize * bytes;
                    let key = row * view.width() + (heads + head) * dim;
                    let value = key + kv_heads * dim;
                    encode(dtype, &qkv[key..key + dim], &mut keys[at..at + bytes]);
                    encode(dtype, &qkv[value..value + dim], &mut values[at..at + bytes]);
                }
            }
            row = span.end as usize;
        }
    });
}

/// Keys or values of one head that a row sees.
struct Records<'a> {
    dtype: KvType,
    /// The first record begins here.
    bytes: &'a [u8],
    /// Bytes from one record to the next.
    stride: usize,
    /// Bytes of a record.
    len: usize,
    count: usize,
}

impl<'a> Records<'a> {
    #[inline(always)]
    fn get(&self, index: usize) -> &'a [u8] {
        &self.bytes[index * self.stride..][..self.len]
    }
}

/// The keys and values of `head` that `row` sees: in the cache, or in the rows of its own submission.
fn records<'a>(
    view: &AttendView<'_>,
    cache: Option<&'a Cache>,
    qkv: &'a [f32],
    row: usize,
    head: usize,
) -> (Records<'a>, Records<'a>) {
    let (heads, kv_heads, dim) = (view.step.heads, view.step.kv_heads, view.step.head_dim);
    if let Some(cache) = cache {
        let (start, end) = view.cached_positions(row);
        let len = cache.shape.head_bytes() as usize;
        let at = cache.head_start(view.places[row].sequence as usize, head) + start * len;
        let of = |bytes: &'a [u8]| Records {
            dtype: cache.shape.dtype,
            bytes: &bytes[at..],
            stride: len,
            len,
            count: end - start,
        };
        return (of(&cache.keys), of(&cache.values));
    }
    let (start, end) = view.submitted_rows(row);
    let of = |column: usize| Records {
        dtype: KvType::F32,
        bytes: bytemuck::cast_slice(&qkv[start * view.width() + column..]),
        stride: view.width() * 4,
        len: dim * 4,
        count: end - start,
    };
    (of((heads + head) * dim), of((heads + kv_heads + head) * dim))
}

/// Up to [`QUERIES`] heads, `[queries, head_dim]`, over the keys and values of one head.
#[inline(always)]
fn attend_group<L: Lanes>(
    lanes: L,
    view: &AttendView<'_>,
    queries: &[f32],
    keys: &Records<'_>,
    values: &Records<'_>,
    out: &mut [f32],
) {
    let dim = view.step.head_dim;
    let mut largest = [f32::NEG_INFINITY; QUERIES];
    let mut totals = [0.0f32; QUERIES];
    out.fill(0.0);
    for first in (0..keys.count).step_by(KEYS) {
        let count = KEYS.min(keys.count - first);
        for (q, (query, out)) in queries.chunks_exact(dim).zip(out.chunks_exact_mut(dim)).enumerate() {
            let mut weights = [0.0f32; KEYS];
            let mut top = largest[q];
            for (i, weight) in weights[..count].iter_mut().enumerate() {
                let score = dot(lanes, query, keys.dtype, keys.get(first + i)) * view.step.scale;
                *weight = match view.step.softcap {
                    Some(cap) => cap * (score / cap).tanh(),
                    None => score,
                };
                top = top.max(*weight);
            }
            if top == f32::NEG_INFINITY {
                continue;
            }
            let keep = (largest[q] - top).exp();
            largest[q] = top;
            let mut total = 0.0;
            for weight in &mut weights[..count] {
                *weight = (*weight - top).exp();
                total += *weight;
            }
            totals[q] = totals[q] * keep + total;
            add_weighted(lanes, &weights[..count], values, first, keep, out);
        }
    }
    for (out, total) in out.chunks_exact_mut(dim).zip(totals) {
        let inverse = if total > 0.0 { 1.0 / total } else { 0.0 };
        out.iter_mut().for_each(|value| *value *= inverse);
    }
}

/// Features that are read in sixteens; the others one by one.
#[inline(always)]
fn whole(dtype: KvType, dim: usize) -> usize {
    match dtype {
        KvType::F32 | KvType::F16 => dim / 16 * 16,
        KvType::Q8 | KvType::Q4 => dim / KV_BLOCK * KV_BLOCK,
    }
}

/// Features `16 chunk ..` of a record, and the factor that they still need.
#[inline(always)]
fn sixteen<L: Lanes>(lanes: L, dtype: KvType, record: &[u8], dim: usize, chunk: usize) -> (L::V, f32) {
    // Slices of known length: the chunk is whole, by `whole`.
    match dtype {
        KvType::F32 => (lanes.load_f32(&record.as_chunks().0[chunk]), 1.0),
        KvType::F16 => (lanes.load_f16(&record.as_chunks().0[chunk]), 1.0),
        KvType::Q8 => {
            let scale = record_scale(record, dim.div_ceil(KV_BLOCK), chunk / 2);
            (lanes.load_i8(&record.as_chunks().0[chunk]), scale)
        }
        KvType::Q4 => {
            let scale = record_scale(record, dim.div_ceil(KV_BLOCK), chunk / 2);
            let (low, high) = lanes.load_nibbles(&record.as_chunks().0[chunk / 2]);
            (if chunk.is_multiple_of(2) { low } else { high }, scale)
        }
    }
}

/// The features of a record from `whole` on.
#[inline(always)]
fn tail(dtype: KvType, record: &[u8], dim: usize, from: usize, head: &mut [f32; KV_BLOCK]) {
    match dtype {
        KvType::F32 => decode(dtype, &record[from * 4..], &mut head[..dim - from]),
        KvType::F16 => decode(dtype, &record[from * 2..], &mut head[..dim - from]),
        KvType::Q8 | KvType::Q4 => decode_block(dtype, record, dim, from / KV_BLOCK, &mut head[..dim - from]),
    }
}

#[inline(always)]
fn dot<L: Lanes>(lanes: L, query: &[f32], dtype: KvType, record: &[u8]) -> f32 {
    let dim = query.len();
    let whole = whole(dtype, dim);
    let mut sums = [lanes.splat(0.0); 2];
    for (chunk, query) in query[..whole].as_chunks().0.iter().enumerate() {
        let (key, factor) = sixteen(lanes, dtype, record, dim, chunk);
        let query = match dtype {
            KvType::F32 | KvType::F16 => lanes.load(query),
            KvType::Q8 | KvType::Q4 => lanes.mul(lanes.load(query), lanes.splat(factor)),
        };
        sums[chunk % 2] = lanes.mul_add(key, query, sums[chunk % 2]);
    }
    let mut sum = lanes.sum(lanes.add(sums[0], sums[1]));
    if whole < dim {
        let mut rest = [0.0; KV_BLOCK];
        tail(dtype, record, dim, whole, &mut rest);
        sum += query[whole..].iter().zip(rest).map(|(q, k)| q * k).sum::<f32>();
    }
    sum
}

/// `out = keep * out + sum of weights[i] * values[first + i]`
#[inline(always)]
fn add_weighted<L: Lanes>(
    lanes: L,
    weights: &[f32],
    values: &Records<'_>,
    first: usize,
    keep: f32,
    out: &mut [f32],
) {
    let dim = out.len();
    let whole = whole(values.dtype, dim);
    for (chunk, out) in out[..whole].as_chunks_mut().0.iter_mut().enumerate() {
        // Two sums hide the latency of each other's additions.
        let mut sums = [lanes.mul(lanes.load(out), lanes.splat(keep)), lanes.splat(0.0)];
        for (i, &weight) in weights.iter().enumerate() {
            let (value, factor) = sixteen(lanes, values.dtype, values.get(first + i), dim, chunk);
            sums[i % 2] = lanes.mul_add(value, lanes.splat(weight * factor), sums[i % 2]);
        }
        lanes.store(lanes.add(sums[0], sums[1]), out);
    }
    if whole < dim {
        let out = &mut out[whole..];
        out.iter_mut().for_each(|value| *value *= keep);
        for (i, &weight) in weights.iter().enumerate() {
            let mut rest = [0.0; KV_BLOCK];
            tail(values.dtype, values.get(first + i), dim, whole, &mut rest);
            out.iter_mut().zip(rest).for_each(|(out, value)| *out += weight * value);
        }
    }
}
