//! `devices --watch`: bars for people, an object on each line for programs.

mod command;

use command::halfbyte;

#[test]
fn every_look_is_a_line_with_every_device() {
    let outcome = halfbyte(&["devices", "--watch", "--samples", "2", "--interval", "0.05", "--json"]).ok();
    let events: Vec<serde_json::Value> =
        outcome.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let samples: Vec<_> = events.iter().filter(|event| event["event"] == "sample").collect();
    assert_eq!(samples.len(), 2, "{}", outcome.stdout);
    for sample in samples {
        assert_eq!(sample["devices"][0]["device"], "cpu");
        assert_eq!(sample["devices"][0]["ours_bytes"], 0);
    }
    let picture = halfbyte(&["devices", "--watch", "--samples", "1"]).ok().stdout;
    assert!(picture.starts_with("cpu"), "{picture}");
    assert!(picture.contains("others"), "{picture}");
    halfbyte(&["devices", "--watch", "--interval", "0"]).refused_with(&["--interval 0"]);
}

#[test]
fn what_a_model_does_about_its_memory_is_told_by_every_command() {
    let text = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../LICENSE-MIT");
    let args =
        ["perplexity", "stories", "--device-map", "cpu", "--fault", "alloc:3", "--json", "--text-file"];
    let outcome = halfbyte(&[&args[..], &[text.to_str().unwrap()]].concat()).ok();
    let events = outcome.json()["events"].as_array().unwrap().clone();
    assert_eq!((events.len(), &events[0]["kind"]), (1, &"out_of_memory".into()), "{events:?}");
    assert!(outcome.stderr.contains("note: cpu: model.layers.0.self_attn.qkv needs"), "{}", outcome.stderr);
    let logits =
        ["logits", "stories", "--device-map", "cpu", "--fault", "device-lost:1", "--json", "--ids", "1,5,9"];
    let outcome = halfbyte(&logits).ok();
    assert_eq!(outcome.json()["events"][0]["kind"], "device_lost");
}
