//! The conformance table catches every mutant of every step, as the reference kernels compute them.

use halfbyte_backend::conformance::{cases, mutants, run_mutant};
use halfbyte_cpu::CpuBackend;
use pollster::block_on;

#[test]
fn every_mutant_fails_a_case_of_its_row() {
    let (reference, subject) = (CpuBackend::scalar(), CpuBackend::scalar());
    let cases = cases();
    let mut missed = Vec::new();
    for mutant in mutants() {
        let caught = cases.iter().filter(|case| !case.heavy).any(|case| {
            let outcome = block_on(run_mutant(&mutant, case, &reference, &subject));
            // By its answers: a fault would say nothing about the numbers.
            outcome.is_some_and(|outcome| outcome.failed() && outcome.error > outcome.tolerance)
        });
        if !caught {
            missed.push(format!("{}: {}", mutant.step, mutant.name));
        }
    }
    assert!(missed.is_empty(), "no case catches {missed:#?}");
}
