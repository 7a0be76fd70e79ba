//! The conformance table on the last adapter of this machine, against the CPU's scalar kernels.
//!
//! Where there is none the tests fail and say how to get one: software Vulkan will do.

use halfbyte_backend::conformance::{self, Case, Report, Verdict};
use halfbyte_cpu::CpuBackend;
use halfbyte_wgpu::{Options, Tuning, WgpuBackend};

/// Runs the cases that `wanted` takes, by index; they may be unsupported only for the reasons in `allowed`.
fn run(options: Options, wanted: impl Fn(usize, &Case) -> bool, allowed: &[&str]) {
    let report = pollster::block_on(async {
        let devices = WgpuBackend::all().await.unwrap();
        let subject = WgpuBackend::open(devices.len() - 1, options).await.unwrap();
        let reference = CpuBackend::scalar();
        let mut report = Report::default();
        for (index, case) in conformance::cases().iter().enumerate() {
            if wanted(index, case) {
                report.outcomes.push(conformance::run_case(case, &reference, &subject).await);
            }
        }
        report
    });
    assert!(report.passed() > 20, "only {} cases passed", report.passed());
    let failures: Vec<String> = report.failures().map(|outcome| format!("{outcome:?}")).collect();
    assert!(failures.is_empty(), "{} failed:\n{}", failures.len(), failures.join("\n"));
    for outcome in &report.outcomes {
        if let Verdict::Unsupported(why) = &outcome.result {
            // Mixtures of experts run on the CPU so far.
            let experts = outcome.step == "moe" && why.contains("a mixture of experts");
            let known = experts || allowed.iter().any(|allowed| why.contains(allowed));
            assert!(known, "{}: {why}", outcome.case);
        }
    }
}

/// Shapes for GPUs, whatever the adapter is.
fn gpu(change: impl Fn(Tuning) -> Tuning) -> Options {
    Options { tuning: Some(change(Tuning::gpu(None))), ..Options::default() }
}

#[test]
fn with_what_the_adapter_offers() {
    run(Options { checked: true, ..Options::default() }, |_, _| true, &[]);
}

#[test]
fn as_on_a_gpu() {
    run(gpu(|tuning| tuning), |_, case| !case.heavy, &[]);
}

#[test]
fn without_subgroups() {
    let options = gpu(|tuning| tuning);
    run(Options { subgroups: Some(false), checked: true, ..options }, |_, _| true, &[]);
}

/// The shapes that products take where they are large, at any size.
#[test]
fn with_large_tiles_and_teams() {
    let options = gpu(|tuning| Tuning { busy: 1, ..tuning });
    run(options, |index, case| index % 2 == 0 && !case.heavy && product(case), &[]);
}

/// Lanes ask each other for the codebook.
#[test]
fn with_shuffles() {
    let options = gpu(|tuning| Tuning { shuffle: true, ..tuning });
    run(options, |index, case| index % 2 == 1 && !case.heavy && product(case), &[]);
}

/// Each shard of a product has its own pipeline, so heads are cut less finely than layers.
#[test]
fn with_small_shards() {
    let head = |case: &Case| matches!(case.step, "head" | "sample");
    let options = |bytes| Options { max_binding: Some(bytes), ..gpu(|tuning| tuning) };
    let allowed = ["four rows of", "learned positions and token types"];
    run(options(6 << 10), |index, case| index % 2 == 0 && !head(case) && !case.heavy, &allowed);
    run(options(96 << 10), |_, case| head(case) && !case.heavy, &allowed);
}

/// Whether the case is about matrix products.
fn product(case: &Case) -> bool {
    !matches!(case.step, "embed" | "attend" | "sample")
}
