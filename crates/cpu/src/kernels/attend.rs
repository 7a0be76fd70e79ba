//! Attention: keys and values are read in their stored form, scores never leave the first-level cache.
//!
//! The softmax is computed online (Milakov & Gimelshein 2018, arXiv:1805.02867): a block of keys at a
//! time, rescaling what was summed before when a larger score appears.

use super::exp::exp;
use super::norm::norm;
use super::records::{F16, F32, Q4, Q8, Records, kv_type, records, sixteen, tail, whole};
use crate::bound::AttendView;
use crate::cache::{Cache, encode};
use crate::simd::Lanes;
use crate::team::Team;
use halfbyte_backend::kv::KV_BLOCK;
use halfbyte_backend::{KvType, Pairing, RopeTable};
use std::ops::Range;

/// Keys whose scores are held at once.
const KEYS: usize = 64;

/// Queries over the same keys that share what is read of them.
const QUERIES: usize = 4;

/// Rows of a prompt that one job attends for.
const JOB_ROWS: usize = 4;

/// See [`Kernels::attend`](crate::program::Kernels::attend).
pub(crate) fn attend<L: Lanes>(
    lanes: L,
    team: &Team,
    view: &AttendView<'_>,
    cache: Option<&mut Cache>,
    qkv: &mut [f32],
    out: &mut [f32],
) {
    let (heads, kv_heads, dim) = (view.step.heads, view.step.kv_heads, view.step.head_dim);
    team.chunks(qkv, view.width(), |_, row, qkv| {
        lanes.run(
            #[inline(always)]
            || prepare(lanes, view, row, qkv),
        );
    });
    let qkv = &*qkv;
    let cache = cache.map(|cache| {
        store(team, view, cache, qkv);
        &*cache
    });
    let group = heads / kv_heads;
    if view.places.len() < JOB_ROWS * team.threads() {
        // Few rows (decoding): a job for each key-value head, so that all threads have one.
        team.chunks(out, group * dim, |_, index, out| {
            let (row, head) = (index / kv_heads, index % kv_heads);
            attend_job(lanes, view, cache, qkv, row..row + 1, head..head + 1, out);
        });
    } else {
        team.chunks(out, JOB_ROWS * heads * dim, |_, index, out| {
            let rows = index * JOB_ROWS..view.places.len().min((index + 1) * JOB_ROWS);
            attend_job(lanes, view, cache, qkv, rows, 0..kv_heads, out);
        });
    }
}

/// The queries of `rows` over the key-value heads `kv_heads`: `out` is `[rows, their query heads, head_dim]`.
fn attend_job<L: Lanes>(
    lanes: L,
    view: &AttendView<'_>,
    cache: Option<&Cache>,
    qkv: &[f32],
    rows: Range<usize>,
    kv_heads: Range<usize>,
    out: &mut [f32],
) {
    let (dim, group) = (view.step.head_dim, view.step.heads / view.step.kv_heads);
    for head in kv_heads.clone() {
        let query = |index: usize| {
            let (row, member) = (rows.start + index / group, index % group);
            Query {
                row,
                at: row * view.width() + (head * group + member) * dim,
                out: ((row - rows.start) * kv_heads.len() * group + (head - kv_heads.start) * group + member)
                    * dim,
                visible: match cache {
                    Some(_) => view.cached_positions(row),
                    None => view.submitted_rows(row),
                },
            }
        };
        let count = rows.len() * group;
        let mut index = 0;
        while index < count {
            let first = query(index);
            let (keys, values) = records(view, cache, qkv, first.row, head);
            let last = query((index + QUERIES).min(count) - 1);
            let together = index + QUERIES <= count && view.spans[last.row] == view.spans[first.row];
            lanes.run(
                #[inline(always)]
                || {
                    if together {
                        let queries = [first, query(index + 1), query(index + 2), last];
                        attend_queries(lanes, view, queries, &keys, &values, qkv, out);
                    } else {
                        attend_queries(lanes, view, [first], &keys, &values, qkv, out);
                    }
                },
            );
            index += if together { QUERIES } else { 1 };
        }
    }
}

