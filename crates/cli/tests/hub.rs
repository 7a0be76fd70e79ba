//! Models on the Hub as a user meets them: the command against a stand-in on loopback.

mod command;

use command::{Outcome, finish, repository, text};
use halfbyte_hub_stand_in::{
    Access, Body, Fault, Repository, Rule, Site, StandIn, TOKEN, TOKEN_WITHOUT_ACCESS,
};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const WEIGHTS: &str = "model.safetensors";

/// A stand-in with the bundled stories as `org/stories`, and a home for the cache.
struct Setting {
    hub: StandIn,
    home: tempfile::TempDir,
}

impl Setting {
    fn new() -> Self {
        Self::with(stories())
    }

    fn with(repository: Repository) -> Self {
        Self { hub: StandIn::start(vec![repository]).unwrap(), home: tempfile::tempdir().unwrap() }
    }

    /// The command in this setting and no other.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = command::command(args);
        for name in
            ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN_PATH", "HALFBYTE_CACHE"]
        {
            command.env_remove(name);
        }
        command.env("HF_HOME", self.home.path()).env("HF_ENDPOINT", self.hub.endpoint());
        command.env("HF_HUB_DOWNLOAD_TIMEOUT", "1");
        command
    }

    fn run(&self, args: &[&str]) -> Outcome {
        finish(args, self.command(args).spawn().unwrap())
    }

    /// Three greedy tokens of `org/stories`.
    fn story(&self, more: &[&str]) -> Outcome {
        self.run(&story_args("org/stories", more))
    }

    /// Bytes of weights that were sent.
    fn weights_sent(&self) -> u64 {
        self.hub
            .requests()
            .iter()
            .filter(|request| request.site == Site::Cdn)
            .map(|request| request.sent)
            .sum()
    }

    /// All files of the caches that hold weights.
    fn weight_files(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut dirs = vec![self.home.path().to_path_buf()];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
                match entry.file_type().unwrap() {
                    kind if kind.is_dir() => dirs.push(entry.path()),
                    kind if kind.is_file() && entry.metadata().unwrap().len() > 1_000_000 => {
                        found.push(entry.path());
                    }
                    _ => {}
                }
            }
        }
        found
    }
}

fn stories() -> Repository {
    Repository::from_dir("org/stories", &repository("models/stories")).unwrap()
}

fn weights_len() -> u64 {
    std::fs::metadata(repository("models/stories").join(WEIGHTS)).unwrap().len()
}

fn story_args<'a>(model: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let args = [
        "run",
        model,
        "-p",
        "Once there was",
        "-n",
        "3",
        "--temperature",
        "0",
        "--device-map",
        "cpu",
        "--json",
    ];
    [&args[..], more].concat()
}

/// What the model says when it comes from a directory.
fn local_story(more: &[&str]) -> Value {
    let dir = repository("models/stories");
    let args = story_args(text(&dir), more);
    finish(&args, command::command(&args).spawn().unwrap()).ok().json()["text"].clone()
}

#[test]
fn downloaded_once_then_in_the_cache_then_offline() {
    let setting = Setting::new();
    assert_eq!(setting.story(&[]).ok().json()["text"], local_story(&[]));
    assert_eq!(setting.weights_sent(), weights_len() + header_request());
    setting.hub.forget();
    setting.story(&[]).ok();
    assert_eq!(setting.weights_sent(), 0);
    setting.hub.forget();
    setting.story(&["--offline"]).ok();
    assert!(setting.hub.requests().is_empty());
    // Another revision is not there.
    setting.story(&["--offline", "--revision", "v2"]).refused_with(&["offline", "without --offline"]);
    setting.story(&["--revision", "v2"]).refused_with(&["no revision v2", "404"]);
}

/// Bytes that planning fetched of the weights' file: its header and what came along.
fn header_request() -> u64 {
    128 << 10
}

