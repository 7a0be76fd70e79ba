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

/// RoBERTa's fixture as XLM-R with a tokenizer of its day: one file, and nothing beside it.
fn xlm_roberta() -> Copy {
    let model = Copy::of("tests/fixtures/models/roberta_cls");
    model.configure("architectures", json!(["XLMRobertaForSequenceClassification"]));
    model.configure("model_type", json!("xlm-roberta"));
    model.configure("vocab_size", json!(404));
    // Rows of embedding for all ids.
    let (mut header, mut data) = model.safetensors();
    let table = "roberta.embeddings.word_embeddings.weight";
    let old = header[table].take();
    let range = old["data_offsets"].as_array().unwrap().iter().map(|at| at.as_u64().unwrap() as usize);
    let rows = data[range.clone().min().unwrap()..range.max().unwrap()].to_vec();
    let (start, bytes) = (data.len(), 404 * rows.len() / 300);
    data.extend(rows.iter().cycle().take(bytes));
    header["before"] = old;
    header[table] =
        json!({"dtype": "F32", "shape": [404, rows.len() / 300 / 4], "data_offsets": [start, start + bytes]});
    model.write_safetensors(&header, &data);
    let file = repository("tests/fixtures/sentencepiece/xlmr/tokenizer.model");
    model.write("sentencepiece.bpe.model", std::fs::read(file).unwrap());
    model
}

#[test]
fn xlm_roberta_labels_what_transformers_would_give_it() {
    let model = xlm_roberta();
    let expected = std::fs::read(repository("tests/fixtures/sentencepiece/xlmr/expected.json")).unwrap();
    let expected: Value = serde_json::from_slice(&expected).unwrap();
    let case = expected["cases"].as_array().unwrap().iter().find(|case| case["text"] == PROMPT).unwrap();
    let ids: Vec<String> =
        case["hf"]["xlmr"]["ids"].as_array().unwrap().iter().map(Value::to_string).collect();
    let exact = ["--device-map", "cpu", "--compute-dtype", "float32", "--json"];
    let labelled =
        halfbyte(&[&["classify", model.name(), "--text", PROMPT][..], &exact].concat()).ok().json();
    let logits = labelled["results"][0]["logits"].as_array().unwrap().clone();
    let out = model.file("logits.safetensors");
    let args = ["logits", model.name(), "--ids", &ids.join(","), "--output", text(&out)];
    halfbyte(&[&args[..], &exact].concat()).ok();
    let bytes = std::fs::read(out).unwrap();
    let wanted = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let wanted = wanted.tensor("logits").unwrap().data().to_vec();
    let (wanted, _) = wanted.as_chunks::<4>();
    assert_eq!(wanted.len(), logits.len());
    for (ours, wanted) in logits.iter().zip(wanted) {
        let (ours, wanted) = (ours.as_f64().unwrap(), f64::from(f32::from_le_bytes(*wanted)));
        assert!((ours - wanted).abs() < 1e-5, "{logits:?}");
    }
    // It goes where the model goes.
    let out = tempfile::tempdir().unwrap();
    let out = out.path().join("out");
    halfbyte(&["quantize", model.name(), "--output", text(&out), "--json"]).ok();
    assert_eq!(
        std::fs::read(out.join("sentencepiece.bpe.model")).unwrap(),
        model.read("sentencepiece.bpe.model")
    );
    halfbyte(&["classify", text(&out), "--text", PROMPT, "--device-map", "cpu"]).ok();
    // Another's ids are not guessed.
    model.write("tokenizer_config.json", json!({"tokenizer_class": "CamembertTokenizer"}).to_string());
    halfbyte(&["classify", model.name(), "--text", PROMPT])
        .refused_with(&["its tokenizer is sentencepiece.bpe.model", "save_pretrained"]);
}
