//! Whole models on the interpreter: the texts that transformers makes them write.

use halfbyte_backend::{Backend, Caps};
use halfbyte_checkpoint::Checkpoint;
use halfbyte_inference::{
    CheckpointSource, Engine, Flow, GenerateOptions, Session, Settings as ModelSettings, build, generate,
    logits,
};
use halfbyte_quant::QuantSpec;
use halfbyte_simt::{Adapter, Settings};
use halfbyte_wgpu::{Options, WgpuBackend};
use pollster::block_on;
use safetensors::SafeTensors;
use std::path::Path;
use std::rc::Rc;

/// How many tokens: the interpreter takes a second for each.
const NEW: usize = 6;

/// Logits of the fixture's input, then greedy tokens, each from the one before.
fn write(model: &str, settings: Settings) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models").join(model);
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let expected = std::fs::read(folder.join("expected.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&expected).unwrap();
    let words = |key: &str| -> Vec<[u8; 4]> {
        expected.tensor(key).unwrap().data().chunks_exact(4).map(|word| word.try_into().unwrap()).collect()
    };
    let ids = |key: &str| -> Vec<u32> { words(key).into_iter().map(u32::from_le_bytes).collect() };
    let input = ids("input_ids");

    let adapter = Adapter::new(settings);
    let backend = block_on(WgpuBackend::on(&adapter.wgpu(), 0, Options::default())).unwrap();
    let backend: Rc<dyn Backend> = Rc::new(backend);
    let exact = ModelSettings { quant: Some(QuantSpec::default()), ..ModelSettings::default() };
    let blueprint = build(&checkpoint.config, &checkpoint.index, &exact).unwrap();
    let blocks = 0..blueprint.blocks.len();
    let source = CheckpointSource::new(&checkpoint);
    let caps = Caps { rows: 64, outputs: 64 };
    let mut engine =
        block_on(Engine::load(blueprint, vec![(backend, blocks)], caps, &source, &mut |_| {})).unwrap();

    let found = block_on(logits(&mut engine, 0, &input)).unwrap();
    let wanted: Vec<f32> = words("logits.nf4dq").into_iter().map(f32::from_le_bytes).collect();
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let distance = square(&mut found.iter().zip(&wanted).map(|(a, b)| f64::from(a - b)))
        / square(&mut wanted.iter().map(|&b| f64::from(b)));
    assert!(found.len() == wanted.len() && distance < 5e-4, "{model}: {distance:e}");

    let options = GenerateOptions { max_new_tokens: NEW, ..GenerateOptions::default() };
    let mut session = Session::new(0);
    let mut go_on = |_| Flow::Continue;
    let text = block_on(generate(&mut engine, &mut session, &input, &options, &mut go_on)).unwrap();
    assert_eq!(text.tokens, ids("greedy16.nf4dq")[..NEW], "{model}");
    assert_eq!(adapter.findings(), [], "{model}");
}

#[test]
fn llamas_write_what_transformers_makes_them_write() {
    for size in [8, 32] {
        write("llama_gqa_tied_llama3rope", Settings { subgroup: Some((size, size)), ..Settings::default() });
    }
    write("llama_mha", Settings { subgroup: None, ..Settings::default() });
    write("mistral_sw8", Settings { subgroup: Some((8, 32)), ..Settings::default() });
}

#[test]
fn other_families_do() {
    write("gemma3_text", Settings { subgroup: Some((16, 16)), ..Settings::default() });
    write("mixtral_moe", Settings { subgroup: Some((64, 64)), ..Settings::default() });
}