#[test]
fn a_killed_download_goes_on_and_no_byte_is_sent_again() {
    let setting = Setting::new();
    setting.hub.misbehave(Rule::new(Fault::Slow(weights_len() / 3), WEIGHTS).at(Site::Cdn).after(1));
    let args = story_args("org/stories", &[]);
    let mut child = setting.command(&args).spawn().unwrap();
    let enough = weights_len() / 10 + header_request();
    wait_until(|| setting.weights_sent() > enough);
    child.kill().unwrap();
    child.wait().unwrap();
    setting.hub.behave();
    setting.hub.forget();
    assert_eq!(setting.story(&[]).ok().json()["text"], local_story(&[]));
    let requests = setting.hub.requests();
    let last = requests.iter().rfind(|request| request.site == Site::Cdn).unwrap();
    let from = last.range.unwrap().0;
    assert!(from > weights_len() / 20, "{last:?}");
    assert_eq!(last.sent, weights_len() - from);
}

fn wait_until(done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(60), "it does not come to that");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn of_two_processes_one_downloads() {
    let setting = Setting::new();
    setting.hub.misbehave(Rule::new(Fault::Slow(weights_len()), WEIGHTS).at(Site::Cdn).after(2));
    let args = story_args("org/stories", &[]);
    let both = [setting.command(&args).spawn().unwrap(), setting.command(&args).spawn().unwrap()];
    let outcomes = both.map(|child| finish(&args, child).ok());
    let waited =
        outcomes.iter().filter(|outcome| outcome.stderr.contains("model.safetensors: waiting for it"));
    assert_eq!(waited.count(), 1, "{outcomes:?}");
    assert_eq!(setting.weights_sent(), weights_len() + 2 * header_request());
}

#[test]
fn a_token_opens_what_is_gated_and_is_never_shown() {
    let setting = Setting::with(stories().with_access(Access::Gated));
    let page = format!("{}/org/stories", setting.hub.endpoint());
    setting.story(&[]).refused_with(&["gated (401)", &page, "--token or HF_TOKEN"]);
    setting.story(&["--token", TOKEN_WITHOUT_ACCESS]).refused_with(&["has no access (403)", &page]);
    let wrong = setting.story(&["--token", "hf_wrong"]);
    wrong.refused_with(&["does not accept the token (401)"]);
    assert!(!wrong.stderr.contains("hf_wrong"));

    setting.hub.forget();
    let args = story_args("org/stories", &["-vvv"]);
    let outcome = finish(&args, setting.command(&args).env("HF_TOKEN", TOKEN).spawn().unwrap()).ok();
    assert!(!outcome.stderr.contains(TOKEN), "the token is in the log");
    assert!(outcome.stderr.len() > 1000, "there is a log");
    for request in setting.hub.requests() {
        let wanted = (request.site == Site::Hub).then_some(TOKEN);
        assert_eq!(request.token.as_deref(), wanted, "{request:?}");
    }
}

