//! The conformance table, on every path that this processor runs.

/// Written from the definitions of the steps by another hand.
#[path = "../../backend/tests/oracle/mod.rs"]
mod oracle;

use halfbyte_backend::conformance;
use halfbyte_cpu::{CpuBackend, CpuOptions, Path};
use pollster::block_on;

#[test]
fn the_reference_agrees_with_the_oracle() {
    let report = block_on(conformance::run(&oracle::Oracle::new(), &CpuBackend::scalar(), &mut |_| {}));
    assert_eq!((report.failed(), report.unsupported()), (0, 0), "{report}");
}

#[test]
fn every_fast_path_passes_the_table() {
    let reference = CpuBackend::scalar();
    for path in Path::ALL.into_iter().filter(|&path| path.available() && path != Path::Scalar) {
        let options = CpuOptions { path: Some(path), ..CpuOptions::default() };
        let subject = CpuBackend::with(options).expect("an available path");
        let report = block_on(conformance::run(&reference, &subject, &mut |_| {}));
        assert_eq!((report.failed(), report.unsupported()), (0, 0), "{path}:\n{report}");
    }
}
