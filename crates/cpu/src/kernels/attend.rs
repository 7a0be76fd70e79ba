//! Attention: keys and values are read in their stored form, scores never leave the first-level cache.
//!
//! The softmax is computed online (Milakov & Gimelshein 2018, arXiv:1805.02867): a block of keys at a
//! time, rescaling what was summed before when a larger score appears. A job's queries read the same keys and values,
//! which the second-level cache keeps for them. What a row gets does not depend on the rows beside it: blocks begin at
//! multiples of their size, and a query's products are added in one order.

use super::attend_block::{KEYS, Softmax, attend_block};
use super::norm::norm;
use super::records::{F16, F32, Q4, Q8, Records, stored, submitted};
use crate::bound::{AttendView, NormView};
use crate::cache::{Cache, encode};
use crate::simd::Lanes;
use crate::team::{Scatter, Team};
use halfbyte_backend::{KvType, Pairing, RopeTable};

/// Queries over the same keys that share what is read of them.
const QUERIES: usize = 4;

/// Queries of a job: they share a head's keys and values.
const JOB_QUERIES: usize = 64;

/// Jobs for each thread, so that none waits long for the others.
const THREAD_JOBS: usize = 4;

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
    let cache = match cache {
        Some(cache) if view.places.len() == 1 && kv_heads >= team.threads() => {
            return attend_one(lanes, team, view, cache, qkv, out);
        }
        cache => cache,
    };
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
    let (rows, group) = (view.places.len(), heads / kv_heads);
    // Few rows (decoding): a job for each key-value head, or where there are fewer of them than threads, for a part of
    // its queries: the threads then read the same keys, which the last-level cache has by then.
    let most = (JOB_QUERIES / group).max(1);
    let job_rows = (rows * kv_heads / (THREAD_JOBS * team.threads())).clamp(1, most);
    let parts = team.threads().div_ceil(rows.max(1) * kv_heads).min(group);
    let members = group.div_ceil(parts);
    let out = Scatter::new(out);
    team.each(rows.div_ceil(job_rows) * kv_heads * parts, |_, index| {
        let (index, member) = (index / parts, index % parts * members);
        let (first, head) = (index / kv_heads * job_rows, index % kv_heads);
        let members = members.min(group.saturating_sub(member));
        let query = |index: usize| {
            let (row, head) = (first + index / members, head * group + member + index % members);
            Query {
                row,
                at: row * view.width() + head * dim,
                out: (row * heads + head) * dim,
                visible: match cache {
                    Some(_) => view.cached_positions(row),
                    None => view.submitted_rows(row),
                },
            }
        };
        let mut queries = [Query::default(); JOB_QUERIES];
        let count = (rows - first).min(job_rows) * members;
        let mut index = 0;
        while index < count {
            // As many as there is room for, of one sequence.
            let row = first + index / members;
            let rest = &mut queries[..JOB_QUERIES.min(count - index)];
            rest.iter_mut().enumerate().for_each(|(i, to)| *to = query(index + i));
            let end = view.spans[row].end as usize;
            let run = &rest[..rest.partition_point(|query| query.row < end)];
            let (keys, values) = match cache {
                Some(cache) => {
                    let at = cache.head_start(view.places[row].sequence as usize, head);
                    (stored(cache.shape, &cache.keys[at..]), stored(cache.shape, &cache.values[at..]))
                }
                None => submitted(view, qkv, head),
            };
            lanes.run(
                #[inline(always)]
                || attend_run(lanes, view, run, &keys, &values, qkv, &out),
            );
            index += run.len();
        }
    });
}

/// [`attend`] of one row (decoding) with a cache: whoever takes a key-value head prepares its queries and its key, stores
/// it and attends, so that all of it is one step.
fn attend_one<L: Lanes>(
    lanes: L,
    team: &Team,
    view: &AttendView<'_>,
    cache: &mut Cache,
    qkv: &mut [f32],
    out: &mut [f32],
) {
    let (heads, kv_heads, dim) = (view.step.heads, view.step.kv_heads, view.step.head_dim);
    let (group, place, shape) = (heads / kv_heads, view.places[0], cache.shape);
    let (stride, bytes) = (cache.head_stride(), shape.head_bytes() as usize);
    let begin = cache.head_start(place.sequence as usize, 0);
    let at = place.position as usize % shape.slots() * bytes;
    let (qkv, out) = (Scatter::new(qkv), Scatter::new(out));
    let (keys, values) = (Scatter::new(&mut cache.keys), Scatter::new(&mut cache.values));
    team.each(kv_heads, |_, head| {
        // SAFETY: `each` gives a key-value head to one thread, and what belongs to one belongs to no other.
        let [queries, key, value] = unsafe {
            [
                qkv.range(head * group * dim, group * dim),
                qkv.range((heads + head) * dim, dim),
                qkv.range((heads + kv_heads + head) * dim, dim),
            ]
        };
        // SAFETY: as above.
        let (keys, values) = unsafe {
            (keys.range(begin + head * stride, stride), values.range(begin + head * stride, stride))
        };
        lanes.run(
            #[inline(always)]
            || {
                for query in queries.chunks_exact_mut(dim) {
                    prepare_head(lanes, view, 0, &view.q_norm, query);
                }
                prepare_head(lanes, view, 0, &view.k_norm, key);
                encode(shape.dtype, key, &mut keys[at..at + bytes]);
                encode(shape.dtype, value, &mut values[at..at + bytes]);
                let (keys, values) = (stored(shape, keys), stored(shape, values));
                let mut run = [Query::default(); JOB_QUERIES];
                for first in (0..group).step_by(JOB_QUERIES) {
                    let run = &mut run[..JOB_QUERIES.min(group - first)];
                    for (index, query) in run.iter_mut().enumerate() {
                        let index = first + index;
                        let (at, out) = (index * dim, (head * group + index) * dim);
                        *query = Query { row: 0, at, out, visible: view.cached_positions(0) };
                    }
                    attend_run(lanes, view, run, &keys, &values, queries, &out);
                }
            },
        );
    });
}

