//! The parts of a case that mutants change. Each visitor answers whether anything changed.

use super::super::{Case, Take};
use crate::{
    Attend, Embed, EmitKind, Format, Head, Kind, KvType, LinearShape, LinearStep, Moe, Norm, NormShape, Pre,
    QuantFormat, RopeShape, RopeUse, Step,
};

/// Sets a value; whether it differs.
pub(super) fn set<T: PartialEq>(value: &mut T, to: T) -> bool {
    let differs = *value != to;
    *value = to;
    differs
}

/// Sets a value if it is `from`.
pub(super) fn replace<T: PartialEq>(value: &mut T, from: T, to: T) -> bool {
    *value == from && set(value, to)
}

/// Replaces a value by what `change` makes of it; whether it differs.
pub(super) fn update<T: PartialEq + Copy>(value: &mut T, change: impl FnOnce(T) -> T) -> bool {
    let to = change(*value);
    set(value, to)
}

/// Exchanges two elements.
pub(super) fn exchange<T>(list: &mut [T], a: usize, b: usize) -> bool {
    list.swap(a, b);
    true
}

/// Changes all elements; whether any did.
pub(super) fn any<'a, T: 'a>(
    items: impl IntoIterator<Item = &'a mut T>,
    mut change: impl FnMut(&mut T) -> bool,
) -> bool {
    items.into_iter().fold(false, |changed, item| change(item) | changed)
}

pub(super) fn embeds(case: &mut Case, mut change: impl FnMut(&mut Embed) -> bool) -> bool {
    any(&mut case.stretch.steps, |step| if let Step::Embed(step) = step { change(step) } else { false })
}

pub(super) fn linears(case: &mut Case, mut change: impl FnMut(&mut LinearStep) -> bool) -> bool {
    any(&mut case.stretch.steps, |step| if let Step::Linear(step) = step { change(step) } else { false })
}

pub(super) fn attends(case: &mut Case, mut change: impl FnMut(&mut Attend) -> bool) -> bool {
    any(&mut case.stretch.steps, |step| if let Step::Attend(step) = step { change(step) } else { false })
}

pub(super) fn heads(case: &mut Case, mut change: impl FnMut(&mut Head) -> bool) -> bool {
    any(&mut case.stretch.steps, |step| if let Step::Head(step) = step { change(step) } else { false })
}

pub(super) fn mixtures(case: &mut Case, mut change: impl FnMut(&mut Moe) -> bool) -> bool {
    any(&mut case.stretch.steps, |step| if let Step::Moe(step) = step { change(step) } else { false })
}

pub(super) fn ropes(case: &mut Case, mut change: impl FnMut(&mut RopeUse) -> bool) -> bool {
    attends(case, |step| step.rope.as_mut().is_some_and(&mut change))
}

pub(super) fn pres(case: &mut Case, mut change: impl FnMut(&mut Pre) -> bool) -> bool {
    any(&mut case.stretch.steps, |step| match step {
        Step::Linear(step) => change(&mut step.pre),
        Step::Moe(step) => change(&mut step.pre),
        Step::Head(step) => change(&mut step.pre),
        Step::Embed(_) | Step::Attend(_) => false,
    })
}

pub(super) fn emits(case: &mut Case, mut change: impl FnMut(&mut EmitKind) -> bool) -> bool {
    pres(case, |pre| pre.emit.as_mut().is_some_and(|emit| change(&mut emit.kind)))
}

pub(super) fn norms(case: &mut Case, mut change: impl FnMut(&mut Norm) -> bool) -> bool {
    any(&mut case.stretch.steps, |step| {
        let norms = match step {
            Step::Embed(step) => [Some(&mut step.norm), None],
            Step::Linear(step) => [Some(&mut step.pre.post), Some(&mut step.pre.norm)],
            Step::Attend(step) => [Some(&mut step.q_norm), Some(&mut step.k_norm)],
            Step::Moe(step) => [Some(&mut step.pre.post), Some(&mut step.pre.norm)],
            Step::Head(step) => [Some(&mut step.pre.post), Some(&mut step.pre.norm)],
        };
        any(norms.into_iter().flatten().flatten(), &mut change)
    })
}

pub(super) fn shapes(case: &mut Case, mut change: impl FnMut(&mut LinearShape) -> bool) -> bool {
    any(
        &mut case.stretch.wants,
        |want| if let Kind::Linear(shape) = &mut want.kind { change(shape) } else { false },
    )
}

pub(super) fn norm_shapes(case: &mut Case, mut change: impl FnMut(&mut NormShape) -> bool) -> bool {
    any(
        &mut case.stretch.wants,
        |want| if let Kind::Norm(shape) = &mut want.kind { change(shape) } else { false },
    )
}

pub(super) fn tables(case: &mut Case, mut change: impl FnMut(&mut RopeShape) -> bool) -> bool {
    any(
        &mut case.stretch.wants,
        |want| if let Kind::Rope(shape) = &mut want.kind { change(shape) } else { false },
    )
}

pub(super) fn caches(case: &mut Case, mut change: impl FnMut(&mut KvType) -> bool) -> bool {
    any(&mut case.stretch.wants, |want| {
        if let Kind::Kv(shape) = &mut want.kind { change(&mut shape.dtype) } else { false }
    })
}

pub(super) fn requantize(shape: &mut LinearShape, mut change: impl FnMut(&mut QuantFormat) -> bool) -> bool {
    any(&mut shape.segments, |segment| {
        if let Format::Quant(quant) = &mut segment.format { change(quant) } else { false }
    })
}

pub(super) fn takes(case: &mut Case, mut change: impl FnMut(&mut Take) -> bool) -> bool {
    any(&mut case.submissions, |submission| change(&mut submission.take))
}
