//! Every supported decoder against transformers, through the library's door, on every device here.

mod reference;

use halfbyte::{CausalLm, Flow, GenerateOptions, Heard, ModelSource, QuantSpec, SampleParams, Score, Silent};
use reference::{Fixture, MODELS, Setup, distance, path, setups};

/// Suffixes of the reference, and the quantization that each stands for.
fn variants() -> [(&'static str, Option<QuantSpec>); 2] {
    [("", None), (".nf4dq", Some(QuantSpec::default()))]
}

fn greedy(max_new_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_new_tokens, sample: SampleParams::default() }
}

/// The decoders for a setup: GPT-2 names its blocks otherwise than the device map of the hybrid does.
fn models(setup: &Setup) -> impl Iterator<Item = &'static str> {
    MODELS.iter().copied().chain((setup.devices.len() == 1).then_some("gpt2"))
}

#[test]
fn logits_and_greedy_tokens_are_those_of_transformers() {
    for setup in setups() {
        for model in models(&setup) {
            let fixture = Fixture::open(model);
            let input = fixture.ids("input_ids");
            for (suffix, quant) in variants() {
                let what = format!("{model}{suffix} on {}", setup.name);
                let mut model = CausalLm::load(&fixture.endless(), &setup.exact(quant), &mut Silent).unwrap();
                for device in setup.devices {
                    assert!(model.blocks_on(device) > 0, "{what}: nothing on {device}");
                }
                let logits = model.logits(&input).unwrap();
                let distance = distance(&logits, &fixture.floats(&format!("logits{suffix}")));
                println!("{what}: {distance:.1e}");
                assert!(distance < setup.tolerance, "{what}: {distance:e}");

                let mut streamed = 0;
                let mut count = |heard: Heard<'_>| {
                    streamed += usize::from(matches!(heard, Heard::Token { .. }));
                    Flow::Continue
                };
                let text = model.generate_ids(&input, &greedy(16), &mut count).unwrap();
                assert_eq!(text.token_ids, fixture.ids(&format!("greedy16{suffix}")), "{what}");
                assert_eq!(streamed, 16);
            }
        }
    }
}

#[test]
fn the_defaults_are_near() {
    for setup in setups() {
        for model in models(&setup) {
            let fixture = Fixture::open(model);
            let logits = fixture.load(&setup.defaults()).logits(&fixture.ids("input_ids")).unwrap();
            let wanted = fixture.floats("logits.nf4dq");
            let found = distance(&logits, &wanted);
            // The CPU's arithmetic is the fast one: less than a fifth of what 4 bits themselves cost.
            let on_cpu = setup.devices.contains(&"cpu");
            let near = if on_cpu { 0.2 * distance(&wanted, &fixture.floats("logits")) } else { 5e-3 };
            println!("{model} on {}: {found:.1e}", setup.name);
            assert!(found < near, "{model} on {}: {found:e} of {near:e}", setup.name);
        }
    }
}

#[test]
fn perplexity_is_that_of_transformers() {
    let held_out = std::fs::read_to_string(path("models/stories/heldout.txt")).unwrap();
    let expected: serde_json::Value =
        serde_json::from_slice(&std::fs::read(path("models/stories/expected.json")).unwrap()).unwrap();
    for setup in setups() {
        for (key, quant) in [("nf4_dq", Some(QuantSpec::default())), ("fp32", None)] {
            // 5025 tokens take a software GPU long enough once.
            if setup.name == "cpu and wgpu" || (setup.name == "wgpu" && key == "fp32") {
                continue;
            }
            let stories = ModelSource::Bundled("stories".into());
            let mut model = CausalLm::load(&stories, &setup.exact(quant), &mut Silent).unwrap();
            let mut score = Score::default();
            for story in held_out.split("\n\n").take(40) {
                score.merge(model.perplexity(story).unwrap());
            }
            assert_eq!(score.tokens, 5025);
            let wanted = expected["perplexity"][key]["ppl"].as_f64().unwrap();
            let found = score.perplexity();
            println!("{key} on {}: {found} of {wanted}", setup.name);
            assert!((found - wanted).abs() < 1e-4 * wanted, "{key} on {}: {found}, {wanted}", setup.name);
        }
    }
}
