//! The conformance table, on every path that this processor runs, or on the one that `HALFBYTE_CPU` names.

/// Written from the definitions of the steps by another hand.
#[path = "../../backend/tests/oracle/mod.rs"]
mod oracle;

use halfbyte_backend::conformance;
use halfbyte_cpu::{CpuBackend, CpuOptions, Math, Path};
use pollster::block_on;

/// The fast kernels to walk.
fn subjects(math: Math) -> impl Iterator<Item = CpuBackend> {
    let paths = Path::walk().unwrap().into_iter().filter(|&path| path != Path::Scalar);
    paths.map(move |path| {
        let options = CpuOptions { path: Some(path), math: Some(math), ..CpuOptions::default() };
        CpuBackend::with(options).expect("an available path")
    })
}

#[test]
fn the_reference_agrees_with_the_oracle() {
    let report = block_on(conformance::run(&oracle::Oracle::new(), &CpuBackend::scalar(), &mut |_| {}));
    assert_eq!((report.failed(), report.unsupported()), (0, 0), "{report}");
}

#[test]
fn every_fast_path_passes_the_table() {
    let reference = CpuBackend::scalar();
    for subject in subjects(Math::Exact) {
        let report = block_on(conformance::run(&reference, &subject, &mut |_| {}));
        assert_eq!((report.failed(), report.unsupported()), (0, 0), "{}:\n{report}", subject.path());
    }
}

#[test]
fn fast_arithmetic_passes_the_table_where_bytes_hold_enough() {
    let reference = CpuBackend::scalar();
    for subject in subjects(Math::Fast) {
        let report =
            block_on(conformance::run_products(&Math::fast_tolerance, &reference, &subject, &mut |_| {}));
        assert_eq!((report.failed(), report.unsupported()), (0, 0), "{}:\n{report}", subject.path());
        // What is allowed is what happens, and only where bytes are multiplied.
        let rough = report.outcomes.iter().filter(|outcome| outcome.tolerance > conformance::TOLERANCE);
        let near = rough.filter(|outcome| outcome.error > outcome.tolerance / 2.0).count();
        assert!(near >= 3, "{}: only {near} cases come near their tolerance", subject.path());
    }
}
