//! The conformance table on the last adapter of this machine, against the CPU's scalar kernels.
//!
//! Where there is none the tests fail and say how to get one: software Vulkan will do.

use halfbyte_backend::conformance::{self, Report, Verdict};
use halfbyte_cpu::CpuBackend;
use halfbyte_wgpu::{Options, WgpuBackend};

/// Runs every `stride`th case; cases may be unsupported only for the reasons in `allowed`.
fn run(options: Options, stride: usize, allowed: &[&str]) {
    let report = pollster::block_on(async {
        let devices = WgpuBackend::all().await.unwrap();
        let subject = WgpuBackend::open(devices.len() - 1, options).await.unwrap();
        let reference = CpuBackend::scalar();
        let mut report = Report::default();
        for case in conformance::cases().iter().step_by(stride) {
            report.outcomes.push(conformance::run_case(case, &reference, &subject).await);
        }
        report
    });
    assert!(report.passed() > 200 / stride, "only {} cases passed", report.passed());
    let failures: Vec<String> = report.failures().map(|outcome| format!("{outcome:?}")).collect();
    assert!(failures.is_empty(), "{} failed:\n{}", failures.len(), failures.join("\n"));
    for outcome in &report.outcomes {
        if let Verdict::Unsupported(why) = &outcome.result {
            assert!(allowed.iter().any(|allowed| why.contains(allowed)), "{}: {why}", outcome.case);
        }
    }
}

#[test]
fn with_what_the_adapter_offers() {
    run(Options::default(), 1, &[]);
}

#[test]
fn without_subgroups() {
    run(Options { subgroups: Some(false), ..Options::default() }, 1, &[]);
}

#[test]
fn with_small_shards() {
    let options = Options { max_binding: Some(8 << 10), ..Options::default() };
    run(options, 2, &["four rows of", "in one binding", "learned positions and token types"]);
}

#[test]
fn without_bounds_checks() {
    run(Options { checked: false, ..Options::default() }, 3, &[]);
}
