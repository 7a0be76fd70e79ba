//! The steps in f64.

use super::program::Compiled;
use super::{Flaw, Held};
use halfbyte_backend::kv::round_trip;
use halfbyte_backend::{
    Act, Attend, Embed, EmitKind, Head, LinearStep, Moe, Norm, NormKind, Pairing, Place, Pre, Reg, RopeUse,
    WantId,
};
use std::collections::BTreeMap;
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, PI};

impl Compiled {
    pub fn embed(&mut self, step: &Embed, tokens: &[u32], places: &[Place]) {
        let mut out = Vec::new();
        for (place, &token) in places.iter().zip(tokens) {
            let mut x: Vec<f64> = self.row(step.table, token as usize);
            x.iter_mut().for_each(|value| *value *= f64::from(step.scale));
            if let Some((positions, first)) = step.positions {
                add(&mut x, &self.row(positions, (place.position + first) as usize));
            }
            if let Some(types) = step.types {
                add(&mut x, &self.row(types, place.token_type as usize));
            }
            out.extend(self.norm(step.norm, x));
        }
        *self.register(step.out) = out;
    }

    pub fn linear(&mut self, step: &LinearStep) {
        let inputs = self.pre(step.input, &step.pre);
        let width = self.width(step.out);
        for (row, input) in inputs.iter().enumerate() {
            let y = self.product(step.weight, input);
            let y: Vec<f64> = if step.gated {
                y.chunks_exact(2).map(|pair| activate(step.act, pair[0]) * pair[1]).collect()
            } else {
                y.iter().map(|&value| activate(step.act, value)).collect()
            };
            for (column, value) in y.iter().enumerate() {
                let at = row * width + step.at + column;
                let residual = step.residual.map_or(0.0, |reg| self.register(reg)[at]);
                let before = if self.flaw == Flaw::AddsToOutput { self.register(step.out)[at] } else { 0.0 };
                self.register(step.out)[at] = before + residual + value;
            }
        }
    }

    pub fn moe(&mut self, step: &Moe) {
        let inputs = self.pre(step.input, &step.pre);
        let width = self.width(step.out);
        for (row, input) in inputs.iter().enumerate() {
            let powers: Vec<f64> = self.product(step.router, input).iter().map(|score| score.exp()).collect();
            let total: f64 = powers.iter().sum();
            let mut order: Vec<usize> = (0..step.experts).collect();
            order.sort_by(|&a, &b| powers[b].total_cmp(&powers[a]));
            order.truncate(step.top_k);
            let kept: f64 = order.iter().map(|&expert| powers[expert]).sum();
            let mut sum = vec![0.0; width];
            for expert in order {
                let y = self.product(step.gate_up_of(expert), input);
                let inner: Vec<f64> =
                    y.chunks_exact(2).map(|pair| activate(step.act, pair[0]) * pair[1]).collect();
                let weight = powers[expert] / if step.renormalize { kept } else { total };
                let down = self.product(step.down_of(expert), &inner);
                add(&mut sum, &down.iter().map(|value| weight * value).collect::<Vec<_>>());
            }
            for (column, value) in sum.into_iter().enumerate() {
                let at = row * width + column;
                let residual = step.residual.map_or(0.0, |reg| self.register(reg)[at]);
                let before = if self.flaw == Flaw::AddsToOutput { self.register(step.out)[at] } else { 0.0 };
                self.register(step.out)[at] = before + residual + value;
            }
        }
    }

    pub fn head(&mut self, step: &Head, wanted: &[u32]) -> BTreeMap<u32, Vec<f32>> {
        let inputs = self.pre(step.input, &step.pre);
        let logits = |row: u32| {
            let y = self.product(step.weight, &inputs[row as usize]);
            y.iter().map(|value| cap(step.softcap, value * f64::from(step.scale)) as f32).collect()
        };
        wanted.iter().map(|&row| (row, logits(row))).collect()
    }

