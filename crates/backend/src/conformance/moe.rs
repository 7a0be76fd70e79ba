//! Row `moe`: mixtures of experts.

use super::linear::{NF4, formats, named};
use super::{Case, Fill};
use crate::{Act, Arrangement, DType, Format, Moe, Pre, Step};

/// Experts, how many a row takes, and whether their weights are made to sum to 1.
const CHOICES: [(usize, usize, bool); 5] =
    [(4, 2, true), (8, 2, false), (5, 3, true), (3, 1, false), (2, 2, true)];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (experts, top_k, renormalize) in CHOICES {
        let sum = if renormalize { ", made to sum to 1" } else { "" };
        let name = format!("{top_k} of {experts}{sum}");
        cases.push(mixture(name, (experts, top_k, renormalize), (64, 33), NF4, Act::Silu));
    }
    for format in formats() {
        cases.push(mixture(named(format), (4, 2, true), (172, 20), format, Act::Silu));
    }
    for (hidden, inner) in [(33, 1), (64, 48), (130, 257)] {
        let name = format!("hidden {hidden}, inner {inner}");
        cases.push(mixture(name, (5, 2, true), (hidden, inner), NF4, Act::GeluTanh));
    }
    cases
}

/// Experts of `hidden` and `inner` in `format` behind a norm, adding to a stream.
fn mixture(
    name: String,
    (experts, top_k, renormalize): (usize, usize, bool),
    (hidden, inner): (usize, usize),
    format: Format,
    act: Act,
) -> Case {
    let mut case = Case::new("moe", name);
    let stream = case.input(hidden, Fill::Normal(1.0));
    let out = case.output(hidden, Fill::Poison);
    let pre = Pre::norm(case.rms(hidden));
    let router = case.linear(experts, hidden, Format::Dense(DType::F32), false);
    let halves = [(inner, false), (inner, false)];
    let gate_ups: Vec<_> =
        (0..experts).map(|_| case.stack(&halves, hidden, format, Arrangement::Interleaved)).collect();
    let downs: Vec<_> = (0..experts).map(|_| case.linear(hidden, inner, format, false)).collect();
    case.step(Step::Moe(Moe {
        input: stream,
        pre,
        router,
        experts,
        top_k,
        renormalize,
        gate_up: gate_ups[0],
        down: downs[0],
        act,
        residual: Some(stream),
        out,
    }));
    [1, 2, 9, 70].into_iter().for_each(|count| case.hidden(count));
    case
}