/// One head of one row.
#[derive(Clone, Copy)]
struct Query {
    row: usize,
    /// Where it begins in q|k|v.
    at: usize,
    /// Where its result begins in the job's output.
    out: usize,
    /// The records that it sees.
    visible: (usize, usize),
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
fn store(team: &Team, view: &AttendView<'_>, cache: &mut Cache, qkv: &[f32]) {
    let (heads, kv_heads, dim) = (view.step.heads, view.step.kv_heads, view.step.head_dim);
    let (bytes, dtype) = (cache.shape.head_bytes() as usize, cache.shape.dtype);
    let stride = cache.head_stride();
    team.chunks_of_two((&mut cache.keys, stride), (&mut cache.values, stride), |index, keys, values| {
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

/// `Q` queries over the records of one head, compiled for each element type.
#[inline(always)]
fn attend_queries<L: Lanes, const Q: usize>(
    lanes: L,
    view: &AttendView<'_>,
    queries: [Query; Q],
    keys: &Records<'_>,
    values: &Records<'_>,
    qkv: &[f32],
    out: &mut [f32],
) {
    match keys.dtype {
        KvType::F32 => attend_typed::<L, Q, F32>(lanes, view, queries, keys, values, qkv, out),
        KvType::F16 => attend_typed::<L, Q, F16>(lanes, view, queries, keys, values, qkv, out),
        KvType::Q8 => attend_typed::<L, Q, Q8>(lanes, view, queries, keys, values, qkv, out),
        KvType::Q4 => attend_typed::<L, Q, Q4>(lanes, view, queries, keys, values, qkv, out),
    }
}

#[inline(always)]
fn attend_typed<L: Lanes, const Q: usize, const T: u8>(
    lanes: L,
    view: &AttendView<'_>,
    queries: [Query; Q],
    keys: &Records<'_>,
    values: &Records<'_>,
    qkv: &[f32],
    out: &mut [f32],
) {
    let dim = view.step.head_dim;
    let (mut start, mut end) = (usize::MAX, 0);
    let mut vectors: [&[f32]; Q] = [&[]; Q];
    for (vector, query) in vectors.iter_mut().zip(&queries) {
        *vector = &qkv[query.at..][..dim];
        start = start.min(query.visible.0);
        end = end.max(query.visible.1);
        out[query.out..][..dim].fill(0.0);
    }
    let mut largest = [f32::NEG_INFINITY; Q];
    let mut totals = [0.0f32; Q];
    for first in (start..end).step_by(KEYS) {
        let count = KEYS.min(end - first);
        // Beyond `count`, nothing is seen.
        let mut weights = [[f32::NEG_INFINITY; Q]; KEYS];
        for (i, weights) in weights[..count].iter_mut().enumerate() {
            *weights = dots::<L, Q, T>(lanes, vectors, keys.get(first + i));
        }
        let mut bases = [0.0f32; Q];
        let mut keep = [1.0f32; Q];
        for q in 0..Q {
            let seen = queries[q].visible.0..queries[q].visible.1;
            let mut top = largest[q];
            for (i, weights) in weights[..count].iter_mut().enumerate() {
                let score = weights[q] * view.step.scale;
                weights[q] = match view.step.softcap {
                    _ if !seen.contains(&(first + i)) => f32::NEG_INFINITY,
                    Some(cap) => cap * (score / cap).tanh(),
                    None => score,
                };
                top = top.max(weights[q]);
            }
            // Nothing seen so far: no difference of infinities.
            let base = if top == f32::NEG_INFINITY { 0.0 } else { top };
            keep[q] = exp(largest[q] - base);
            largest[q] = top;
            bases[q] = base;
        }
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
            totals[q] = totals[q] * keep[q] + sums.iter().map(|sums| sums[q]).sum::<f32>();
        }
        add_weighted::<L, Q, T>(lanes, &weights[..count], values, first, keep, &queries, out, dim);
    }
    for (query, total) in queries.iter().zip(totals) {
        let inverse = if total > 0.0 { 1.0 / total } else { 0.0 };
        out[query.out..][..dim].iter_mut().for_each(|value| *value *= inverse);
    }
}

/// `queries[q] · record`
#[inline(always)]
fn dots<L: Lanes, const Q: usize, const T: u8>(lanes: L, queries: [&[f32]; Q], record: &[u8]) -> [f32; Q] {
    let dim = queries[0].len();
    let whole = whole(kv_type(T), dim);
    let mut chunks: [&[[f32; 16]]; Q] = [&[]; Q];
    for (chunks, query) in chunks.iter_mut().zip(queries) {
        *chunks = query[..whole].as_chunks().0;
    }
    let mut sums = [lanes.splat(0.0); Q];
    for chunk in 0..whole / 16 {
        let key = sixteen::<L, T>(lanes, record, dim, chunk);
        for (sum, chunks) in sums.iter_mut().zip(chunks) {
            *sum = lanes.mul_add(key, lanes.load(&chunks[chunk]), *sum);
        }
    }
    let mut totals = [0.0; Q];
    for (total, sum) in totals.iter_mut().zip(sums) {
        *total = lanes.sum(sum);
    }
    if whole < dim {
        let mut rest = [0.0; KV_BLOCK];
        tail(kv_type(T), record, dim, whole, &mut rest);
        for (total, query) in totals.iter_mut().zip(queries) {
            *total += query[whole..].iter().zip(rest).map(|(q, k)| q * k).sum::<f32>();
        }
    }
    totals
}

/// `out[q] = keep[q] * out[q] + sum of weights[i][q] * values[first + i]`
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the state of one softmax, in registers")]
fn add_weighted<L: Lanes, const Q: usize, const T: u8>(
    lanes: L,
    weights: &[[f32; Q]],
    values: &Records<'_>,
    first: usize,
    keep: [f32; Q],
    queries: &[Query; Q],
    out: &mut [f32],
    dim: usize,
) {
    let whole = whole(kv_type(T), dim);
    for chunk in 0..whole / 16 {
        let mut sums = [lanes.splat(0.0); Q];
        for (i, weights) in weights.iter().enumerate() {
            let value = sixteen::<L, T>(lanes, values.get(first + i), dim, chunk);
            for (sum, &weight) in sums.iter_mut().zip(weights) {
                *sum = lanes.mul_add(value, lanes.splat(weight), *sum);
            }
        }
        for ((sum, query), keep) in sums.into_iter().zip(queries).zip(keep) {
            if let Some(out) = out[query.out + 16 * chunk..].first_chunk_mut::<16>() {
                lanes.store(lanes.mul_add(lanes.load(out), lanes.splat(keep), sum), out);
            }
        }
    }
    if whole < dim {
        for (query, keep) in queries.iter().zip(keep) {
            out[query.out..][whole..dim].iter_mut().for_each(|value| *value *= keep);
        }
        for (i, weights) in weights.iter().enumerate() {
            let mut rest = [0.0; KV_BLOCK];
            tail(kv_type(T), values.get(first + i), dim, whole, &mut rest);
            for (query, weight) in queries.iter().zip(weights) {
                let out = &mut out[query.out..][whole..dim];
                out.iter_mut().zip(rest).for_each(|(out, value)| *out += weight * value);
            }
        }
    }
}
