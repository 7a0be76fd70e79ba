//! The conformance table, on every path that this processor runs.

use halfbyte_backend::conformance;
use halfbyte_cpu::{CpuBackend, CpuOptions, Path};

#[test]
fn every_path_passes_the_table() {
    let reference = CpuBackend::scalar();
    for path in Path::ALL.into_iter().filter(|path| path.available()) {
        let options = CpuOptions { path: Some(path), ..CpuOptions::default() };
        let subject = CpuBackend::with(options).expect("an available path");
        let report = pollster::block_on(conformance::run(&reference, &subject, &mut |_| {}));
        assert!(report.unsupported() == 0 && report.failed() == 0, "{path}:\n{report}");
    }
}
