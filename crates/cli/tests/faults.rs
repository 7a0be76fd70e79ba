//! `--fault` and `--pretend-memory`: the same story, and a note of what happened.

mod command;

use command::halfbyte;

/// `run --device-map cpu` and more, in float32, for 16 tokens.
fn run(more: &[&str]) -> command::Outcome {
    let run = ["run", "--device-map", "cpu", "--prompt", "Once there was", "-n", "16"];
    halfbyte(&[&run[..], &["--compute-dtype", "float32", "--kv-cache", "f32"], more].concat())
}

#[test]
fn people_get_the_same_story_and_are_told() {
    let wanted = run(&[]).ok();
    for (fault, said) in [
        ("alloc:3", "note: cpu: model.layers.0.self_attn.qkv needs"),
        ("device-lost:6", "cpu was lost: as --fault asked for; opened and loaded again: 6 blocks on cpu"),
    ] {
        let outcome = run(&["--fault", fault]).ok();
        assert_eq!(outcome.stdout, wanted.stdout, "{fault}");
        assert!(outcome.stderr.contains(said), "{fault}: {}", outcome.stderr);
        assert_eq!(outcome.stderr.matches(said).count(), 1, "{fault}: {}", outcome.stderr);
    }
}

#[test]
fn json_has_the_event() {
    let wanted = run(&["--json"]).ok().json();
    assert_eq!(wanted["events"].as_array().map(Vec::len), Some(0));
    for fault in ["alloc:20", "device-lost:1"] {
        let found = run(&["--json", "--fault", fault]).ok().json();
        assert_eq!(found["text"], wanted["text"], "{fault}");
        let events = found["events"].as_array().unwrap();
        assert_eq!((events.len(), &events[0]["device"]), (1, &"cpu".into()), "{fault}: {events:?}");
    }
}

#[test]
fn options_that_cannot_be_meant_are_named() {
    for (option, value) in [("--fault", "alloc"), ("--fault", "alloc:0"), ("--pretend-memory", "cpu")] {
        run(&[option, value]).refused_with(&[option, value]);
    }
}

#[test]
fn a_small_machine_is_planned_for() {
    let plan =
        halfbyte(&["plan", "stories", "--device-map", "cpu", "--pretend-memory", "cpu=1MiB", "--json"]);
    let json = plan.json();
    assert_eq!(json["fits"], false);
    assert!(json["devices"][0]["budget_bytes"].as_u64().unwrap() <= 1 << 20, "{json}");
    run(&["--pretend-memory", "cpu=1MiB"]).refused_with(&["budget left"]);
}