#[test]
fn each_trouble_is_one_line_with_a_way_out() {
    let all = |fault| vec![Rule::new(fault, "")];
    let cdn = |fault| vec![Rule::new(fault, WEIGHTS).at(Site::Cdn).after(1)];
    let mut troubles = Vec::new();
    for (rules, parts) in [
        (all(Fault::Status(404, None)), vec!["no such model", "404"]),
        (all(Fault::Status(429, Some(1000))), vec!["limits requests (429)", "wait 1000 seconds", "--token"]),
        (all(Fault::Status(500, None)), vec!["in trouble (500)", "--offline"]),
        (cdn(Fault::Stall(0)), vec!["connection broke", "goes on where it was", "HF_HUB_DOWNLOAD_TIMEOUT"]),
        (cdn(Fault::Truncated(500)), vec!["the Hub says that model.safetensors has", "bytes"]),
        (cdn(Fault::Corrupt(500_000)), vec!["arrived damaged twice", "another network"]),
    ] {
        // Each waits for some seconds: all at once.
        troubles.push(std::thread::spawn(move || {
            let setting = Setting::new();
            rules.into_iter().for_each(|rule| setting.hub.misbehave(rule));
            setting.story(&[]).refused_with(&parts);
        }));
    }
    for trouble in troubles {
        trouble.join().unwrap();
    }
    let setting = Setting::new();
    setting
        .run(&story_args("org/absent", &[]))
        .refused_with(&["no public model of this name (401)", "check the name"]);
    setting.story(&["--offline"]).refused_with(&["offline", "HF_HUB_OFFLINE"]);

    let args = story_args("org/stories", &[]);
    let with = |name: &str, value: &str| {
        finish(&args, setting.command(&args).env("NO_PROXY", "").env(name, value).spawn().unwrap())
    };
    with("HF_HUB_OFFLINE", "1").refused_with(&["offline"]);
    with("HF_ENDPOINT", "http://127.0.0.1:9").refused_with(&["cannot be reached", "HF_ENDPOINT"]);
    with("HF_ENDPOINT", "nonsense").refused_with(&["HF_ENDPOINT is nonsense"]);
    let secure = setting.hub.endpoint().replace("http:", "https:");
    with("HF_ENDPOINT", &secure).refused_with(&["no secure connection", "SSL_CERT_FILE"]);
    let mut proxied = setting.command(&args);
    proxied
        .env("HF_ENDPOINT", "http://hub.invalid")
        .env("HTTP_PROXY", "http://127.0.0.1:9")
        .env("NO_PROXY", "");
    finish(&args, proxied.spawn().unwrap()).refused_with(&["cannot be reached", "the proxy of HTTP_PROXY"]);
}

#[test]
fn quantized_as_it_arrives_and_nothing_else_is_kept() {
    let setting = Setting::new();
    let args = story_args("org/stories", &[]);
    let start = |args: &[&str]| setting.command(args).env("HALFBYTE_CACHE", "always").spawn().unwrap();
    let outcome = finish(&args, start(&args)).ok();
    assert_eq!(outcome.json()["text"], local_story(&[]));
    assert!(outcome.stderr.contains("quantizing org/stories as it arrives"), "{}", outcome.stderr);
    let files = setting.weight_files();
    assert_eq!(files.len(), 1, "{files:?}");
    assert!(std::fs::metadata(&files[0]).unwrap().len() < weights_len() * 2 / 3, "{files:?}");

    // The next starts take it: online with one question, offline with none.
    setting.hub.forget();
    let again = finish(&args, start(&args)).ok();
    assert_eq!((again.json()["text"].clone(), setting.hub.requests().len()), (local_story(&[]), 1));
    let offline = story_args("org/stories", &["--offline"]);
    finish(&offline, start(&offline)).ok();
    assert_eq!(setting.hub.requests().len(), 1);
    let plan = ["plan", "org/stories", "--device-map", "cpu", "--json"];
    assert_eq!(finish(&plan, start(&plan)).ok().json()["download_bytes"], 0);

    // All the same, the original can be had.
    let original = story_args("org/stories", &["--keep-original", "--no-cache"]);
    finish(&original, start(&original)).ok();
    assert_eq!(setting.weight_files().len(), 2);
}

#[test]
fn quantizing_as_it_arrives_survives_kills() {
    let dir = tempfile::tempdir().unwrap();
    let wanted = dir.path().join("wanted");
    let local = repository("models/stories");
    let args = ["quantize", text(&local), "--output", text(&wanted), "--json"];
    finish(&args, command::command(&args).spawn().unwrap()).ok();

    let setting = Setting::new();
    let out = dir.path().join("out");
    let args = ["quantize", "org/stories", "--output", text(&out), "--json"];
    setting.hub.misbehave(Rule::new(Fault::Slow(weights_len()), WEIGHTS).at(Site::Cdn));
    let lines = || {
        let journal = std::fs::read_to_string(out.join("model.safetensors.journal"));
        journal.unwrap_or_default().lines().count()
    };
    for _ in 0..4 {
        let before = lines();
        let mut child = setting.command(&args).spawn().unwrap();
        wait_until(|| lines() > before + 3);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!out.join("config.json").exists());
    }
    setting.hub.behave();
    setting.hub.forget();
    finish(&args, setting.command(&args).spawn().unwrap()).ok();
    // Less than all of it, the header's request included.
    assert!(setting.weights_sent() < weights_len(), "{}", setting.weights_sent());
    assert_eq!(contents(&out), contents(&wanted));
}

