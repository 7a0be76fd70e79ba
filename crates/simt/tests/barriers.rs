//! Every barrier of the kernels is needed, and the interpreter misses none: without any one of them a case
//! of the table shows a race.

use halfbyte_backend::conformance;
use halfbyte_cpu::CpuBackend;
use halfbyte_shaders::Variant;
use halfbyte_simt::{Adapter, Kind, Settings};
use halfbyte_wgpu::{Options, WgpuBackend};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A barrier: the lines before, between and after, without comments, as all variants have them.
type Site = [String; 3];

/// The lines of a shader that say something, with their numbers, and where among them barriers are.
fn sites(text: &str) -> Vec<(usize, Site)> {
    let code = |line: &str| line.split("//").next().unwrap_or("").trim().to_owned();
    let lines: Vec<(usize, String)> =
        text.lines().map(code).enumerate().filter(|(_, line)| !line.is_empty()).collect();
    let is_barrier = |line: &str| line.ends_with("Barrier();");
    lines
        .windows(3)
        .filter(|around| is_barrier(&around[1].1))
        .map(|around| (around[1].0, [0, 1, 2].map(|i| around[i].1.clone())))
        .collect()
}

/// The text without the barriers at `site`.
fn without(text: &str, site: &Site) -> String {
    let found: Vec<usize> =
        sites(text).into_iter().filter(|(_, other)| other == site).map(|(line, _)| line).collect();
    let keep = |(number, line)| if found.contains(&number) { "" } else { line };
    text.lines().enumerate().map(keep).collect::<Vec<_>>().join("\n")
}

/// What became of the kernels without a barrier.
enum Outcome {
    /// A case shows a race.
    Shown(String),
    /// Cases run such a kernel, and none shows a race.
    Silent,
    /// No case runs a kernel that has it.
    Unused,
}

/// Runs the table without the barriers at `site` until something shows.
fn without_it(site: &Site, subgroup: Option<(u32, u32)>) -> Outcome {
    let (missing, used) = (site.clone(), Arc::new(AtomicBool::new(false)));
    let noted = used.clone();
    let settings = Settings { subgroup, ..Settings::default() };
    let adapter = Adapter::editing(settings, move |_, text| {
        let edited = without(text, &missing);
        if edited != text.trim_end() {
            noted.store(true, Ordering::Relaxed);
        }
        edited
    });
    let reference = CpuBackend::scalar();
    let subject = pollster::block_on(WgpuBackend::on(&adapter.wgpu(), 0, Options::default())).unwrap();
    for case in conformance::cases().iter().filter(|case| !case.heavy) {
        let outcome = pollster::block_on(conformance::run_case(case, &reference, &subject));
        let races = [Kind::WorkgroupRace, Kind::StorageRace, Kind::Uninitialized];
        if let Some(finding) = adapter.findings().iter().find(|finding| races.contains(&finding.kind)) {
            return Outcome::Shown(format!("{}: {finding}", outcome.case));
        }
    }
    if used.load(Ordering::Relaxed) { Outcome::Silent } else { Outcome::Unused }
}

#[test]
#[ignore = "a table for each barrier: minutes; cargo test -p halfbyte-simt --test barriers -- --ignored --nocapture"]
fn no_barrier_can_go() {
    let mut all: BTreeMap<Site, String> = BTreeMap::new();
    for variant in Variant::all() {
        for (_, site) in sites(&variant.wgsl().unwrap()) {
            all.entry(site).or_insert_with(|| variant.name());
        }
    }
    assert!(all.len() > 10, "{} barriers", all.len());
    let mut silent = Vec::new();
    for (site, name) in &all {
        let with = without_it(site, Some((32, 32)));
        let without =
            if matches!(with, Outcome::Shown(_)) { Outcome::Unused } else { without_it(site, None) };
        let line = format!("{name}: {}", site.join(" | "));
        match (with, without) {
            (Outcome::Shown(found), _) | (_, Outcome::Shown(found)) => println!("{line}: {found}"),
            (Outcome::Unused, Outcome::Unused) => println!("{line}: no case has it"),
            _ => silent.push(line),
        }
    }
    assert!(silent.is_empty(), "of {} barriers, {} can go:\n{}", all.len(), silent.len(), silent.join("\n"));
}
