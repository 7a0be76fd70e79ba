//! The conformance table on the last adapter of this machine, against the CPU's scalar kernels.
//!
//! Where there is none the tests fail and say how to get one: software Vulkan will do.

use halfbyte_backend::conformance::{self, Case, Report, Verdict};
use halfbyte_cpu::CpuBackend;
use halfbyte_wgpu::{Options, Tuning, WgpuBackend};

/// Runs the cases that `wanted` takes; they may be unsupported only for the reasons in `allowed`.
fn run(options: Options, wanted: impl Fn(&Case) -> bool, allowed: &[&str]) {
    let report = pollster::block_on(async {
        let devices = WgpuBackend::all().await.unwrap();
        let subject = WgpuBackend::open(devices.len() - 1, options).await.unwrap();
        let reference = CpuBackend::scalar();
        let mut report = Report::default();
        for case in conformance::cases().iter().filter(|case| wanted(case)) {
            let start = std::time::Instant::now();
            let outcome = conformance::run_case(case, &reference, &subject).await;
            println!("{outcome} {:?}", start.elapsed());
            report.outcomes.push(outcome);
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

/// With [`with_bounds_checks`] the whole table.
#[test]
fn with_what_the_adapter_offers() {
    run(Options::default(), |case| !share::<4, 3>(case), &[]);
}

#[test]
fn with_bounds_checks() {
    run(Options { checked: true, ..Options::default() }, share::<4, 3>, &[]);
}

#[test]
fn as_on_a_gpu() {
    as_on_a_gpu_on(share::<3, 0>);
}

#[test]
fn without_subgroups() {
    without_subgroups_on(share::<4, 0>);
}

#[test]
fn with_large_tiles_and_teams() {
    with_large_tiles_and_teams_on(share::<6, 1>);
}

#[test]
fn with_shuffles() {
    with_shuffles_on(share::<6, 3>);
}

#[test]
fn with_small_shards() {
    with_small_shards_on(share::<6, 5>);
}

#[test]
#[ignore = "compiles shaders for minutes: cargo test -p halfbyte-wgpu --test conformance -- --ignored"]
fn the_whole_table_in_every_way() {
    run(Options { checked: true, ..Options::default() }, |_| true, &[]);
    as_on_a_gpu_on(|_| true);
    without_subgroups_on(|_| true);
    with_large_tiles_and_teams_on(|_| true);
    with_shuffles_on(|_| true);
    with_small_shards_on(|_| true);
}

/// One of `PARTS` parts of the table: a software GPU compiles most of a second for a case, and the interpreter
/// (`crates/simt`) runs them all. By the seed, which follows from the name: no format and no size is left out for its
/// place in the list.
fn share<const PARTS: u64, const PART: u64>(case: &Case) -> bool {
    case.seed % PARTS == PART
}

fn as_on_a_gpu_on(share: impl Fn(&Case) -> bool) {
    run(gpu(|tuning| tuning), |case| share(case) && !case.heavy, &[]);
}

fn without_subgroups_on(share: impl Fn(&Case) -> bool) {
    let options = gpu(|tuning| tuning);
    run(Options { subgroups: Some(false), checked: true, ..options }, |case| share(case) || case.heavy, &[]);
}

/// The shapes that products take where they are large, at any size.
fn with_large_tiles_and_teams_on(share: impl Fn(&Case) -> bool) {
    let options = gpu(|tuning| Tuning { busy: 1, ..tuning });
    run(options, |case| share(case) && !case.heavy && product(case), &[]);
}

/// Lanes ask each other for the codebook.
fn with_shuffles_on(share: impl Fn(&Case) -> bool) {
    let options = gpu(|tuning| Tuning { shuffle: true, ..tuning });
    run(options, |case| share(case) && !case.heavy && product(case), &[]);
}

/// Each shard of a product has its own pipeline, so heads are cut less finely than layers.
fn with_small_shards_on(share: impl Fn(&Case) -> bool) {
    let head = |case: &Case| matches!(case.step, "head" | "sample");
    let options = |bytes| Options { max_binding: Some(bytes), ..gpu(|tuning| tuning) };
    let allowed = ["four rows of", "learned positions and token types"];
    run(options(6 << 10), |case| share(case) && !head(case) && !case.heavy, &allowed);
    run(options(96 << 10), |case| head(case) && !case.heavy, &allowed);
}

/// Whether the case is about matrix products.
fn product(case: &Case) -> bool {
    !matches!(case.step, "embed" | "attend" | "sample")
}
