//! Encoders against transformers: classifiers, hidden states, poolers, texts of different lengths.

mod fixture;

use fixture::{Fixture, WHOLE, distance, exact, nf4};
use halfbyte_backend::Caps;
use halfbyte_inference::{Encoded, Engine, ModelError, Settings, Task, classify, features};
use halfbyte_quant::QuantSpec;
use pollster::block_on;

const CLASSIFIERS: &[&str] = &["bert_cls", "roberta_cls", "distilbert_cls"];

/// Suffixes of the reference, the quantization of each, and whether heads are quantized too.
fn variants() -> [(&'static str, Option<QuantSpec>, bool); 4] {
    [
        ("", None, false),
        (".nf4", nf4(false), false),
        (".nf4dq", nf4(true), false),
        (".nf4dq_all", nf4(true), true),
    ]
}

fn engine(fixture: &Fixture, settings: &Settings, caps: Caps) -> Engine {
    fixture.load(fixture.blueprint(settings), caps)
}

fn settings(quant: Option<QuantSpec>, convert_heads: bool) -> Settings {
    Settings { convert_heads, ..exact(quant) }
}

#[test]
fn logits_of_an_unequal_batch_are_those_of_transformers() {
    for model in CLASSIFIERS {
        let fixture = Fixture::open(&format!("models/{model}"));
        let (texts, _) = fixture.texts();
        assert_eq!(texts.iter().map(|text| text.ids.len()).collect::<Vec<_>>(), [14, 9, 4]);
        for (suffix, quant, heads) in variants() {
            let mut engine = engine(&fixture, &settings(quant, heads), WHOLE);
            let found = block_on(classify(&mut engine, &texts)).unwrap().concat();
            let distance = distance(&found, &fixture.floats(&format!("logits{suffix}")));
            println!("{model}{suffix}: {distance:.1e}");
            assert!(distance < 2e-5, "{model}{suffix}: {distance:e}");
        }
    }
}

#[test]
fn a_batch_gives_what_its_texts_give_alone() {
    for model in CLASSIFIERS {
        let fixture = Fixture::open(&format!("models/{model}"));
        let (mut texts, _) = fixture.texts();
        texts.push(vec![7].into());
        let mut whole = engine(&fixture, &settings(nf4(true), false), WHOLE);
        let wanted: Vec<Vec<f32>> = texts
            .iter()
            .flat_map(|text| block_on(classify(&mut whole, std::slice::from_ref(text))).unwrap())
            .collect();
        // All at once, and where rows or outputs end a submission early.
        for caps in [WHOLE, Caps { rows: 14, outputs: 9 }, Caps { rows: 64, outputs: 2 }] {
            let mut engine = engine(&fixture, &settings(nf4(true), false), caps);
            let (_, before) = engine.counts();
            let found = block_on(classify(&mut engine, &texts)).unwrap();
            assert!(distance(&found.concat(), &wanted.concat()) < 1e-6, "{model} {caps:?}");
            let submissions = engine.counts().1 - before;
            assert_eq!(submissions, if caps == WHOLE { 1 } else { 2 }, "{model} {caps:?}");
        }
    }
}

#[test]
fn hidden_states_and_poolers_are_those_of_transformers() {
    let fixture = Fixture::open("models/bert_model");
    let (texts, padded) = fixture.texts();
    for (suffix, quant, heads) in variants() {
        let mut engine = engine(&fixture, &settings(quant, heads), WHOLE);
        let found = block_on(features(&mut engine, &texts)).unwrap();
        let hidden = fixture.floats(&format!("last_hidden_state{suffix}"));
        let pooled = fixture.floats(&format!("pooler_output{suffix}"));
        for (row, (found, text)) in found.iter().zip(&texts).enumerate() {
            let wanted = &hidden[row * padded * 64..][..text.ids.len() * 64];
            assert!(distance(&found.hidden, wanted) < 2e-5, "{suffix} {row}");
            assert!(distance(found.first(), &wanted[..64]) < 2e-5, "{suffix} {row}");
            let mean: Vec<f32> = (0..64)
                .map(|at| wanted.iter().skip(at).step_by(64).sum::<f32>() / text.ids.len() as f32)
                .collect();
            assert!(distance(&found.mean(), &mean) < 2e-5, "{suffix} {row}");
            let found = found.pooled.as_ref().unwrap();
            assert!(distance(found, &pooled[row * 64..][..64]) < 2e-5, "{suffix} {row}");
        }
    }
}

#[test]
fn hidden_states_without_a_pooler_are_those_of_transformers() {
    // hidden.2 is the state after the last layer, norm included.
    for model in CLASSIFIERS {
        let fixture = Fixture::open(&format!("models/{model}"));
        let (texts, padded) = fixture.texts();
        let settings = Settings { task: Some(Task::Embed), ..exact(None) };
        let mut engine = engine(&fixture, &settings, WHOLE);
        let found = block_on(features(&mut engine, &texts)).unwrap();
        let hidden = fixture.floats("hidden.2");
        for (row, (found, text)) in found.iter().zip(&texts).enumerate() {
            let wanted = &hidden[row * padded * 64..][..text.ids.len() * 64];
            let distance = distance(&found.hidden, wanted);
            assert!(distance < 2e-5, "{model} {row}: {distance:e}");
            assert_eq!(found.pooled.is_some(), *model == "bert_cls");
        }
    }
}

#[test]
fn a_checkpoint_of_bitsandbytes_runs_as_it_is() {
    let fixture = Fixture::open("bnb_ckpt/bert_cls_nf4_dq");
    let mut engine = engine(&fixture, &exact(None), WHOLE);
    let (texts, _) = fixture.texts();
    let found = block_on(classify(&mut engine, &texts)).unwrap().concat();
    let distance = distance(&found, &fixture.floats("logits_f32_engine"));
    assert!(distance < 2e-5, "{distance:e}");
}

#[test]
fn a_checkpoint_without_a_classifier_gets_a_new_one() {
    let fixture = Fixture::open("models/bert_model");
    let (texts, _) = fixture.texts();
    let settings = Settings { task: Some(Task::ClassifySequence), ..exact(nf4(true)) };
    let blueprint = fixture.blueprint(&settings);
    assert_eq!(blueprint.initialized, ["classifier.weight", "classifier.bias"]);
    assert_eq!(blueprint.logits, 2);
    let mut engine = fixture.load(blueprint, WHOLE);
    let found = block_on(classify(&mut engine, &texts)).unwrap();
    // By hand, from the pooler's output: the head is drawn from its name, so it comes again the same.
    let mut again = fixture.load(fixture.blueprint(&settings), WHOLE);
    assert_eq!(block_on(classify(&mut again, &texts)).unwrap(), found);
    let deviation = (found.concat().iter().map(|v| v * v).sum::<f32>() / 6.0).sqrt();
    let pooled = fixture.floats("pooler_output.nf4dq");
    let norm = (pooled.iter().map(|v| v * v).sum::<f32>() / 3.0).sqrt();
    assert!((0.2..3.0).contains(&(deviation / (0.02 * norm))), "{deviation} {norm}");

    // Every token can be labelled, too.
    let settings = Settings { task: Some(Task::ClassifyTokens), ..exact(None) };
    let mut engine = fixture.load(fixture.blueprint(&settings), WHOLE);
    let found = block_on(classify(&mut engine, &texts)).unwrap();
    for (found, text) in found.iter().zip(&texts) {
        assert_eq!(found.len(), 2 * text.ids.len());
    }
    // A trained classifier has all it needs.
    let trained = Fixture::open("models/bert_cls").blueprint(&exact(None));
    assert!(trained.initialized.is_empty() && trained.task == Task::ClassifySequence);
}

#[test]
fn what_an_encoder_cannot_do_is_refused() {
    let fixture = Fixture::open("models/roberta_cls");
    let mut engine = engine(&fixture, &exact(None), Caps { rows: 20, outputs: 4 });
    // 64 rows of positions less the two before the first.
    assert_eq!(engine.blueprint().max_positions, 62);
    for (text, part) in
        [(vec![5; 21], "21 tokens"), (vec![5; 63], "63"), (vec![], "empty"), (vec![300], "300")]
    {
        let error = block_on(classify(&mut engine, &[text.into()])).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    let odd = Encoded { ids: vec![1, 2], types: vec![0] };
    assert!(block_on(classify(&mut engine, &[odd])).unwrap_err().to_string().contains("1 token types"));
    let error = block_on(features(&mut engine, &[])).unwrap_err();
    assert!(matches!(error, ModelError::Task { found: Task::ClassifySequence, .. }), "{error}");

    let decoder = Fixture::open("models/llama_mha");
    for (fixture, task) in
        [(&decoder, Task::ClassifySequence), (&fixture, Task::Generate), (&fixture, Task::ClassifyTokens)]
    {
        let settings = Settings { task: Some(task), ..exact(None) };
        let (config, index) = (&fixture.checkpoint.config, &fixture.checkpoint.index);
        let error = halfbyte_inference::build(config, index, &settings).unwrap_err();
        assert!(matches!(error, ModelError::Task { .. }), "{error}");
        assert!(error.to_string().contains(&config.architecture), "{error}");
    }
}

#[test]
fn encoders_pass_their_stream_on_between_devices() {
    let fixture = Fixture::open("models/bert_cls");
    let (texts, _) = fixture.texts();
    let blueprint = fixture.blueprint(&exact(None));
    let names: Vec<&str> = blueprint.blocks.iter().map(|block| block.name.as_str()).collect();
    assert_eq!(names, ["bert.embeddings", "bert.encoder.layer.0", "bert.encoder.layer.1", "classifier"]);
    for cut in 1..4 {
        let one: std::rc::Rc<dyn halfbyte_backend::Backend> =
            std::rc::Rc::new(halfbyte_cpu::CpuBackend::scalar());
        let placement = vec![(std::rc::Rc::clone(&one), 0..cut), (one, cut..4)];
        let mut engine = fixture.load_on(blueprint.clone(), placement, WHOLE);
        let found = block_on(classify(&mut engine, &texts)).unwrap().concat();
        assert!(distance(&found, &fixture.floats("logits")) < 2e-5, "cut at {cut}");
    }
}
