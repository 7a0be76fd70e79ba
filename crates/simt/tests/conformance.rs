//! The conformance table on the interpreter, with subgroups of every size and without, and nothing found
//! by its checks.
//!
//! Real GPUs have subgroups of 8 to 64; software Vulkan has 8 alone. `SIMT_TIMES=1` prints each case.

use halfbyte_backend::conformance::{self, Case, Outcome, Verdict};
use halfbyte_cpu::CpuBackend;
use halfbyte_simt::{Adapter, Settings};
use halfbyte_wgpu::{Options, Tuning, WgpuBackend};
use std::time::Instant;

/// Runs the cases that `wanted` takes, by index.
fn run(settings: Settings, options: Options, wanted: impl Fn(usize, &Case) -> bool) {
    // Slabs in f16 are held to texts and perplexity elsewhere: here only to their accesses.
    let exact = options.tuning.is_none_or(|tuning| !tuning.half_slabs);
    let adapter = Adapter::new(settings);
    let reference = CpuBackend::scalar();
    let subject = pollster::block_on(WgpuBackend::on(&adapter.wgpu(), 0, options)).unwrap();
    let mut broken = Vec::new();
    let mut passed = 0;
    for (index, case) in conformance::cases().iter().enumerate() {
        if !wanted(index, case) {
            continue;
        }
        let (start, before) = (Instant::now(), adapter.operations());
        let outcome = pollster::block_on(conformance::run_case(case, &reference, &subject));
        if std::env::var_os("SIMT_TIMES").is_some() {
            let seconds = start.elapsed().as_secs_f64();
            let operations = adapter.operations() - before;
            println!("{seconds:7.3} s {:7.1} M/s {index} {outcome}", operations as f64 / seconds / 1e6);
        }
        passed += usize::from(outcome.passed() || !exact);
        broken.extend(complaint(&outcome).filter(|_| exact));
        broken.extend(adapter.findings().iter().map(|finding| format!("{}: {finding}", outcome.case)));
    }
    assert!(broken.is_empty(), "{} complaints:\n{}", broken.len(), broken.join("\n"));
    assert!(passed > 20, "only {passed} cases passed");
}

/// What is wrong with an outcome.
fn complaint(outcome: &Outcome) -> Option<String> {
    match &outcome.result {
        Verdict::Passed => None,
        // Mixtures of experts run on the CPU so far where their router is too wide.
        Verdict::Unsupported(why) if outcome.step == "moe" && why.contains("a mixture of experts") => None,
        Verdict::Unsupported(_) | Verdict::Failed(_) => Some(outcome.to_string()),
    }
}

fn subgroups(least: u32, size: u32) -> Settings {
    Settings { subgroup: Some((least, size)), seed: u64::from(size), ..Settings::default() }
}

#[test]
#[ignore = "all cases at every size take minutes: cargo test -p halfbyte-simt --test conformance -- --ignored"]
fn the_whole_table_at_every_size() {
    for size in [8, 16, 32, 64] {
        run(subgroups(size, size), Options::default(), |_, _| true);
    }
    // Sizes that a driver chooses among: shaders may count on the least only.
    run(subgroups(8, 32), Options::default(), |_, _| true);
    run(Settings { subgroup: None, ..Settings::default() }, Options::default(), |_, _| true);
}

/// A third of the table for each size, by turns; together they are all of it but what is heavy.
fn share(settings: Settings, turn: usize) {
    run(settings, Options::default(), |index, case| index % 3 == turn && !case.heavy);
}

#[test]
fn subgroups_of_8() {
    share(subgroups(8, 8), 0);
}

#[test]
fn subgroups_of_16() {
    share(subgroups(16, 16), 2);
}

#[test]
fn subgroups_of_32() {
    share(subgroups(32, 32), 0);
}

#[test]
fn subgroups_of_64() {
    share(subgroups(64, 64), 1);
}

#[test]
fn subgroups_of_8_to_32() {
    share(subgroups(8, 32), 2);
}

#[test]
fn no_subgroups() {
    share(Settings { subgroup: None, ..Settings::default() }, 1);
}

/// Every sixth case with kernels of another shape than a GPU's usual one.
fn shaped(settings: Settings, turn: usize, change: impl Fn(Tuning) -> Tuning) {
    let options = Options { tuning: Some(change(Tuning::gpu(None))), ..Options::default() };
    run(settings, options, |index, case| index % 6 == turn && !case.heavy);
}

#[test]
fn codebooks_in_subgroups() {
    for (turn, (least, size)) in [(8, 8), (16, 16), (32, 32), (64, 64), (8, 32)].into_iter().enumerate() {
        shaped(subgroups(least, size), turn, |tuning| Tuning { shuffle: true, ..tuning });
    }
    // Inputs, too.
    shaped(subgroups(8, 8), 5, |_| Tuning::software(Some(8)));
    shaped(subgroups(32, 32), 3, |_| Tuning::software(Some(32)));
}

#[test]
fn other_shapes() {
    shaped(subgroups(32, 32), 0, |tuning| Tuning { busy: 1, staged: 1024, tile_fours: (1, 1), ..tuning });
    shaped(subgroups(64, 64), 1, |tuning| Tuning {
        lanes: 8,
        threads: 64,
        attend_threads: 32,
        tile_fours: (1, 2),
        ..tuning
    });
    shaped(subgroups(8, 16), 2, |tuning| Tuning { prompt_columns: Some(8), tile_fours: (2, 1), ..tuning });
    shaped(subgroups(8, 8), 3, |_| Tuning::software(None));
    let half = Settings { features: wgpu::Features::SHADER_F16, ..subgroups(16, 16) };
    shaped(half, 4, |tuning| Tuning { half_slabs: true, ..tuning });
}
