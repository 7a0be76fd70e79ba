//! The conformance table: the cases that every backend must pass.
//!
//! [`run`] compares a backend with a reference over [`cases`]; it is the test suite of every backend
//! and `halfbyte doctor` on a user's device. All weights and inputs come from seeds.
//!
//! A case also holds a backend to its word on memory: the ledger must grow by exactly what the
//! [`Layout`](crate::Layout) says at `reserve` and `compile`, and be as before when everything is gone.
//!
//! [`compare_kv`] and [`compare_draws`] hold two backends, and a device and the host, to the same bytes and tokens.
//!
//! [`mutants`] are small errors of meaning (a norm's eps, a window's edge). A test runs each of them
//! against the right reference: a mutant that no case of its row catches is a hole in the table.

mod attend;
mod case;
mod draws;
mod embed;
mod execute;
mod head;
mod kv_moves;
mod linear;
mod moe;
mod mutants;
mod report;
mod weights;

pub use case::{Case, Feed, Fill, Submission, TOLERANCE, Take};
pub use draws::compare_draws;
pub use kv_moves::compare_kv;
pub use mutants::{Mutant, mutants, run_mutant};
pub use report::{Outcome, Report, Verdict};
pub use weights::SeededWeights;

use crate::Backend;

/// All cases, row by row. Making them is cheap: weights and inputs are made when a case runs.
pub fn cases() -> Vec<Case> {
    let mut cases = embed::cases();
    cases.extend(linear::cases());
    cases.extend(attend::cases());
    cases.extend(moe::cases());
    cases.extend(head::cases());
    cases
}

/// Runs one case on both backends and compares their answers.
pub async fn run_case(case: &Case, reference: &dyn Backend, subject: &dyn Backend) -> Outcome {
    execute::compare(case, reference, case, subject).await
}

/// Runs all cases; `on` sees each outcome as it comes.
pub async fn run(reference: &dyn Backend, subject: &dyn Backend, on: &mut dyn FnMut(&Outcome)) -> Report {
    run_all(cases(), reference, subject, on).await
}

/// Runs the cases that multiply with weights, for a subject whose products are rougher than float32: of each case a
/// relative error of what `tolerance` says passes, too.
pub async fn run_products(
    tolerance: &dyn Fn(&Case) -> f64,
    reference: &dyn Backend,
    subject: &dyn Backend,
    on: &mut dyn FnMut(&Outcome),
) -> Report {
    let mut products = cases();
    products.retain(|case| !["embed", "attend", "encoder", "sample"].contains(&case.step));
    for case in &mut products {
        case.tolerance = case.tolerance.max(tolerance(case));
    }
    run_all(products, reference, subject, on).await
}

async fn run_all(
    cases: Vec<Case>,
    reference: &dyn Backend,
    subject: &dyn Backend,
    on: &mut dyn FnMut(&Outcome),
) -> Report {
    let mut report = Report::default();
    for case in cases {
        let outcome = run_case(&case, reference, subject).await;
        on(&outcome);
        report.outcomes.push(outcome);
    }
    report
}
