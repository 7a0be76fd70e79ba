//! Broken and hostile models: one line that names the file and what is wrong with it, exit code 1, no
//! panic, and nothing half-written.

mod case;
#[path = "../command/mod.rs"]
mod command;
mod config;
mod container;
mod directory;
mod quant_states;
mod shards;
mod tensors;
mod tokenizer;

use case::check;
use command::{Copy, Outcome, halfbyte, text};

const SINGLE: &str = "tests/fixtures/models/llama_mha";

/// `logits` on the CPU, which must leave nothing behind.
fn logits(model: &Copy) -> Outcome {
    logits_on(model, &["--device-map", "cpu"])
}

/// `logits` of a model whose matrices stay in their files.
fn logits_from_disk(model: &Copy) -> Outcome {
    logits_on(model, &["--device-map", "disk", "--quant", "none"])
}

fn logits_on(model: &Copy, device: &[&str]) -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("out.safetensors");
    let outcome =
        halfbyte(&[&["logits", model.name(), "--ids", "1,2,3", "-o", text(&file)], device].concat());
    let left = std::fs::read_dir(folder.path()).unwrap().count();
    assert!(left == 0 || outcome.code == Some(0), "{} left a file", outcome.line);
    outcome
}

#[test]
fn broken_containers() {
    check(SINGLE, container::CONTAINER, logits);
}

#[test]
fn broken_tensors() {
    check(SINGLE, tensors::TENSORS, logits);
    check(SINGLE, tensors::NOT_FINITE, logits);
    check(SINGLE, tensors::NOT_FINITE, logits_from_disk);
}

/// Matrices of floats that are too large to be read for that alone are looked at when they spoil a result.
#[test]
fn large_matrices_in_files_that_hold_no_numbers() {
    check("models/stories", tensors::LARGE, |model| {
        halfbyte(&[
            "run",
            model.name(),
            "--device-map",
            "disk",
            "--quant",
            "none",
            "-p",
            "Once",
            "-n",
            "2",
            "--json",
        ])
    });
}

#[test]
fn broken_quant_states() {
    for refused in [logits, logits_from_disk] {
        check("tests/fixtures/bnb_ckpt/llama_nf4_dq", quant_states::NESTED, refused);
        check("tests/fixtures/bnb_ckpt/llama_nf4", quant_states::PLAIN, refused);
    }
}

#[test]
fn broken_configurations() {
    check(SINGLE, config::CONFIG, logits);
}

#[test]
fn broken_generation_configurations() {
    check(SINGLE, config::GENERATION, logits);
}

#[test]
fn broken_directories() {
    check(SINGLE, directory::DIRECTORY, logits);
}

#[test]
fn broken_models_of_several_files() {
    check("tests/fixtures/models/llama_bf16_sharded", shards::SHARDED, logits);
}

#[test]
fn broken_tokenizers() {
    for cases in [tokenizer::SPEAKING, tokenizer::SENTENCEPIECE] {
        check("models/stories", cases, |model| {
            halfbyte(&["run", model.name(), "--device-map", "cpu", "-p", "Once", "-n", "2"])
        });
    }
}

#[test]
fn broken_chat_templates() {
    check("models/stories", tokenizer::TEMPLATES, |model| {
        command::halfbyte_with(&["chat", model.name(), "--device-map", "cpu", "-n", "2"], b"Hello\n")
    });
}

#[test]
fn a_broken_tokenizer_does_not_matter_to_a_plan() {
    let model = Copy::of("models/stories");
    model.write("tokenizer.json", b"{");
    let json = halfbyte(&["plan", model.name(), "--device-map", "cpu", "--json"]).ok().json();
    assert_eq!(json["fits"], true);
}

#[test]
fn hostile_headers_are_refused_by_a_plan_too() {
    let plan = |model: &Copy| halfbyte(&["plan", model.name(), "--device-map", "cpu"]);
    check(SINGLE, container::CONTAINER, plan);
    check(SINGLE, &tensors::TENSORS[..6], plan);
}

#[test]
fn a_file_is_no_directory() {
    let model = Copy::of(SINGLE);
    let file = model.file("model.safetensors");
    halfbyte(&["plan", text(&file), "--offline"]).refused_with(&["model.safetensors"]);
}
