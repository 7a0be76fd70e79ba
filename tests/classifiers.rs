//! Encoders through the library, on every kind of device: fixtures against transformers, the bundled model
//! against its card.

mod reference;

use halfbyte::{
    AutoModel, CausalLm, Embedder, Encoded, LoadOptions, ModelSource, Pooling, Progress, QuantSpec,
    SequenceClassifier, Silent, TokenClassifier,
};
use reference::{Fixture, Setup, distance, path, setups};
use serde_json::Value;

/// Setups of one device: device maps of decoders name other blocks.
fn devices() -> impl Iterator<Item = Setup> {
    setups().into_iter().filter(|setup| setup.devices.len() == 1)
}

/// The reference's rows without their padding.
fn texts(fixture: &Fixture, types: bool) -> Vec<Encoded> {
    let (ids, mask) = (fixture.ids("input_ids"), fixture.ids("attention_mask"));
    let types = if types { fixture.ids("token_type_ids") } else { vec![0; ids.len()] };
    let padded = ids.len() / 3;
    let text = |row: usize| {
        let kept = (row * padded..(row + 1) * padded).filter(|&at| mask[at] == 1);
        let (ids, types) = kept.map(|at| (ids[at], types[at])).unzip();
        Encoded { ids, types }
    };
    (0..3).map(text).collect()
}

#[test]
fn classifiers_give_the_logits_of_transformers() {
    let nf4 = |double_quant| Some(QuantSpec { double_quant, ..QuantSpec::default() });
    for setup in devices() {
        for model in ["bert_cls", "roberta_cls", "distilbert_cls"] {
            let fixture = Fixture::open(model);
            let texts = texts(&fixture, model == "bert_cls");
            for (suffix, quant, convert_heads) in [
                ("", None, false),
                (".nf4", nf4(false), false),
                (".nf4dq", nf4(true), false),
                (".nf4dq_all", nf4(true), true),
            ] {
                let options = LoadOptions { convert_heads, ..setup.exact(quant) };
                let mut model = SequenceClassifier::load(&fixture.source(), &options, &mut Silent).unwrap();
                let found = model.logits(&texts).unwrap().concat();
                let distance = distance(&found, &fixture.floats(&format!("logits{suffix}")));
                println!("{}{suffix} on {}: {distance:.1e}", fixture.name, setup.name);
                assert!(
                    distance < setup.tolerance,
                    "{}{suffix} on {}: {distance:e}",
                    fixture.name,
                    setup.name
                );
                // Planned is held, to the byte.
                for row in model.loaded().memory() {
                    assert_eq!(row.planned_bytes, row.measured_bytes, "{} on {}", fixture.name, row.device);
                }
            }
        }
    }
}

/// Lines of `label\ttext`.
fn sentences() -> Vec<(usize, String)> {
    let file = std::fs::read_to_string(path("models/sentiment/test.tsv")).unwrap();
    let line = |line: &str| {
        let (label, text) = line.split_once('\t').unwrap();
        (label.parse().unwrap(), text.to_owned())
    };
    file.lines().map(line).collect()
}

#[test]
fn the_bundled_classifier_is_as_good_as_its_card_says() {
    let card: Value =
        serde_json::from_slice(&std::fs::read(path("models/sentiment/expected.json")).unwrap()).unwrap();
    let wanted = card["accuracy"]["nf4_dq_encoder_only"]["test_accuracy"].as_f64().unwrap();
    let sentences = sentences();
    assert_eq!(sentences.len(), 400);
    let texts: Vec<&str> = sentences.iter().map(|(_, text)| text.as_str()).collect();
    for setup in devices() {
        let options = LoadOptions { device_map: setup.device_map.clone(), ..LoadOptions::default() };
        let mut model =
            SequenceClassifier::load(&ModelSource::named("sentiment"), &options, &mut Silent).unwrap();
        assert_eq!(model.labels(), ["NEGATIVE", "POSITIVE"]);
        let answers = model.classify(&texts).unwrap();
        let right = answers
            .iter()
            .zip(&sentences)
            .filter(|(answer, (label, _))| answer.label == model.labels()[*label]);
        let accuracy = right.count() as f64 / texts.len() as f64;
        println!("{} of the test file on {}", accuracy, setup.name);
        // The card's 99.9 % are of 2000 sentences: of these 400, one may be wrong.
        assert!(accuracy >= wanted - 1.0 / texts.len() as f64, "{accuracy} on {}", setup.name);

        // The sentences that the card lists, by logits, in NF4 with the encoder only.
        for case in card["cases"].as_array().unwrap() {
            let answer = model.classify(&[case["text"].as_str().unwrap()]).unwrap().remove(0);
            let logits = case["logits_nf4_dq_encoder_only"].as_array().unwrap();
            let logits: Vec<f32> = logits.iter().map(|value| value.as_f64().unwrap() as f32).collect();
            let distance = distance(&answer.logits, &logits);
            assert!(distance < 5e-3, "{} on {}: {distance:e}", case["text"], setup.name);
        }
    }
}