fn contents(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    let mut found: Vec<_> = entries
        .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
        .collect();
    found.sort();
    found
}

/// Llama-2-7B without its weights: true headers, and zeros up to the true lengths.
fn llama_2_7b() -> Repository {
    let mut tensors: Vec<(String, [u64; 2])> = vec![("model.embed_tokens.weight".into(), [32_000, 4096])];
    for layer in 0..32 {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        for part in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            tensors.push((name(&format!("self_attn.{part}")), [4096, 4096]));
        }
        for part in ["mlp.gate_proj", "mlp.up_proj"] {
            tensors.push((name(part), [11_008, 4096]));
        }
        tensors.push((name("mlp.down_proj"), [4096, 11_008]));
        for part in ["input_layernorm", "post_attention_layernorm"] {
            tensors.push((name(part), [4096, 0]));
        }
    }
    tensors.push(("model.norm.weight".into(), [4096, 0]));
    tensors.push(("lm_head.weight".into(), [32_000, 4096]));

    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float16",
        "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "rms_norm_eps": 1e-5, "vocab_size": 32_000, "max_position_embeddings": 4096,
        "hidden_act": "silu", "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2,
    });
    let mut hub =
        Repository::new("meta-llama/Llama-2-7b-hf").with("config.json", config.to_string().into_bytes());
    let mut weight_map = serde_json::Map::new();
    let (shards, mut total) = (tensors.chunks(tensors.len().div_ceil(2)), 0);
    for (number, shard) in shards.enumerate() {
        let file = format!("model-0000{}-of-00002.safetensors", number + 1);
        let (mut header, mut at) = (serde_json::Map::new(), 0);
        for (name, [rows, cols]) in shard {
            let shape = if *cols == 0 { vec![*rows] } else { vec![*rows, *cols] };
            let end = at + shape.iter().product::<u64>() * 2;
            header.insert(name.clone(), json!({"dtype": "F16", "shape": shape, "data_offsets": [at, end]}));
            weight_map.insert(name.clone(), file.clone().into());
            at = end;
        }
        let header = Value::Object(header).to_string();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        let len = bytes.len() as u64 + at;
        total += len;
        hub = hub.with_body(&file, Body::Zeros(bytes, len));
    }
    assert!(total > 13_400_000_000, "{total}");
    let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
    hub.with("model.safetensors.index.json", index.to_string().into_bytes())
        .with("tokenizer.json", vec![b' '; 2 << 20])
}

#[test]
fn thirteen_gigabytes_are_planned_from_less_than_two_megabytes() {
    let setting = Setting::with(llama_2_7b());
    let model = "meta-llama/Llama-2-7b-hf";
    let args = ["plan", model, "--pretend-memory", "cpu=8GiB", "--device-map", "cpu", "--json"];
    let plan = setting.run(&args).ok().json();
    assert_eq!(plan["fits"], true, "{plan}");
    assert_eq!(plan["layers"].as_array().unwrap().len(), 34);
    assert!(plan["download_bytes"].as_u64().unwrap() > 13_400_000_000, "{plan}");
    assert!(setting.hub.sent() < 2_000_000, "{}", setting.hub.sent());

    // What would not fit is not downloaded.
    let args = [
        "run",
        model,
        "-p",
        "x",
        "--pretend-memory",
        "cpu=2GiB",
        "--device-map",
        "cpu",
        "--max-memory",
        "disk=0",
    ];
    setting.run(&args).refused();
    assert!(setting.hub.sent() < 2_000_000, "{}", setting.hub.sent());
}
