//! The conformance table's linear rows on the wgpu runtime, against the scalar CPU.

use halfbyte_backend::conformance::{Verdict, cases, run_case};
use halfbyte_cpu::CpuBackend;
use halfbyte_cuda::{CubeBackend, WgpuRuntime};

/// What this backend says it lacks; everything else must pass.
const MISSING: [&str; 3] = ["residual before it", "post-norm", "emits"];

#[test]
fn the_linear_rows_of_the_table() {
    let subject =
        CubeBackend::<WgpuRuntime>::open().expect("this test needs a wgpu adapter; Mesa's lavapipe will do");
    let reference = CpuBackend::scalar();
    let (mut passed, mut failures) = (0, Vec::new());
    for case in cases() {
        if !["norm_linear", "norm_gate_up", "linear_residual"].contains(&case.step) {
            continue;
        }
        let start = std::time::Instant::now();
        let outcome = pollster::block_on(run_case(&case, &reference, &subject));
        println!(
            "{}: {}: {:.1e} {:?} {:?}",
            outcome.step,
            outcome.case,
            outcome.error,
            outcome.result,
            start.elapsed()
        );
        match &outcome.result {
            Verdict::Passed => passed += 1,
            Verdict::Unsupported(what) if MISSING.iter().any(|missing| what.contains(missing)) => {}
            _ => failures.push(outcome),
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
    assert!(passed >= 40, "only {passed} cases ran");
}
