//! The bundled model writes what transformers makes it write.

mod fixture;

use fixture::{exact, nf4, path};
use halfbyte_backend::{Backend, Caps};
use halfbyte_checkpoint::Checkpoint;
use halfbyte_cpu::CpuBackend;
use halfbyte_inference::{
    CheckpointSource, Engine, Flow, GenerateOptions, Score, Session, build, generate, score,
};
use halfbyte_quant::QuantSpec;
use pollster::block_on;
use std::rc::Rc;

fn load(checkpoint: &Checkpoint, quant: Option<QuantSpec>) -> Engine {
    let blueprint = build(&checkpoint.config, &checkpoint.index, &exact(quant)).unwrap();
    let backend: Rc<dyn Backend> = Rc::new(CpuBackend::new().unwrap());
    let blocks = 0..blueprint.blocks.len();
    let source = CheckpointSource::new(checkpoint);
    let caps = Caps { rows: 128, outputs: 128 };
    block_on(Engine::load(blueprint, vec![(backend, blocks)], caps, &source, &mut |_| {})).unwrap()
}

#[test]
fn greedy_texts_are_those_of_transformers() {
    let checkpoint = Checkpoint::open(&path("models/stories")).unwrap();
    let tokenizer = checkpoint.tokenizer().unwrap();
    let expected = std::fs::read(path("models/stories/expected.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_slice(&expected).unwrap();
    let prompts = expected["prompts"].as_array().unwrap();
    assert!(prompts.len() >= 4);
    for (suffix, quant) in [("fp32", None), ("nf4_dq", nf4(true))] {
        let mut engine = load(&checkpoint, quant);
        let mut session = Session::new(0);
        for prompt in prompts {
            let ids = |key: &str| -> Vec<u32> {
                prompt[key].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
            };
            let input = tokenizer.encode(prompt["text"].as_str().unwrap(), true).unwrap();
            assert_eq!(input, ids("ids"));
            let wanted = ids(&format!("greedy_{suffix}"));
            let max_new_tokens = wanted.len() - input.len();
            let options = GenerateOptions { max_new_tokens, ..GenerateOptions::default() };
            let mut go_on = |_| Flow::Continue;
            let text = generate(&mut engine, &mut session, &input, &options, &mut go_on);
            let tokens = block_on(text).unwrap().tokens;
            assert_eq!(tokens, wanted[input.len()..], "{suffix} {}", prompt["text"]);
            let found = tokenizer.decode(&wanted, true).unwrap();
            assert_eq!(found, prompt[format!("text_{suffix}")].as_str().unwrap());
        }
    }
}

#[test]
fn perplexity_is_that_of_transformers() {
    let checkpoint = Checkpoint::open(&path("models/stories")).unwrap();
    let tokenizer = checkpoint.tokenizer().unwrap();
    let stories = std::fs::read_to_string(path("models/stories/heldout.txt")).unwrap();
    let mut engine = load(&checkpoint, nf4(true));
    let mut total = Score::default();
    for story in stories.split("\n\n").map(str::trim).filter(|story| !story.is_empty()).take(40) {
        let ids = tokenizer.encode(story, true).unwrap();
        total.merge(block_on(score(&mut engine, 0, &ids)).unwrap());
    }
    assert_eq!(total.tokens, 5025);
    assert!((total.perplexity() - 1.444_633_5).abs() < 2e-5, "{}", total.perplexity());
}
