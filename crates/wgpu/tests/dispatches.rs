//! How many dispatches a layer is in decode, family by family: the table of ARCHITECTURE.md is this.

mod models;

use halfbyte_inference::{Flow, GenerateOptions, Session, generate};
use halfbyte_wgpu::Options;
use models::{device, exact, open};
use pollster::block_on;

const TABLE: &str = include_str!("../../../ARCHITECTURE.md");

/// Embedding, final norm with the head, and the choice; Gemma's last sum and its norms before the head are one
/// more.
fn around(family: &str) -> u64 {
    if family.starts_with("Gemma") { 4 } else { 3 }
}

#[test]
fn the_table_of_dispatches_is_true() {
    let backend = device(Options::default());
    for (family, fixture) in [
        ("Llama", "llama_mha"),
        ("Llama with biases", "llama_bias_linearrope"),
        ("Mistral", "mistral_sw8"),
        ("Qwen 2", "qwen2_bias"),
        ("Qwen 3", "qwen3_qknorm"),
        ("Phi 3", "phi3_fused"),
        ("GPT-2", "gpt2"),
        ("Gemma 2", "gemma2_softcap"),
        ("Gemma 3", "gemma3_text"),
        ("Mixtral", "mixtral_moe"),
    ] {
        let checkpoint = open(&format!("tests/fixtures/models/{fixture}"));
        let mut engine = exact(&checkpoint, backend.clone(), 1);
        let layers = engine.blueprint().blocks.len() as u64 - 2;
        let options = GenerateOptions { max_new_tokens: 1, ..GenerateOptions::default() };
        let mut session = Session::new(0);
        let mut go_on = |_| Flow::Continue;
        let text = generate(&mut engine, &mut session, &[5], &options, &mut go_on);
        block_on(text).unwrap();
        let (dispatches, submissions) = engine.counts();
        assert_eq!(submissions, 1, "{family}");
        assert_eq!(
            (dispatches - around(family)) % layers,
            0,
            "{family}: {dispatches} dispatches, {layers} layers"
        );
        let row = format!("| {family} | {} |", (dispatches - around(family)) / layers);
        assert!(TABLE.contains(&row), "ARCHITECTURE.md lacks: {row}");
    }
}