/// Remembers notes.
#[derive(Default)]
struct Notes(Vec<String>);

impl Progress for Notes {
    fn note(&mut self, text: &str) {
        self.0.push(text.to_owned());
    }
}

fn cpu() -> LoadOptions {
    LoadOptions { device_map: "cpu".parse().unwrap(), ..LoadOptions::default() }
}

#[test]
fn a_new_head_is_warned_of() {
    let fixture = Fixture::open("bert_model");
    let mut notes = Notes::default();
    let mut model = SequenceClassifier::load(&fixture.source(), &cpu(), &mut notes).unwrap();
    let note = notes.0.concat();
    assert!(
        note.contains("classifier.weight, classifier.bias") && note.contains("newly initialized"),
        "{note}"
    );
    assert_eq!(model.labels(), ["LABEL_0", "LABEL_1"]);
    let texts = texts(&fixture, true);
    assert!(model.logits(&texts).unwrap().concat().iter().all(|logit| logit.abs() < 2.0));

    let mut notes = Notes::default();
    SequenceClassifier::load(&Fixture::open("bert_cls").source(), &cpu(), &mut notes).unwrap();
    assert!(notes.0.is_empty(), "{:?}", notes.0);
}

#[test]
fn a_model_for_something_else_is_refused_with_what_to_do() {
    let error =
        CausalLm::load(&ModelSource::named("sentiment"), &cpu(), &mut Silent).unwrap_err().to_string();
    assert!(
        error.contains("BertForSequenceClassification") && error.contains("halfbyte classify"),
        "{error}"
    );
    let error = SequenceClassifier::load(&ModelSource::named("stories"), &cpu(), &mut Silent)
        .unwrap_err()
        .to_string();
    assert!(error.contains("LlamaForCausalLM") && error.contains("halfbyte run"), "{error}");
    for (name, classifies) in [("sentiment", true), ("stories", false)] {
        let model = AutoModel::load(&ModelSource::named(name), &cpu(), &mut Silent).unwrap();
        assert_eq!(matches!(model, AutoModel::SequenceClassifier(_)), classifies);
        assert_eq!(model.loaded().name(), name);
    }
}

#[test]
fn long_texts_are_cut_and_pairs_are_two_segments() {
    let mut model = SequenceClassifier::load(&ModelSource::named("sentiment"), &cpu(), &mut Silent).unwrap();
    let long = "The soup was wonderful. ".repeat(40);
    let answers = model.classify(&[&long, "The soup was wonderful."]).unwrap();
    assert!(answers[0].truncated && !answers[1].truncated);
    assert_eq!(answers[0].label, "POSITIVE");
    let pair =
        [("The soup was wonderful.", Some("The bus is extremely ugly.")), ("The soup was wonderful.", None)];
    let answers = model.classify_pairs(&pair).unwrap();
    assert_ne!(answers[0].logits, answers[1].logits);
    assert_eq!(answers[0].scores.iter().map(|one| f64::from(one.score)).sum::<f64>().round(), 1.0);
    assert!(model.classify(&[]).unwrap().is_empty());
}

