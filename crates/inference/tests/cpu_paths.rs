//! Every family against transformers on every set of CPU kernels: those that this processor can run, or the one that
//! `HALFBYTE_CPU` names, each with exact and with fast arithmetic. `cargo xtask cpu` runs it under an emulator, too.

mod fixture;

use fixture::{DECODERS, Fixture, WHOLE, distance, exact, nf4};
use halfbyte_backend::{Backend, Caps};
use halfbyte_cpu::{CpuBackend, CpuOptions, Math, Path};
use halfbyte_inference::{
    Encoded, Engine, Flow, GenerateOptions, Session, classify, features, generate, logits,
};
use halfbyte_quant::QuantSpec;
use pollster::block_on;
use std::io::Write;
use std::rc::Rc;

const CLASSIFIERS: &[&str] = &["bert_cls", "roberta_cls", "distilbert_cls"];

/// How far exact arithmetic may be from transformers.
const EXACT: f64 = 2e-5;

/// How far fast arithmetic may be: these models are of random weights, in rows as short as one block of activations, and
/// 4.1e-2 is the most that was seen, where a table in bytes is embedding and head. What it costs a trained model is for
/// `fast_arithmetic.rs` to say.
const FAST: f64 = 5e-2;

/// The kernels to walk, each with its arithmetic and how far it may be off. Others are named aloud.
fn kernels() -> Vec<(Path, Math, f64)> {
    let walked = Path::walk().unwrap();
    for path in Path::ALL.into_iter().filter(|path| !walked.contains(path)) {
        let why = if path.available() { "is not the one asked for" } else { "needs another processor" };
        say(&format!("CPU kernels not walked: {path} {why}"));
    }
    let maths = |path| match path {
        Path::Scalar => vec![(path, Math::Exact, EXACT)],
        path => vec![(path, Math::Exact, EXACT), (path, Math::Fast, FAST)],
    };
    let kernels: Vec<_> = walked.into_iter().flat_map(maths).collect();
    let names: Vec<String> = kernels.iter().map(|(path, math, _)| format!("{path} {math}")).collect();
    say(&format!("CPU kernels walked: {}", names.join(", ")));
    kernels
}

/// Says it past the harness, which keeps what a test that passes prints.
fn say(line: &str) {
    std::io::stderr().write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// A model of `fixtures` on these kernels alone.
fn engine(fixture: &Fixture, (path, math): (Path, Math), quant: Option<QuantSpec>, caps: Caps) -> Engine {
    let options =
        CpuOptions { path: Some(path), math: Some(math), threads: Some(2), ..CpuOptions::default() };
    let backend: Rc<dyn Backend> = Rc::new(CpuBackend::with(options).unwrap());
    let blueprint = fixture.blueprint(&exact(quant));
    let blocks = 0..blueprint.blocks.len();
    fixture.load_on(blueprint, vec![(backend, blocks)], caps)
}

/// The reference's name, and the quantization that it stands for: with fast arithmetic that of 4 bits alone.
fn variants(math: Math) -> Vec<(&'static str, Option<QuantSpec>)> {
    match math {
        Math::Exact => vec![("", None), (".nf4dq", nf4(true))],
        Math::Fast => vec![(".nf4", nf4(false)), (".nf4dq", nf4(true))],
    }
}

#[test]
fn decoders_hold_on_every_path() {
    for (path, math, tolerance) in kernels() {
        let mut worst = 0.0f64;
        for model in DECODERS {
            let fixture = Fixture::open(&format!("models/{model}"));
            for (suffix, quant) in variants(math) {
                let mut engine = engine(&fixture, (path, math), quant, WHOLE);
                let found = block_on(logits(&mut engine, 0, &fixture.input())).unwrap();
                let distance = distance(&found, &fixture.floats(&format!("logits{suffix}")));
                println!("{path} {math}: {model}{suffix}: {distance:.1e}");
                assert!(distance < tolerance, "{path} {math}: {model}{suffix}: {distance:e}");
                worst = worst.max(distance);
            }
        }
        // What is off by more than rounding has indeed been computed in bytes.
        assert_eq!(worst > EXACT, math == Math::Fast, "{path} {math}: {worst:e}");
    }
}

#[test]
fn decoders_write_the_same_text_on_every_path() {
    for (path, math, _) in kernels().into_iter().filter(|(_, math, _)| *math == Math::Exact) {
        for model in DECODERS {
            let fixture = Fixture::open(&format!("models/{model}"));
            let mut engine = engine(&fixture, (path, math), nf4(true), Caps { rows: 10, outputs: 1 });
            let options = GenerateOptions { max_new_tokens: 16, ..GenerateOptions::default() };
            let mut session = Session::new(0);
            let mut go_on = |_| Flow::Continue;
            let input = fixture.input();
            let text = generate(&mut engine, &mut session, &input, &options, &mut go_on);
            assert_eq!(block_on(text).unwrap().tokens, fixture.ids("greedy16.nf4dq"), "{path}: {model}");
        }
    }
}

#[test]
fn encoders_hold_on_every_path() {
    for (path, math, tolerance) in kernels() {
        for model in CLASSIFIERS {
            let fixture = Fixture::open(&format!("models/{model}"));
            let (texts, _) = fixture.texts();
            for (suffix, quant) in variants(math) {
                let mut engine = engine(&fixture, (path, math), quant, WHOLE);
                let found = block_on(classify(&mut engine, &texts)).unwrap().concat();
                let distance = distance(&found, &fixture.floats(&format!("logits{suffix}")));
                println!("{path} {math}: {model}{suffix}: {distance:.1e}");
                assert!(distance < tolerance, "{path} {math}: {model}{suffix}: {distance:e}");
            }
        }
        let fixture = Fixture::open("models/bert_model");
        let (texts, padded): (Vec<Encoded>, usize) = fixture.texts();
        for (suffix, quant) in variants(math) {
            let mut engine = engine(&fixture, (path, math), quant, WHOLE);
            let found = block_on(features(&mut engine, &texts)).unwrap();
            let hidden = fixture.floats(&format!("last_hidden_state{suffix}"));
            for (row, (found, text)) in found.iter().zip(&texts).enumerate() {
                let wanted = &hidden[row * padded * 64..][..text.ids.len() * 64];
                let distance = distance(&found.hidden, wanted);
                assert!(distance < tolerance, "{path} {math}: bert_model{suffix} {row}: {distance:e}");
            }
        }
    }
}
