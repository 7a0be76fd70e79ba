//! Every fixture directory opens, and says what transformers said when it was written.

use halfbyte_checkpoint::{Checkpoint, ModelFiles, RopeKind, TensorDtype};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

fn directories(path: &str) -> Vec<PathBuf> {
    let mut directories: Vec<PathBuf> = std::fs::read_dir(repository(path))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    directories.sort();
    directories
}

fn expected(directory: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(directory.join("expected.json")).unwrap()).unwrap()
}

#[test]
fn every_model_opens_and_has_the_tensors_that_were_saved() {
    let directories = directories("tests/fixtures/models");
    assert_eq!(directories.len(), 19);
    for directory in directories {
        let expected = expected(&directory);
        let checkpoint = Checkpoint::open(&directory).unwrap();
        assert_eq!(checkpoint.config.architecture, expected["arch"], "{directory:?}");

        // "name [2, 3] torch.float32"
        let saved: BTreeSet<String> = expected["checkpoint_tensors"]
            .as_array()
            .unwrap()
            .iter()
            .map(|line| line.as_str().unwrap().to_string())
            .collect();
        let read: BTreeSet<String> = checkpoint
            .index
            .iter()
            .map(|tensor| {
                let dtype = match tensor.dtype {
                    TensorDtype::F32 => "float32",
                    TensorDtype::F16 => "float16",
                    TensorDtype::BF16 => "bfloat16",
                    other => panic!("{other}"),
                };
                format!("{} {:?} torch.{dtype}", tensor.name, tensor.shape)
            })
            .collect();
        assert_eq!(read, saved, "{directory:?}");
        for tensor in checkpoint.index.iter() {
            let bytes = checkpoint.tensor_bytes(&tensor.name).unwrap();
            let size = tensor.dtype.size().unwrap();
            assert_eq!(bytes.len(), tensor.elements() * size, "{}", tensor.name);
        }
        // The encoders' records leave it out; they are float32.
        let dtype = expected["stored_dtype"].as_str().unwrap_or("float32");
        assert_eq!(checkpoint.dtype(), TensorDtype::from_torch_name(dtype));
        assert!(checkpoint.config.quantization().unwrap().is_none());
    }
}

#[test]
fn tensor_bytes_agree_with_the_reference_reader() {
    for name in ["llama_bf16_sharded", "gpt2", "bert_cls"] {
        let directory = repository("tests/fixtures/models").join(name);
        let checkpoint = Checkpoint::open(&directory).unwrap();
        let mut compared = 0;
        for file in checkpoint.index.files() {
            let bytes = std::fs::read(file).unwrap();
            let reference = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            for (name, view) in reference.tensors() {
                assert_eq!(checkpoint.tensor_bytes(&name).unwrap(), view.data(), "{name}");
                let info = checkpoint.index.get(&name).unwrap();
                assert_eq!(info.shape, view.shape());
                compared += 1;
            }
        }
        assert_eq!(compared, checkpoint.index.len());
    }
}

#[test]
fn shards_are_indexed_over_all_files() {
    let checkpoint = Checkpoint::open(&repository("tests/fixtures/models/llama_bf16_sharded")).unwrap();
    assert_eq!(checkpoint.index.files().len(), 4);
    let used: BTreeSet<usize> = checkpoint.index.iter().map(|tensor| tensor.file).collect();
    assert_eq!(used, BTreeSet::from([0, 1, 2, 3]));
}

#[test]
fn generation_stops_where_the_files_say() {
    for directory in directories("tests/fixtures/models") {
        let checkpoint = Checkpoint::open(&directory).unwrap();
        let config = &checkpoint.config;
        let eos = config.opt_usize("eos_token_id").unwrap();
        let stops: Vec<usize> = checkpoint.generation.eos_token_ids.iter().map(|&id| id as usize).collect();
        assert_eq!(stops, eos.into_iter().collect::<Vec<_>>(), "{directory:?}");
    }
    let stories = Checkpoint::open(&repository("models/stories")).unwrap().generation;
    assert_eq!(stories.bos_token_id, Some(1));
    assert_eq!(stories.eos_token_ids, [2]);
    assert_eq!(stories.do_sample, Some(true));
    assert_eq!(stories.temperature, Some(0.7));
    assert_eq!(stories.top_k, Some(40));
    assert_eq!(stories.top_p, Some(0.95));
    assert_eq!(stories.max_new_tokens, Some(200));
    assert_eq!(stories.repetition_penalty, None);
}

#[test]
fn rope_of_the_fixtures() {
    let rope = |name: &str| {
        let directory = repository("tests/fixtures/models").join(name);
        Checkpoint::open(&directory).unwrap().config.rope().unwrap()
    };
    let plain = rope("llama_mha");
    assert_eq!((plain.theta, plain.partial_rotary_factor), (10_000.0, 1.0));
    assert_eq!(plain.kind, RopeKind::Default);
    assert_eq!(rope("qwen2_bias").theta, 1e6);
    assert_eq!(rope("llama_bias_linearrope").kind, RopeKind::Linear { factor: 2.0 });
    assert_eq!(
        rope("llama_gqa_tied_llama3rope").kind,
        RopeKind::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 32,
        }
    );
    let gemma = Checkpoint::open(&repository("tests/fixtures/models/gemma3_text")).unwrap();
    assert_eq!(gemma.config.rope_for("full_attention").unwrap().theta, 1e6);
    assert_eq!(gemma.config.rope_for("sliding_attention").unwrap().theta, 1e4);
    let error = gemma.config.rope_for("chunked_attention").unwrap_err();
    assert!(error.to_string().contains("rope_parameters.chunked_attention is missing"), "{error}");
}

#[test]
fn labels_of_the_classifiers() {
    let labels = |path: &str| Checkpoint::open(&repository(path)).unwrap().config.labels().unwrap();
    assert_eq!(labels("models/sentiment"), ["NEGATIVE", "POSITIVE"]);
    assert_eq!(labels("tests/fixtures/models/bert_cls"), ["neg", "neutral", "pos"]);
    assert_eq!(labels("tests/fixtures/models/bert_model"), ["LABEL_0", "LABEL_1"]);
}

#[test]
fn embedded_bytes_make_the_same_checkpoint_as_a_directory() {
    let directory = repository("models/stories");
    let read = |file: &str| std::fs::read(directory.join(file)).unwrap();
    let embedded = Checkpoint::new(ModelFiles::from_bytes(
        "stories",
        read("config.json"),
        read("model.safetensors"),
        Some(read("tokenizer.json")),
        Some(read("generation_config.json")),
    ))
    .unwrap();
    let opened = Checkpoint::open(&directory).unwrap();
    assert_eq!(embedded.index.len(), opened.index.len());
    for tensor in opened.index.iter() {
        let name = &tensor.name;
        assert_eq!(embedded.tensor_bytes(name).unwrap(), opened.tensor_bytes(name).unwrap());
    }
    assert_eq!(embedded.generation, opened.generation);
    let text = "Once there was a fox.";
    assert_eq!(
        embedded.tokenizer().unwrap().encode(text, true).unwrap(),
        opened.tokenizer().unwrap().encode(text, true).unwrap()
    );
}

#[test]
fn a_model_without_a_tokenizer_says_so() {
    let checkpoint = Checkpoint::open(&repository("tests/fixtures/models/gpt2")).unwrap();
    assert!(!checkpoint.has_tokenizer());
    let error = checkpoint.tokenizer().unwrap_err().to_string();
    assert!(error.contains("gpt2 has no tokenizer.json"), "{error}");
}
