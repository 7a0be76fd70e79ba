//! Row `moe`: mixtures of experts.

use super::linear::{NF4, formats, named};
use super::{Case, Fill};
use crate::{Act, Arrangement, DType, Format, Kind, Moe, Pre, Step};

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
    let mut many = mixture("8 of 130".into(), (130, 8, true), (33, 4), Format::Dense(DType::F16), Act::Silu);
    many.submissions.truncate(3);
    cases.push(many);

    let usual = |name: &str| mixture(name.into(), (5, 2, true), (66, 33), NF4, Act::Silu);
    let mut alone = usual("no residual");
    alter(&mut alone, |step| step.residual = None);
    cases.push(alone);
    // The output is what norm, router and every expert read.
    let mut in_place = usual("in place");
    in_place.stretch.outputs = vec![in_place.stretch.inputs[0]];
    alter(&mut in_place, |step| step.out = step.input);
    cases.push(in_place);
    let mut bare = usual("in place without a norm");
    bare.stretch.outputs = vec![bare.stretch.inputs[0]];
    alter(&mut bare, |step| (step.out, step.pre) = (step.input, Pre::default()));
    cases.push(bare);
    // Experts 7 to 13 score as 0 to 6 do, to the bit.
    let mut equals = mixture("equals: the lower expert".into(), (14, 3, true), (64, 33), NF4, Act::Silu);
    for want in &mut equals.stretch.wants {
        if let Kind::Linear(shape) = &mut want.kind
            && shape.rows() == 14
        {
            shape.segments[0].tensor = "router.tied.weight".into();
        }
    }
    cases.push(equals);
    cases
}

fn alter(case: &mut Case, change: impl Fn(&mut Moe)) {
    for step in &mut case.stretch.steps {
        if let Step::Moe(step) = step {
            change(step);
        }
    }
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
