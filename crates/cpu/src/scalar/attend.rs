//! Attention.

use super::norm::norm;
use crate::bound::AttendView;
use crate::cache::{Cache, decode, encode};
use halfbyte_backend::{Pairing, RopeTable};

/// Norms and rotates queries and keys, stores keys and values, then attends row by row.
pub(crate) fn attend(view: &AttendView<'_>, mut cache: Option<&mut Cache>, qkv: &mut [f32], out: &mut [f32]) {
    let (heads, kv_heads, dim) = (view.step.heads, view.step.kv_heads, view.step.head_dim);
    for (row, qkv) in qkv.chunks_exact_mut(view.width()).enumerate() {
        let position = view.places[row].position as usize;
        for (head, x) in qkv.chunks_exact_mut(dim).take(heads + kv_heads).enumerate() {
            let weight = if head < heads { &view.q_norm } else { &view.k_norm };
            if let Some(weight) = weight {
                norm(weight, x);
            }
            if let Some((table, rotated, pairing)) = view.rope {
                rotate(table, position, pairing, &mut x[..rotated]);
            }
        }
        if let Some(cache) = cache.as_deref_mut() {
            for head in 0..kv_heads {
                let bytes = cache.shape.head_bytes() as usize;
                let first = cache.head_start(view.places[row].sequence as usize, head);
                let at = first + position % cache.shape.slots() * bytes;
                let key = (heads + head) * dim;
                let value = key + kv_heads * dim;
                encode(cache.shape.dtype, &qkv[key..key + dim], &mut cache.keys[at..at + bytes]);
                encode(cache.shape.dtype, &qkv[value..value + dim], &mut cache.values[at..at + bytes]);
            }
        }
    }

    for (index, out) in out.chunks_exact_mut(dim).enumerate() {
        let (row, head) = (index / heads, index % heads);
        let query = &qkv[row * view.width() + head * dim..][..dim];
        let pairs = visible(view, cache.as_deref(), qkv, row, head / (heads / kv_heads));
        let scores: Vec<f64> = pairs.iter().map(|(key, _)| score(view, query, key)).collect();
        let largest = scores.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
        let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
        let total: f64 = weights.iter().sum();
        for (i, out) in out.iter_mut().enumerate() {
            let sum: f64 = weights.iter().zip(&pairs).map(|(w, (_, value))| w * f64::from(value[i])).sum();
            *out = if total > 0.0 { (sum / total) as f32 } else { 0.0 };
        }
    }
}

/// Rotates the pairs of `x`, `[dim]`.
fn rotate(table: &RopeTable, position: usize, pairing: Pairing, x: &mut [f32]) {
    for pair in 0..x.len() / 2 {
        let at = (position * table.pairs + pair) * 2;
        let (cos, sin) = (f64::from(table.values[at]), f64::from(table.values[at + 1]));
        let (i, j) = match pairing {
            Pairing::Half => (pair, pair + x.len() / 2),
            Pairing::Adjacent => (2 * pair, 2 * pair + 1),
        };
        let (a, b) = (f64::from(x[i]), f64::from(x[j]));
        x[i] = (a * cos - b * sin) as f32;
        x[j] = (b * cos + a * sin) as f32;
    }
}

/// Keys and values of `head` that `row` sees.
fn visible(
    view: &AttendView<'_>,
    cache: Option<&Cache>,
    qkv: &[f32],
    row: usize,
    head: usize,
) -> Vec<(Vec<f32>, Vec<f32>)> {
    let (heads, kv_heads, dim) = (view.step.heads, view.step.kv_heads, view.step.head_dim);
    let Some(cache) = cache else {
        let (start, end) = view.submitted_rows(row);
        let pair = |row: usize| {
            let key = row * view.width() + (heads + head) * dim;
            let value = key + kv_heads * dim;
            (qkv[key..key + dim].to_vec(), qkv[value..value + dim].to_vec())
        };
        return (start..end).map(pair).collect();
    };
    let (start, end) = view.cached_positions(row);
    let bytes = cache.shape.head_bytes() as usize;
    let first = cache.head_start(view.places[row].sequence as usize, head);
    let read = |records: &[u8], position: usize| {
        let mut x = vec![0.0; dim];
        let at = first + position % cache.shape.slots() * bytes;
        decode(cache.shape.dtype, &records[at..][..bytes], &mut x);
        x
    };
    (start..end).map(|position| (read(&cache.keys, position), read(&cache.values, position))).collect()
}

fn score(view: &AttendView<'_>, query: &[f32], key: &[f32]) -> f64 {
    let dot: f64 = query.iter().zip(key).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
    let score = dot * f64::from(view.step.scale);
    match view.step.softcap {
        Some(cap) => f64::from(cap) * (score / f64::from(cap)).tanh(),
        None => score,
    }
}
