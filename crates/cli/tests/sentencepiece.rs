//! Models whose only tokenizer is sentencepiece's: run, talked to, planned, quantized, downloaded.

mod command;

use command::{Copy, Outcome, finish, halfbyte, halfbyte_with, repository, text};
use halfbyte_hub_stand_in::{Repository, StandIn};
use serde_json::{Value, json};

const PROMPT: &str = "The fox sat under the old tree.";

/// The bundled stories under a tokenizer that they were not trained with: noise, but every part is at work.
fn model() -> Copy {
    let model = Copy::of("models/stories");
    model.remove("tokenizer.json");
    model.write("tokenizer.model", tokenizer());
    let template = "{% for m in messages %}{{ bos_token }}[INST] {{ m.content }} [/INST]{% endfor %}";
    let config = json!({"tokenizer_class": "LlamaTokenizer", "legacy": false, "add_bos_token": true, "chat_template": template});
    model.write("tokenizer_config.json", config.to_string());
    model
}

fn tokenizer() -> Vec<u8> {
    std::fs::read(repository("tests/fixtures/sentencepiece/llama/tokenizer.model")).unwrap()
}

/// Tokens of the prompt, the one before it included.
fn prompt_tokens() -> usize {
    let expected = std::fs::read(repository("tests/fixtures/sentencepiece/llama/expected.json")).unwrap();
    let expected: Value = serde_json::from_slice(&expected).unwrap();
    let case = expected["cases"].as_array().unwrap().iter().find(|case| case["text"] == PROMPT).unwrap();
    case["spm_ids"].as_array().unwrap().len() + 1
}

fn run_args(model: &str) -> Vec<&str> {
    vec!["run", model, "-p", PROMPT, "-n", "12", "--temperature", "0", "--device-map", "cpu", "--json"]
}

fn run(model: &str) -> Outcome {
    halfbyte(&run_args(model)).ok()
}

#[test]
fn it_runs_and_talks_and_is_planned() {
    let model = model();
    let json = run(model.name()).json();
    assert_eq!((&json["prompt_tokens"], &json["new_tokens"]), (&json!(prompt_tokens()), &json!(12)));
    assert!(!json["text"].as_str().unwrap().is_empty());
    // What is streamed to people is the same.
    let args: Vec<_> = run_args(model.name()).into_iter().filter(|arg| *arg != "--json").collect();
    let people = halfbyte(&args).ok();
    assert_eq!(people.stdout, format!("{PROMPT}{}\n", json["text"].as_str().unwrap()));
    let chat = ["chat", model.name(), "-n", "3", "--temperature", "0", "--device-map", "cpu"];
    halfbyte_with(&chat, b"the fox\n").ok();
    assert_eq!(halfbyte(&["plan", model.name(), "--device-map", "cpu", "--json"]).ok().json()["fits"], true);
}

#[test]
fn it_is_quantized_with_its_tokenizer() {
    let model = model();
    model.write("added_tokens.json", json!({"<|later|>": 620}).to_string());
    let out = tempfile::tempdir().unwrap();
    let out = out.path().join("out");
    halfbyte(&["quantize", model.name(), "--output", text(&out), "--json"]).ok();
    for file in ["tokenizer.model", "tokenizer_config.json", "added_tokens.json"] {
        assert_eq!(std::fs::read(out.join(file)).unwrap(), model.read(file), "{file}");
    }
    assert!(!out.join("tokenizer.json").exists());
    assert_eq!(run(text(&out)).json()["text"], run(model.name()).json()["text"]);
}

#[test]
fn it_is_downloaded_where_there_is_no_other() {
    let model = model();
    let hub = |json: bool| {
        let mut found = Repository::from_dir("org/spm", model.path()).unwrap();
        if json {
            let tokenizer = std::fs::read(repository("models/stories/tokenizer.json")).unwrap();
            found = found.with("tokenizer.json", tokenizer);
        }
        StandIn::start(vec![found.with("spiece.model", b"of no use".to_vec())]).unwrap()
    };
    for json in [false, true] {
        let (hub, home) = (hub(json), tempfile::tempdir().unwrap());
        let run = |more: &[&str], cache: &str| {
            let args = [&run_args("org/spm")[..], more].concat();
            let mut command = command::command(&args);
            for name in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN_PATH"] {
                command.env_remove(name);
            }
            command
                .env("HF_HOME", home.path())
                .env("HF_ENDPOINT", hub.endpoint())
                .env("HALFBYTE_CACHE", cache);
            finish(&args, command.spawn().unwrap()).ok().json()
        };
        // Quantized as it arrives, from what that has left, and whole.
        for (more, cache) in
            [(&[][..], "always"), (&["--offline"], "always"), (&["--keep-original"], "never")]
        {
            let answer = run(more, cache);
            assert_eq!(answer["prompt_tokens"] == json!(prompt_tokens()), !json, "{answer}");
        }
        let asked = |file: &str| hub.requests().iter().any(|request| request.file.as_deref() == Some(file));
        let found = [asked("tokenizer.model"), asked("tokenizer.json"), asked("spiece.model")];
        assert_eq!(found, [!json, json, false]);
    }
}
