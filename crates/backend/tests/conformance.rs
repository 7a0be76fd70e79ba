//! The table itself: it can be passed, it covers what there is, and every mutant is caught.

mod oracle;

use halfbyte_backend::conformance::{cases, mutants, run, run_case, run_mutant};
use halfbyte_backend::{
    Act, Arrangement, DType, EmitKind, Format, Input, Kind, KvType, NormKind, Output, Pairing, Rows, Step,
};
use halfbyte_quant::QuantType;
use oracle::{Flaw, Oracle};
use pollster::block_on;
use std::collections::BTreeSet;
use std::fmt::Debug;

/// An oracle with a flaw.
fn flawed(flaw: Flaw) -> Oracle {
    let mut oracle = Oracle::new();
    oracle.flaw = flaw;
    oracle
}

#[test]
fn the_oracle_passes_against_itself() {
    let report = block_on(run(&Oracle::new(), &Oracle::new(), &mut |_| {}));
    assert_eq!((report.failed(), report.unsupported()), (0, 0), "{report}");
    assert!(report.outcomes.iter().all(|outcome| outcome.error == 0.0));
}

#[test]
fn flawed_backends_fail() {
    let cases = cases();
    for (flaw, steps) in [
        (Flaw::Layout, &["embed", "attend", "head"][..]),
        (Flaw::Leak, &["embed", "attend", "head"]),
        (Flaw::AcceptsAll, &["linear_residual", "attend"]),
        (Flaw::SeesNext, &["attend", "merge_linear"]),
        (Flaw::ShortRing, &["attend"]),
        (Flaw::AddsToOutput, &["norm_linear", "norm_gate_up", "linear_residual", "merge_linear", "pre"]),
        (Flaw::HighestTie, &["sample"]),
        (Flaw::FirstChoice, &["sample"]),
        (Flaw::ForgetsChoice, &["sample"]),
    ] {
        for step in steps {
            let caught = cases.iter().filter(|case| case.step == *step && !case.heavy).any(|case| {
                let outcome = block_on(run_case(case, &Oracle::new(), &flawed(flaw)));
                outcome.failed()
            });
            assert!(caught, "no case of {step} catches {flaw:?}");
        }
    }
}

#[test]
fn no_choice_hangs_on_rounding() {
    for case in cases().iter().filter(|case| ["head", "sample"].contains(&case.step)) {
        let outcome = block_on(run_case(case, &Oracle::new(), &flawed(Flaw::TakesNear)));
        assert!(outcome.passed(), "{outcome}");
    }
}

#[test]
fn every_mutant_is_caught() {
    let (reference, subject) = (Oracle::new(), Oracle::new());
    let cases = cases();
    let mut missed = Vec::new();
    for mutant in mutants() {
        let catches = |case: &_| {
            let outcome = block_on(run_mutant(&mutant, case, &reference, &subject));
            // Caught by its answers: a fault would say nothing about the numbers.
            outcome.is_some_and(|outcome| outcome.failed() && outcome.error > outcome.tolerance)
        };
        if !cases.iter().filter(|case| !case.heavy).any(catches) {
            missed.push(format!("{}: {}", mutant.step, mutant.name));
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
}

#[test]
fn names_differ_and_shapes_agree() {
    let mut names = BTreeSet::new();
    for case in cases() {
        assert!(names.insert((case.step, case.name.clone())), "two cases {}: {}", case.step, case.name);
        case.stretch.check().unwrap_or_else(|fault| panic!("{}: {}: {fault}", case.step, case.name));
        assert_eq!(case.fills.len(), case.stretch.inputs.len());
        assert!(!case.submissions.is_empty(), "{}: {} submits nothing", case.step, case.name);
        for submission in &case.submissions {
            let rows = Rows { input: Input::Chosen, places: &submission.places, output: Output::Nothing };
            rows.check(&case.caps, 0).unwrap_or_else(|fault| panic!("{}: {}: {fault}", case.step, case.name));
        }
    }
}

/// All of `wanted` must be among `found`.
fn covers<T: Debug>(found: &BTreeSet<String>, wanted: impl IntoIterator<Item = T>) {
    for value in wanted {
        assert!(found.contains(&format!("{value:?}")), "no case has {value:?}");
    }
}

#[test]
fn every_variant_has_a_case() {
    let mut found = BTreeSet::new();
    let mut rows = BTreeSet::new();
    for case in cases() {
        rows.insert(case.step.to_owned());
        let mut note = |value: &dyn Debug| found.insert(format!("{value:?}"));
        for step in &case.stretch.steps {
            match step {
                Step::Embed(step) => {
                    note(&"step embed");
                    step.norm.iter().for_each(|norm| _ = note(&norm.kind));
                }
                Step::Linear(step) => {
                    note(&"step linear");
                    note(&(step.act, step.gated));
                    let norms = step.pre.norm.iter().chain(&step.pre.post);
                    norms.for_each(|norm| _ = note(&norm.kind));
                    step.pre.emit.iter().for_each(|emit| _ = note(&emit.kind));
                }
                Step::Attend(step) => {
                    note(&"step attend");
                    note(&("cache", step.cache.is_some(), step.causal));
                    step.rope.iter().for_each(|rope| _ = note(&rope.pairing));
                }
                Step::Moe(step) => _ = note(&("step moe", step.renormalize)),
                Step::Head(_) => _ = note(&"step head"),
            }
        }
        for want in &case.stretch.wants {
            match &want.kind {
                Kind::Linear(shape) => {
                    note(&(shape.arrangement, shape.segments.len().min(2)));
                    match shape.format() {
                        Format::Dense(dtype) => _ = note(&dtype),
                        Format::Quant(quant) => {
                            note(&(quant.quant_type, quant.double_quant));
                            note(&quant.blocksize);
                        }
                    }
                }
                Kind::Kv(shape) => _ = note(&shape.dtype),
                Kind::Norm(_) | Kind::Rope(_) => {}
            }
        }
    }
    covers(&found, ["step embed", "step linear", "step attend", "step head"]);
    covers(&found, [("step moe", true), ("step moe", false)]);
    let acts = [Act::Identity, Act::Silu, Act::Gelu, Act::GeluTanh, Act::Relu, Act::Tanh];
    covers(&found, acts.iter().flat_map(|act| [(act, true), (act, false)]));
    covers(&found, [NormKind::Rms, NormKind::Layer]);
    covers(&found, [EmitKind::Sum, EmitKind::Normed]);
    covers(&found, [Pairing::Half, Pairing::Adjacent]);
    covers(&found, [KvType::F32, KvType::F16, KvType::Q8, KvType::Q4]);
    covers(&found, [DType::F32, DType::F16, DType::Bf16]);
    covers(&found, [QuantType::Nf4, QuantType::Fp4].iter().flat_map(|kind| [(kind, true), (kind, false)]));
    covers(&found, [32, 64, 256, 4096]);
    covers(&found, [(Arrangement::Stacked, 1), (Arrangement::Stacked, 2)]);
    covers(&found, [(Arrangement::Interleaved, 1), (Arrangement::Interleaved, 2)]);
    covers(
        &found,
        [("cache", true, true), ("cache", true, false), ("cache", false, true), ("cache", false, false)],
    );
    let steps = ["embed", "norm_linear", "attend", "merge_linear", "norm_gate_up", "linear_residual", "pre"];
    assert_eq!(rows, steps.into_iter().chain(["moe", "head", "sample"]).map(str::to_owned).collect());
}
