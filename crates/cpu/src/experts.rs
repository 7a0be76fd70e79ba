//! A mixture of experts, put together from the products that the kernels have.

use crate::bound::{BoundPre, Epilogue, Product};
use crate::layout::padded;
use crate::matrix::Matrix;
use crate::program::{Kernels, State};
use crate::slots::Shared;
use halfbyte_backend::{Act, Moe};

/// A product without an activation.
const PLAIN: Epilogue = Epilogue { act: Act::Identity, gated: false, scale: 1.0, softcap: None };

/// What follows an expert depends on the data.
fn product(weight: &Matrix, epilogue: Epilogue, rows: usize) -> Product<'_> {
    Product { weight, next: None, epilogue, rows }
}

impl State {
    /// Rows `first .. first + rows` of one pass. Each expert runs once, over the rows that chose it.
    #[allow(clippy::too_many_arguments, reason = "a step's parts and the rows of a pass")]
    pub(crate) fn experts(
        &mut self,
        step: &Moe,
        pre: &BoundPre,
        router: &Matrix,
        experts: &[(Shared<Matrix>, Shared<Matrix>)],
        first: usize,
        rows: usize,
        kernels: &dyn Kernels,
    ) {
        let (hidden, columns) = (router.cols, padded(router.cols));
        let mut scratch = std::mem::take(&mut self.experts);
        let (normed, rest) = scratch.split_at_mut(rows * columns);
        let (weights, gated) = rest.split_at_mut(rows * step.experts);

        self.pre(step.input, pre, first, rows, 0, kernels);
        normed.copy_from_slice(&self.x[..rows * columns]);
        let scores = &mut self.y[..rows * step.experts];
        let x = &mut self.x[..rows * columns];
        kernels.product(&self.team, product(router, PLAIN, rows), x, scores, &self.scratch);
        for (row, weights) in weights.chunks_exact_mut(step.experts).enumerate() {
            weights.iter_mut().zip(scores[row..].iter().step_by(rows)).for_each(|(w, s)| *w = *s);
            choose(weights, step.top_k, step.renormalize);
        }
        // Those that lie in files come while the first of them computes.
        for (expert, (gate_up, down)) in experts.iter().enumerate() {
            if (0..rows).any(|row| weights[row * step.experts + expert] >= 0.0) {
                for matrix in [gate_up, down] {
                    matrix.read().files().for_each(|file| file.will_need());
                }
            }
        }

        let mut out = std::mem::take(&mut self.registers[usize::from(step.out.0)]);
        let out_rows = &mut out[first * hidden..(first + rows) * hidden];
        match step.residual {
            None => out_rows.fill(0.0),
            Some(reg) if reg == step.out => {}
            Some(reg) => {
                let residual = &self.registers[usize::from(reg.0)];
                out_rows.copy_from_slice(&residual[first * hidden..(first + rows) * hidden]);
            }
        }
        for (expert, (gate_up, down)) in experts.iter().enumerate() {
            let of = |row: usize| weights[row * step.experts + expert];
            let mut chosen = 0;
            for row in (0..rows).filter(|&row| of(row) >= 0.0) {
                let input = &normed[row * columns..(row + 1) * columns];
                self.x[chosen * columns..(chosen + 1) * columns].copy_from_slice(input);
                chosen += 1;
            }
            if chosen == 0 {
                continue;
            }
            self.used[expert] = true;
            let (gate_up, down) = (gate_up.read(), down.read());
            let epilogue = Epilogue { act: step.act, gated: true, ..PLAIN };
            let x = &mut self.x[..chosen * columns];
            let y = &mut self.y[..chosen * gate_up.rows];
            kernels.product(&self.team, product(&gate_up, epilogue, chosen), x, y, &self.scratch);
            let gated = &mut gated[..chosen * padded(down.cols)];
            gated.fill(0.0);
            kernels.place(&self.team, y, 2, 0, None, chosen, gated);
            let y = &mut self.y[..chosen * hidden];
            kernels.product(&self.team, product(&down, PLAIN, chosen), gated, y, &self.scratch);
            for (at, row) in (0..rows).filter(|&row| of(row) >= 0.0).enumerate() {
                let products = y[at..].iter().step_by(chosen);
                let out = &mut out_rows[row * hidden..(row + 1) * hidden];
                out.iter_mut().zip(products).for_each(|(out, product)| *out += of(row) * product);
            }
        }
        self.registers[usize::from(step.out.0)] = out;
        self.experts = scratch;
    }
}

/// Turns scores, `[experts]`, into the weights of the `top_k` likeliest, and -1 for all others.
fn choose(scores: &mut [f32], top_k: usize, renormalize: bool) {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = scores.iter().map(|&score| f64::from(score - largest).exp()).sum();
    let weight = |score: f32| f64::from(score - largest).exp() / total;
    // The likeliest first, the lower expert first among equals.
    let order = |a: &(usize, f32), b: &(usize, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    // One after the other, without a list: nothing is allocated for a token.
    let mut last = None;
    let mut sum = 0.0;
    for _ in 0..top_k.min(scores.len()) {
        let experts = scores.iter().copied().enumerate();
        let later = experts.filter(|expert| last.is_none_or(|last| order(expert, &last).is_gt()));
        let Some(next) = later.min_by(order) else { break };
        sum += weight(next.1);
        last = Some(next);
    }
    let sum = if renormalize { sum } else { 1.0 };
    for (expert, score) in scores.iter_mut().enumerate() {
        let chosen = last.is_some_and(|last| order(&(expert, *score), &last).is_le());
        *score = if chosen { (weight(*score) / sum) as f32 } else { -1.0 };
    }
}

#[cfg(test)]
mod tests {
    use super::choose;

    #[test]
    fn the_likeliest_are_chosen_and_the_lower_among_equals() {
        let mut scores = [0.0, 1.0, 1.0, -3.0, 1.0];
        choose(&mut scores, 2, true);
        assert_eq!(scores, [-1.0, 0.5, 0.5, -1.0, -1.0]);
        let mut scores = [2f32.ln(), 0.0, -100.0];
        choose(&mut scores, 1, false);
        assert!((scores[0] - 2.0 / 3.0).abs() < 1e-6 && scores[1..] == [-1.0, -1.0], "{scores:?}");
    }
}