#[test]
fn vectors_of_like_texts_are_near() {
    let mut model = Embedder::load(&ModelSource::named("sentiment"), &cpu(), &mut Silent).unwrap();
    let texts = ["The soup was wonderful.", "The soup was great.", "The bus is extremely ugly."];
    for pooling in [Pooling::Mean, Pooling::First, Pooling::Pooler] {
        let found = model.embed(&texts, pooling).unwrap();
        assert!(found.iter().all(|vector| vector.len() == 192));
        assert!(distance(&found[1], &found[0]) < distance(&found[2], &found[0]), "{pooling:?}");
    }
}

#[test]
fn hidden_states_are_those_of_transformers() {
    let fixture = Fixture::open("bert_model");
    let texts = texts(&fixture, true);
    let padded = fixture.ids("input_ids").len() / 3;
    for setup in devices() {
        for (suffix, quant) in [("", None), (".nf4dq", Some(QuantSpec::default()))] {
            let mut model = Embedder::load(&fixture.source(), &setup.exact(quant), &mut Silent).unwrap();
            let found = model.features(&texts).unwrap();
            let hidden = fixture.floats(&format!("last_hidden_state{suffix}"));
            let pooled = fixture.floats(&format!("pooler_output{suffix}"));
            for (row, (found, text)) in found.iter().zip(&texts).enumerate() {
                let wanted = &hidden[row * padded * 64..][..text.ids.len() * 64];
                let distance = [
                    distance(&found.hidden, wanted),
                    distance(found.pooled.as_ref().unwrap(), &pooled[row * 64..][..64]),
                ];
                println!("text {row}{suffix} on {}: {distance:?}", setup.name);
                assert!(
                    distance.iter().all(|distance| *distance < setup.tolerance),
                    "{row}{suffix} on {}",
                    setup.name
                );
            }
        }
    }
}

#[test]
fn entities_are_those_of_transformers() {
    let folder = path("tests/fixtures/models/bert_ner");
    let expected: Value =
        serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
    let cases = expected["cases"].as_array().unwrap();
    let texts: Vec<&str> = cases.iter().map(|case| case["text"].as_str().unwrap()).collect();
    let number = |value: &Value| value.as_f64().unwrap() as f32;
    for setup in devices() {
        let source = ModelSource::named(folder.to_str().unwrap());
        let mut model = TokenClassifier::load(&source, &setup.exact(None), &mut Silent).unwrap();
        let (labels, entities) = (model.label(&texts).unwrap(), model.entities(&texts).unwrap());
        for (case, (labels, entities)) in cases.iter().zip(labels.iter().zip(&entities)) {
            let text = case["text"].as_str().unwrap();
            // transformers counts characters, and gives the frame's tokens empty spans.
            let bytes = |characters: &Value| {
                let count = characters.as_u64().unwrap() as usize;
                text.char_indices().nth(count).map_or(text.len(), |(at, _)| at)
            };
            let spans =
                case["offsets"].as_array().unwrap().iter().map(|pair| bytes(&pair[0])..bytes(&pair[1]));
            let spans: Vec<_> = spans.filter(|span| !span.is_empty()).collect();
            assert_eq!(labels.iter().map(|one| one.span.clone()).collect::<Vec<_>>(), spans, "{text}");
            let logits = case["logits"].as_array().unwrap();
            let wanted: Vec<f32> = logits[1..logits.len() - 1]
                .iter()
                .flat_map(|row| row.as_array().unwrap().iter().map(number))
                .collect();
            let found: Vec<f32> = labels.iter().flat_map(|one| one.logits.clone()).collect();
            let distance = distance(&found, &wanted);
            println!("{text} on {}: {distance:.1e}", setup.name);
            assert!(distance < setup.tolerance, "{text} on {}: {distance:e}", setup.name);
            let wanted = case["entities"].as_array().unwrap();
            assert_eq!(entities.len(), wanted.len(), "{text}");
            for (found, wanted) in entities.iter().zip(wanted) {
                let span = bytes(&wanted["start"])..bytes(&wanted["end"]);
                assert_eq!(
                    (found.label.as_str(), found.start..found.end),
                    (wanted["label"].as_str().unwrap(), span)
                );
                assert!((found.score - number(&wanted["score"])).abs() < 1e-4, "{found:?} {wanted}");
            }
        }
        for row in model.loaded().memory() {
            assert_eq!(row.planned_bytes, row.measured_bytes, "on {}", row.device);
        }
    }
}