    pub fn attend(&mut self, step: &Attend, places: &[Place]) {
        let dim = step.head_dim;
        let qkv = self.register(step.qkv).clone();
        let (mut queries, mut keys, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for (row, place) in qkv.chunks(self.width(step.qkv)).zip(places) {
            let (q, rest) = row.split_at(step.heads * dim);
            let (k, v) = rest.split_at(step.kv_heads * dim);
            let turn =
                |norm, head: &[f64]| self.rotate(step.rope, place.position, self.norm(norm, head.to_vec()));
            queries.push(q.chunks(dim).map(|head| turn(step.q_norm, head)).collect::<Vec<_>>());
            keys.push(k.chunks(dim).map(|head| turn(step.k_norm, head)).collect::<Vec<_>>());
            values.push(v.chunks(dim).map(<[f64]>::to_vec).collect::<Vec<_>>());
        }
        if let Some(cache) = step.cache {
            self.store(cache, places, &keys, &values);
        }
        let mut out = Vec::new();
        for (row, own) in places.iter().enumerate() {
            let same = |place: &&Place| place.sequence == own.sequence;
            let last = places.iter().filter(same).map(|place| place.position).max().unwrap_or(0);
            let first = places.iter().filter(same).map(|place| place.position).min().unwrap_or(0);
            let next = u32::from(self.flaw == Flaw::SeesNext);
            let last = if step.cache.is_some() { last + next } else { last };
            let seen = |position: &u32| {
                (!step.causal || *position <= own.position + next)
                    && step
                        .window
                        .is_none_or(|window| i64::from(*position) > i64::from(own.position) - window as i64)
            };
            let start = if step.cache.is_some() { 0 } else { first };
            let positions: Vec<u32> = (start..=last).filter(seen).collect();
            for (head, query) in queries[row].iter().enumerate() {
                let kv_head = head / (step.heads / step.kv_heads);
                let read = |position: u32| match step.cache {
                    Some(cache) => self.load(cache, own.sequence, position, kv_head),
                    None => {
                        let at =
                            places.iter().position(|p| p.sequence == own.sequence && p.position == position);
                        let at = at.expect("a position of this submission");
                        (keys[at][kv_head].clone(), values[at][kv_head].clone())
                    }
                };
                let pairs: Vec<_> = positions.iter().map(|&position| read(position)).collect();
                let score = |key: &[f64]| cap(step.softcap, dot(query, key) * f64::from(step.scale));
                let scores: Vec<f64> = pairs.iter().map(|(key, _)| score(key)).collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
                let total: f64 = weights.iter().sum();
                let mut sum = vec![0.0; dim];
                for (weight, (_, value)) in weights.iter().zip(&pairs) {
                    sum.iter_mut().zip(value).for_each(|(sum, value)| *sum += weight / total * value);
                }
                out.extend(sum);
            }
        }
        *self.register(step.out) = out;
    }

    /// `h` of each row, `[cols]`; emits as the step says.
    fn pre(&mut self, input: Reg, pre: &Pre) -> Vec<Vec<f64>> {
        let width = self.width(input);
        let (mut hidden, mut emitted) = (Vec::new(), Vec::new());
        for (row, y) in self.registers[usize::from(input.0)].chunks(width).enumerate() {
            let mut x = self.norm(pre.post, y.to_vec());
            if let Some(residual) = pre.residual {
                add(&mut x, &self.registers[usize::from(residual.0)][row * width..][..width]);
            }
            let h = self.norm(pre.norm, x.clone());
            match pre.emit.map(|emit| emit.kind) {
                Some(EmitKind::Sum) => emitted.extend(x),
                Some(EmitKind::Normed) => emitted.extend(h.clone()),
                None => {}
            }
            hidden.push(h);
        }
        if let Some(emit) = pre.emit {
            *self.register(emit.to) = emitted;
        }
        hidden
    }

    fn norm(&self, norm: Option<Norm>, x: Vec<f64>) -> Vec<f64> {
        let Some(norm) = norm else { return x };
        let len = x.len() as f64;
        let mean = if norm.kind == NormKind::Layer { x.iter().sum::<f64>() / len } else { 0.0 };
        let square = x.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / len;
        let inverse = 1.0 / (square + f64::from(norm.eps)).sqrt();
        self.with(norm.weight, |held| {
            let Held::Norm { weight, bias } = held else { panic!("no norm") };
            let parameters = weight.iter().zip(bias.iter());
            x.iter()
                .zip(parameters)
                .map(|(x, (w, b))| (x - mean) * inverse * (w + f64::from(norm.offset)) + b)
                .collect()
        })
    }

    fn row(&self, want: WantId, row: usize) -> Vec<f64> {
        self.with(want, |held| {
            let Held::Matrix { cols, values, .. } = held else { panic!("no matrix") };
            values[row * *cols..][..*cols].to_vec()
        })
    }

    fn product(&self, want: WantId, x: &[f64]) -> Vec<f64> {
        self.with(want, |held| {
            let Held::Matrix { cols, values, bias } = held else { panic!("no matrix") };
            values.chunks(*cols).zip(bias).map(|(row, bias)| dot(row, x) + *bias).collect()
        })
    }

    fn rotate(&self, rope: Option<RopeUse>, position: u32, mut head: Vec<f64>) -> Vec<f64> {
        let Some(rope) = rope else { return head };
        self.with(rope.table, |held| {
            let Held::Rope { pairs, values } = held else { panic!("no rope") };
            for pair in 0..rope.dim / 2 {
                let at = (position as usize * *pairs + pair) * 2;
                let (cos, sin) = (values[at], values[at + 1]);
                let (i, j) = match rope.pairing {
                    Pairing::Half => (pair, pair + rope.dim / 2),
                    Pairing::Adjacent => (2 * pair, 2 * pair + 1),
                };
                (head[i], head[j]) = (head[i] * cos - head[j] * sin, head[j] * cos + head[i] * sin);
            }
        });
        head
    }

    fn store(
        &self,
        cache: WantId,
        places: &[Place],
        new_keys: &[Vec<Vec<f64>>],
        new_values: &[Vec<Vec<f64>>],
    ) {
        self.with(cache, |held| {
            let Held::Kv { shape, keys, values } = held else { panic!("no cache") };
            for (row, place) in places.iter().enumerate() {
                for head in 0..shape.kv_heads {
                    let slot = place.position as usize % self.flaw.around(shape);
                    let slot = place.sequence as usize * shape.slots() + slot;
                    let at = (slot * shape.kv_heads + head) * shape.head_dim;
                    for (to, from) in
                        [(&mut *keys, &new_keys[row][head]), (&mut *values, &new_values[row][head])]
                    {
                        let mut stored: Vec<f32> = from.iter().map(|&value| value as f32).collect();
                        round_trip(shape.dtype, &mut stored);
                        to[at..][..shape.head_dim].copy_from_slice(&super::widen(&stored));
                    }
                }
            }
        });
    }

    fn load(&self, cache: WantId, sequence: u32, position: u32, head: usize) -> (Vec<f64>, Vec<f64>) {
        self.with(cache, |held| {
            let Held::Kv { shape, keys, values } = held else { panic!("no cache") };
            let slot = position as usize % self.flaw.around(shape);
            let slot = sequence as usize * shape.slots() + slot;
            let at = (slot * shape.kv_heads + head) * shape.head_dim;
            (keys[at..][..shape.head_dim].to_vec(), values[at..][..shape.head_dim].to_vec())
        })
    }
}

fn add(to: &mut [f64], from: &[f64]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn cap(cap: Option<f32>, value: f64) -> f64 {
    cap.map_or(value, |cap| f64::from(cap) * (value / f64::from(cap)).tanh())
}

fn activate(act: Act, x: f64) -> f64 {
    match act {
        Act::Identity => x,
        Act::Silu => x / (1.0 + (-x).exp()),
        Act::Gelu => 0.5 * x * (1.0 + erf(x * FRAC_1_SQRT_2)),
        Act::GeluTanh => 0.5 * x * (1.0 + ((2.0 / PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh()),
        Act::Relu => x.max(0.0),
        Act::Tanh => x.tanh(),
    }
}

/// By a series of positive terms (Abramowitz & Stegun 7.1.6).
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term.abs() > 1e-18 * sum.abs() {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
    }
    FRAC_2_SQRT_PI * (-x * x).exp() * sum
}
