//! The conformance table on the last adapter of this machine, against the CPU's scalar kernels.
//!
//! Where there is none the tests fail and say how to get one: software Vulkan will do.

use halfbyte_backend::conformance::{self, Verdict};
use halfbyte_cpu::CpuBackend;
use halfbyte_wgpu::{Options, WgpuBackend};

async fn open(options: Options) -> WgpuBackend {
    let devices = WgpuBackend::all().await.unwrap();
    WgpuBackend::open(devices.len() - 1, options).await.unwrap()
}

/// Runs the table; cases may be unsupported only for the reasons in `allowed`.
fn run(options: Options, allowed: &[&str]) {
    pollster::block_on(async {
        let subject = open(options).await;
        let reference = CpuBackend::scalar();
        let report = conformance::run(&reference, &subject, &mut |_| {}).await;
        assert!(report.passed() > 0);
        let failures: Vec<String> = report.failures().map(|outcome| format!("{outcome:?}")).collect();
        assert!(failures.is_empty(), "{} failed:\n{}", failures.len(), failures.join("\n"));
        for outcome in &report.outcomes {
            if let Verdict::Unsupported(why) = &outcome.result {
                assert!(allowed.iter().any(|allowed| why.contains(allowed)), "{}: {why}", outcome.case);
            }
        }
    });
}

#[test]
fn with_what_the_adapter_offers() {
    run(Options::default(), &[]);
}

#[test]
fn without_subgroups() {
    run(Options { subgroups: Some(false), ..Options::default() }, &[]);
}

#[test]
fn with_small_bindings() {
    run(Options { max_binding: Some(16 << 10), ..Options::default() }, &["a buffer holds 16384 at most"]);
}

#[test]
fn without_bounds_checks() {
    run(Options { checked: false, ..Options::default() }, &[]);
}
