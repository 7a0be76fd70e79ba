//! Each check finds its mutant, names it, and lets the right shader pass.

mod harness;

use halfbyte_simt::{Kind, Settings};
use harness::{Run, run, run_on, subgroups};

const HEAD: &str = "
@group(0) @binding(0) var<storage, read> source: array<u32>;
@group(0) @binding(1) var<storage, read_write> out: array<u32>;
var<workgroup> shared_words: array<u32, 64>;
@compute @workgroup_size(32)
fn main(@builtin(local_invocation_index) thread: u32, @builtin(workgroup_id) group: vec3<u32>) {
";

fn with_head(body: &str) -> String {
    format!("{HEAD}{body}}}")
}

/// Runs the body with `right` and with `wrong` in the place of `$`; the mutant must show as `kind` on a line
/// that holds `line`.
fn check(body: &str, right: &str, wrong: &str, kind: Kind, line: &str, grid: [u32; 3]) -> Run {
    let buffers = [vec![1; 64], vec![0; 64]];
    run(&with_head(&body.replace('$', right)), &buffers, grid).clean();
    let found = run(&with_head(&body.replace('$', wrong)), &buffers, grid);
    let finding = found.only();
    assert_eq!(finding.kind, kind, "{finding}");
    assert!(finding.text.contains(line), "{finding}");
    assert_eq!(finding.shader, "test");
    found
}

#[test]
fn a_missing_barrier() {
    let body = "
        shared_words[thread] = source[thread];
        $
        out[group.x * 32u + thread] = shared_words[(thread + 1u) % 32u];
    ";
    let found =
        check(body, "workgroupBarrier();", "", Kind::WorkgroupRace, "shared_words[(thread", [2, 1, 1]);
    let finding = found.only();
    assert!(finding.what.contains("shared_words") && finding.what.contains("lane"), "{finding}");
    assert_eq!(finding.times, 64);
    // A barrier for the other memory is none for this.
    check(body, "workgroupBarrier();", "storageBarrier();", Kind::WorkgroupRace, "shared_words[(", [1, 1, 1]);
}

#[test]
fn a_barrier_too_few_in_a_loop() {
    let body = "
        var sum = 0u;
        for (var i = 0u; i < 3u; i++) {
            shared_words[thread] = i;
            workgroupBarrier();
            sum += shared_words[(thread + 1u) % 32u];
            $
        }
        out[group.x * 32u + thread] = sum;
    ";
    // The write of the next round is against the reads of this one.
    check(body, "workgroupBarrier();", "", Kind::WorkgroupRace, "shared_words[thread] = i", [1, 1, 1]);
}

#[test]
fn two_lanes_that_write_one_word() {
    let body = "
        shared_words[$] = thread;
        workgroupBarrier();
        out[group.x * 32u + thread] = shared_words[thread / 2u];
    ";
    check(body, "thread", "thread / 2u", Kind::WorkgroupRace, "shared_words[thread / 2u] =", [1, 1, 1]);
}

#[test]
fn memory_that_was_never_written() {
    let body = "
        if (thread < $) {
            shared_words[thread] = 1u;
        }
        workgroupBarrier();
        out[group.x * 32u + thread] = shared_words[thread];
    ";
    let found = check(body, "32u", "31u", Kind::Uninitialized, "= shared_words", [2, 1, 1]);
    assert!(found.only().what.contains("word 31 of shared_words"), "{}", found.only());
    assert_eq!(found.only().times, 2, "what an earlier workgroup wrote is not this one's");
    // Poison shows in the result too.
    assert_ne!(found.buffers[1][31], 0);
}

#[test]
fn an_index_off_by_one() {
    let body = "out[group.x * 32u + thread] = source[group.x * 32u + thread $];";
    let found = check(body, "", "+ 1u", Kind::OutOfBounds, "source[", [2, 1, 1]);
    assert!(found.only().what.contains("element 64 of 64 of source"), "{}", found.only());
    let body = "out[group.x * 32u + thread] = 1u; if (thread == 31u) { out[group.x * 32u + 31u $] = 1u; }";
    check(body, "", "+ 33u", Kind::OutOfBounds, "out[group", [1, 1, 1]);
    let body = "var own: array<u32, 4>; own[thread % $] = 1u; out[thread] = own[0];";
    let found = check(body, "4u", "5u", Kind::OutOfBounds, "own[thread", [1, 1, 1]);
    assert!(found.only().what.contains("element 4 of 4 of own"), "{}", found.only());
    let body = "let v = vec3<u32>(1u, 2u, 3u); out[thread] = v[thread % $];";
    check(body, "3u", "4u", Kind::OutOfBounds, "v[thread", [1, 1, 1]);
    let body = "shared_words[thread $] = 1u; workgroupBarrier(); out[thread] = shared_words[thread $];";
    let found = run(&with_head(body).replace('$', "* 3u"), &[vec![1; 64], vec![0; 64]], [1, 1, 1]);
    assert!(found.findings.iter().all(|finding| finding.kind == Kind::OutOfBounds), "{:?}", found.findings);
    assert!(!found.findings.is_empty());
}

#[test]
fn races_on_storage() {
    // Between workgroups.
    let body = "if (thread == 0u) { out[$] = group.x; }";
    let found = check(body, "group.x", "group.x / 2u", Kind::StorageRace, "out[group.x / 2u]", [4, 1, 1]);
    assert!(found.only().what.contains("workgroup"), "{}", found.only());
    // Equal values are no race.
    run(&with_head("out[0] = 7u;"), &[vec![1; 4], vec![0; 4]], [4, 1, 1]).clean();
    // Between lanes; a workgroup barrier does not order storage.
    for (barrier, races) in [("storageBarrier();", false), ("workgroupBarrier();", true), ("", true)] {
        let body = format!(
            "out[thread] = thread; {barrier}
            let other = out[(thread + 1u) % 32u];
            storageBarrier();
            out[32u + thread] = other;"
        );
        let found = run(&with_head(&body), &[vec![1; 4], vec![0; 64]], [1, 1, 1]);
        if races {
            assert_eq!(found.only().kind, Kind::StorageRace);
        } else {
            found.clean();
        }
    }
    // What one workgroup reads and another writes, barriers or not.
    let body = "
        let first = out[32u];
        storageBarrier();
        if (thread == 0u && group.x == $) { out[32u] = first + 1u; }
    ";
    check(body, "9u", "1u", Kind::StorageRace, "out[32u]", [2, 1, 1]);
}

#[test]
fn barriers_in_divergent_control_flow() {
    let body = "
        if (thread < $) {
            shared_words[thread] = 1u;
            workgroupBarrier();
        }
        out[group.x * 32u + thread] = 1u;
    ";
    let found = check(body, "32u", "31u", Kind::DivergentBarrier, "workgroupBarrier", [1, 1, 1]);
    assert!(found.only().what.contains("lane 31"), "{}", found.only());
    let body = "
        if (source[thread] == $) { return; }
        workgroupBarrier();
        out[thread] = 1u;
    ";
    let text = |value| with_head(body).replace('$', value);
    let mut source = vec![1; 64];
    source[7] = 5;
    run(&text("9u"), &[source.clone(), vec![0; 64]], [1, 1, 1]).clean();
    let found = run(&text("5u"), &[source, vec![0; 64]], [1, 1, 1]);
    assert_eq!(found.only().kind, Kind::DivergentBarrier);
    assert!(found.only().what.contains("lane 7 "), "{}", found.only());
}

#[test]
fn subgroup_operations_in_divergent_control_flow() {
    let text = "
        @group(0) @binding(0) var<storage, read> source: array<u32>;
        @group(0) @binding(1) var<storage, read_write> out: array<u32>;
        @compute @workgroup_size(64)
        fn main(@builtin(local_invocation_index) thread: u32) {
            if (thread < LIMIT) {
                out[thread] = subgroupAdd(source[thread]);
            }
        }
    ";
    for size in [8, 16, 32, 64] {
        let buffers = [vec![1; 64], vec![0; 64]];
        let limited =
            |limit: &str| run_on(subgroups(size), &text.replace("LIMIT", limit), &[], &buffers, [1, 1, 1]);
        assert_eq!(limited("64u").clean()[1], vec![size; 64]);
        let found = limited("63u");
        assert_eq!(found.only().kind, Kind::DivergentSubgroup);
        assert!(found.only().text.contains("subgroupAdd"), "{}", found.only());
        // Whole subgroups may stay away.
        let found = limited("16u");
        if size <= 16 {
            found.clean();
        } else {
            assert_eq!(found.only().kind, Kind::DivergentSubgroup);
        }
    }
}

#[test]
fn shuffles_from_lanes_that_are_not_there() {
    let text = "
        @group(0) @binding(0) var<storage, read_write> out: array<u32>;
        @compute @workgroup_size(24)
        fn main(@builtin(local_invocation_index) thread: u32) {
            out[thread] = subgroupShuffleXor(thread, 8u);
        }
    ";
    let wanted: Vec<u32> = (0..24u32).map(|thread| thread ^ 8).collect();
    let found = run_on(subgroups(16), text, &[], &[vec![0; 24]], [1, 1, 1]);
    // Lanes 16 to 23 are half of a subgroup.
    assert_eq!(found.only().kind, Kind::AbsentLane);
    assert_eq!(found.buffers[0][..16], wanted[..16]);
    // The constant that fits every size but one.
    let found = run_on(subgroups(8), text, &[], &[vec![0; 24]], [1, 1, 1]);
    assert_eq!(found.only().kind, Kind::AbsentLane);
    assert_eq!(found.only().times, 24);
}

#[test]
fn arithmetic_without_a_result() {
    check("out[thread] = 7u / (thread + $);", "1u", "0u", Kind::Arithmetic, "7u / (", [1, 1, 1]);
    check("out[thread] = 7u % (thread + $);", "1u", "0u", Kind::Arithmetic, "7u % (", [1, 1, 1]);
    check("out[thread] = 7u << (thread + $);", "0u", "1u", Kind::Arithmetic, "7u << (", [1, 1, 1]);
    check("out[thread] = 7u >> (thread + $);", "0u", "1u", Kind::Arithmetic, "7u >> (", [1, 1, 1]);
}

#[test]
fn a_loop_that_does_not_end() {
    let body = "
        var i = 0u;
        loop {
            i += 1u;
            if (i == $) { break; }
        }
        out[thread] = i;
    ";
    check(body, "9u", "0u + source[0] * 0u", Kind::Runaway, "loop", [1, 1, 1]);
}

#[test]
fn a_uniform_load_that_is_not() {
    let body = "
        shared_words[thread] = thread;
        workgroupBarrier();
        out[thread] = workgroupUniformLoad(&shared_words[$]);
    ";
    check(body, "3u", "thread", Kind::NotUniform, "workgroupUniformLoad", [1, 1, 1]);
}

#[test]
fn what_is_missing_is_named() {
    for (body, wanted) in [
        ("out[thread] = u32(determinant(mat2x2<f32>(f32(thread), 2.0, 3.0, 4.0)));", "Determinant"),
        ("subgroupBarrier();", "SUBGROUP_BARRIER"),
    ] {
        let found = run(&with_head(body), &[vec![1; 64], vec![0; 64]], [1, 1, 1]);
        assert!(found.errors.iter().any(|error| error.contains(wanted)), "{:?}", found.errors);
    }
}

#[test]
fn the_order_of_workgroups_depends_on_the_seed() {
    // Each workgroup notes how many came before it: only atomics may, and the order shows.
    let text = "
        @group(0) @binding(0) var<storage, read_write> count: atomic<u32>;
        @group(0) @binding(1) var<storage, read_write> out: array<u32>;
        @compute @workgroup_size(1)
        fn main(@builtin(workgroup_id) group: vec3<u32>) {
            out[group.x] = atomicAdd(&count, 1u);
        }
    ";
    let order = |seed| {
        let settings = Settings { seed, ..Settings::default() };
        run_on(settings, text, &[], &[vec![0], vec![0; 20]], [20, 1, 1]).clean().remove(1)
    };
    let ordered: Vec<u32> = (0..20).collect();
    assert_ne!(order(1), order(2));
    for seed in 0..4 {
        let mut found = order(seed);
        assert_ne!(found, ordered, "seed {seed}");
        found.sort_unstable();
        assert_eq!(found, ordered, "seed {seed}");
    }
}