/// One head of one row.
#[derive(Clone, Copy, Default)]
pub(super) struct Query {
    row: usize,
    /// Where it begins in q|k|v.
    pub at: usize,
    /// Where its result begins in the output.
    out: usize,
    /// The records that it sees.
    pub visible: (usize, usize),
}

/// Norms and rotates the queries and keys of one row, `[(heads + 2 kv_heads) * head_dim]`.
#[inline(always)]
fn prepare<L: Lanes>(lanes: L, view: &AttendView<'_>, row: usize, qkv: &mut [f32]) {
    let (heads, kv_heads) = (view.step.heads, view.step.kv_heads);
    for (head, x) in qkv.chunks_exact_mut(view.step.head_dim).take(heads + kv_heads).enumerate() {
        prepare_head(lanes, view, row, if head < heads { &view.q_norm } else { &view.k_norm }, x);
    }
}

/// [`prepare`] of one head, `[head_dim]`.
#[inline(always)]
fn prepare_head<L: Lanes>(
    lanes: L,
    view: &AttendView<'_>,
    row: usize,
    weight: &Option<NormView<'_>>,
    x: &mut [f32],
) {
    if let Some(weight) = weight {
        norm(lanes, weight, x);
    }
    if let Some((table, rotated, pairing)) = view.rope {
        rotate(table, view.places[row].position as usize, pairing, &mut x[..rotated]);
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
    let (stride, slots) = (cache.head_stride(), cache.shape.slots());
    team.chunks_of_two((&mut cache.keys, stride), (&mut cache.values, stride), |index, keys, values| {
        let (sequence, head) = (index / kv_heads, index % kv_heads);
        let mut row = 0;
        while row < view.places.len() {
            let span = view.spans[row];
            if view.places[row].sequence as usize == sequence {
                for row in span.start as usize..span.end as usize {
                    let at = view.places[row].position as usize % slots * bytes;
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

/// Queries of one sequence over the records of one head, compiled for each element type.
#[inline(always)]
fn attend_run<L: Lanes>(
    lanes: L,
    view: &AttendView<'_>,
    queries: &[Query],
    keys: &Records<'_>,
    values: &Records<'_>,
    qkv: &[f32],
    out: &Scatter<'_, f32>,
) {
    match keys.dtype {
        KvType::F32 => attend_typed::<L, F32>(lanes, view, queries, keys, values, qkv, out),
        KvType::F16 => attend_typed::<L, F16>(lanes, view, queries, keys, values, qkv, out),
        KvType::Q8 => attend_typed::<L, Q8>(lanes, view, queries, keys, values, qkv, out),
        KvType::Q4 => attend_typed::<L, Q4>(lanes, view, queries, keys, values, qkv, out),
    }
}

#[inline(always)]
fn attend_typed<L: Lanes, const T: u8>(
    lanes: L,
    view: &AttendView<'_>,
    queries: &[Query],
    keys: &Records<'_>,
    values: &Records<'_>,
    qkv: &[f32],
    out: &Scatter<'_, f32>,
) {
    let (fours, ones) = queries.as_chunks::<QUERIES>();
    for queries in fours {
        attend_together::<L, QUERIES, T>(lanes, view, queries, keys, values, qkv, out);
    }
    for query in ones {
        attend_together::<L, 1, T>(lanes, view, &[*query], keys, values, qkv, out);
    }
}

/// `Q` queries that share what is read of keys and values.
#[inline(always)]
fn attend_together<L: Lanes, const Q: usize, const T: u8>(
    lanes: L,
    view: &AttendView<'_>,
    queries: &[Query; Q],
    keys: &Records<'_>,
    values: &Records<'_>,
    qkv: &[f32],
    out: &Scatter<'_, f32>,
) {
    let (mut start, mut end) = (usize::MAX, 0);
    // SAFETY: a query belongs to one job, and its result is borrowed here alone.
    let mut out = queries.each_ref().map(|query| unsafe { out.range(query.out, view.step.head_dim) });
    for (query, out) in queries.iter().zip(&mut out) {
        start = start.min(query.visible.0);
        end = end.max(query.visible.1);
        out.fill(0.0);
    }
    let mut softmax = Softmax::<Q>::NEW;
    for first in (start / KEYS * KEYS..end).step_by(KEYS) {
        let count = KEYS.min(end - first);
        attend_block::<L, Q, T>(
            lanes,
            view,
            queries,
            &mut softmax,
            &keys.from(first),
            &values.from(first),
            first..first + count,
            qkv,
            &mut out,
        );
    }
    for (out, total) in out.iter_mut().zip(softmax.totals) {
        let inverse = if total > 0.0 { 1.0 / total } else { 0.0 };
        out.iter_mut().for_each(|value| *value *= inverse);
    }
}
