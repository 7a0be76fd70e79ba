//! `classify`, and the other commands on classifiers.

mod command;

use command::Kind::{Number, Object, Rows, Text};
use command::{fixture, halfbyte, halfbyte_with, has_fields, text};
use safetensors::SafeTensors;

#[test]
fn texts_are_labelled_in_order() {
    let outcome = halfbyte(&[
        "classify",
        "--text",
        "The soup was wonderful.",
        "--text",
        "The bus is extremely ugly.",
        "--device-map",
        "cpu",
        "--json",
    ])
    .ok();
    let json = outcome.json();
    has_fields(&json, &[("results", Rows), ("load_seconds", Number), ("memory", Rows)]);
    let results = json["results"].as_array().unwrap();
    let labels: Vec<&str> = results.iter().map(|result| result["label"].as_str().unwrap()).collect();
    assert_eq!(labels, ["POSITIVE", "NEGATIVE"]);
    for result in results {
        has_fields(result, &[("text", Text), ("label", Text), ("score", Number), ("scores", Object)]);
        let scores = result["scores"].as_object().unwrap();
        assert_eq!(scores.len(), 2);
        let sum: f64 = scores.values().map(|score| score.as_f64().unwrap()).sum();
        assert!((sum - 1.0).abs() < 1e-5, "{sum}");
        assert_eq!(scores[result["label"].as_str().unwrap()], result["score"]);
    }
}

#[test]
fn lines_of_a_file_are_texts() {
    let args = ["classify", "sentiment", "--text-file", "-", "--device-map", "cpu"];
    let outcome = halfbyte_with(&args, b"The soup was wonderful.\n\nThe bus is extremely ugly.\n").ok();
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert!(lines.iter().any(|line| line.contains("POSITIVE") && line.contains("soup")), "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("NEGATIVE") && line.contains("bus")), "{lines:?}");
}

#[test]
fn what_cannot_be_meant_is_refused() {
    halfbyte(&["classify"]).refused_with(&["--text"]);
    halfbyte(&["classify", "--text", "a", "--text", "b", "--pair", "c"]).refused_with(&["--pair"]);
    halfbyte(&["classify", "stories", "--text", "a"]).refused_with(&["halfbyte run"]);
    halfbyte(&["run", "sentiment", "--prompt", "a"]).refused_with(&["halfbyte classify"]);
    halfbyte(&["classify", &fixture("bert_cls"), "--text", "a"]).refused_with(&["tokenizer.json"]);
}

#[test]
fn plans_and_logits_of_classifiers() {
    let json = halfbyte(&["plan", "sentiment", "--device-map", "cpu", "--json"]).ok().json();
    assert_eq!(json["fits"], true);
    let names: Vec<&str> =
        json["layers"].as_array().unwrap().iter().map(|layer| layer["name"].as_str().unwrap()).collect();
    assert_eq!((names.first(), names.last()), (Some(&"bert.embeddings"), Some(&"classifier")));

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("out.safetensors");
    let args = ["logits", "sentiment", "--ids", "2,79,587,96,586,568,12,3", "--output", text(&file)];
    let json = halfbyte(&[&args[..], &["--device-map", "cpu", "--json"]].concat()).ok().json();
    assert_eq!(json["argmax"], serde_json::json!([0]));
    let written = std::fs::read(&file).unwrap();
    let logits = SafeTensors::deserialize(&written).unwrap();
    let logits = logits.tensor("logits").unwrap();
    assert_eq!(logits.shape(), [1, 2]);
    let first = f32::from_le_bytes(logits.data()[..4].try_into().unwrap());
    assert!((first - 3.4738).abs() < 0.01, "{first}");
}

#[test]
fn a_token_classifier_gives_entities() {
    let model = fixture("bert_ner");
    let text = "The soup was wonderful.";
    let args = ["classify", model.as_str(), "--text", text, "--device-map", "cpu"];
    let json = halfbyte(&[&args[..], &["--json"]].concat()).ok().json();
    let entities = json["results"][0]["entities"].as_array().unwrap();
    assert!(!entities.is_empty());
    for entity in entities {
        has_fields(entity, &[("label", Text), ("score", Number), ("start", Number), ("end", Number)]);
        let at = |key: &str| entity[key].as_u64().unwrap() as usize;
        assert_eq!(entity["words"], text[at("start")..at("end")]);
    }
    let table = halfbyte(&args).ok();
    assert!(table.stdout.contains("soup was wonderful."), "{}", table.stdout);
    halfbyte(&[&args[..], &["--pair", "again"]].concat()).refused_with(&["--pair"]);
}
