//! `halfbyte run`: what it says, in what form, and what it refuses.

mod command;

use command::Kind::{Count, Counts, Number, Object, Rows, Text};
use command::{Copy, fixture, halfbyte, halfbyte_with, has_fields, repository, text};
use serde_json::Value;

const PROMPT: &str = "Once there was";

/// `run --device-map cpu --prompt "Once there was"` and more.
fn run(more: &[&str]) -> command::Outcome {
    halfbyte(&[&["run", "--device-map", "cpu", "--prompt", PROMPT], more].concat())
}

#[test]
fn json_has_every_field_and_nothing_else_is_on_stdout() {
    let outcome = run(&["--json", "-n", "5"]).ok();
    let json = outcome.json();
    has_fields(
        &json,
        &[
            ("text", Text),
            ("token_ids", Counts),
            ("prompt_tokens", Count),
            ("new_tokens", Count),
            ("load_seconds", Number),
            ("prefill_tokens_per_second", Number),
            ("decode_tokens_per_second", Number),
            ("device_map", Object),
            ("memory", Rows),
            ("events", Rows),
        ],
    );
    assert_eq!(json["new_tokens"], 5);
    assert_eq!(json["prompt_tokens"], 4);
    assert_eq!(json["token_ids"].as_array().unwrap().len(), 5);
    assert_eq!(json["device_map"]["model.layers.0"], "cpu");
    let memory = &json["memory"][0];
    has_fields(memory, &[("device", Text), ("planned_bytes", Count), ("measured_bytes", Count)]);
    assert!(memory.get("witnessed_bytes").is_some(), "{memory}");
    assert_eq!(memory["planned_bytes"], memory["measured_bytes"]);
    assert_eq!(outcome.stderr, "");
}

#[test]
fn people_get_prompt_and_story_on_stdout_and_figures_on_stderr() {
    let json = run(&["--json", "-n", "12"]).ok().json();
    let outcome = run(&["-n", "12"]).ok();
    assert_eq!(outcome.stdout, format!("{PROMPT}{}\n", json["text"].as_str().unwrap()));
    for part in ["loaded in", "4 prompt tokens", "12 new tokens", "planned", "allocated", "cpu"] {
        assert!(outcome.stderr.contains(part), "{part}: {}", outcome.stderr);
    }
}

#[test]
fn what_people_paste_for_a_model_says_the_way_out() {
    let folder = tempfile::tempdir().unwrap();
    for (name, way) in [
        ("model-q4_0.gguf", "repository with safetensors"),
        ("pytorch_model.bin", "save_pretrained"),
        ("model.safetensors", "config.json"),
    ] {
        let file = folder.path().join(name);
        std::fs::write(&file, "GGUF").unwrap();
        halfbyte(&["run", text(&file), "--prompt", PROMPT]).refused_with(&[name, way]);
    }
    let address = "https://huggingface.co/org/name/tree/main";
    halfbyte(&["run", address, "--prompt", PROMPT]).refused_with(&["give the id in it, org/name ("]);
}

#[test]
fn help_begins_with_what_a_command_is_for() {
    let help = halfbyte(&["run", "-h"]).ok().stdout;
    let at = |part: &str| help.find(part).unwrap_or_else(|| panic!("{part}: {help}"));
    let order = [
        "[MODEL]",
        "--prompt <",
        "--json",
        "Sampling:",
        "--seed",
        "Model and memory:",
        "--max-memory",
        "Hub:",
    ];
    assert!(order.iter().map(|part| at(part)).is_sorted(), "{help}");
    assert!(help.contains("[default: stories]"), "{help}");
    let help = halfbyte(&["classify", "-h"]).ok().stdout;
    assert!(help.contains("[default: sentiment]") && !help.contains("stories"), "{help}");
}

#[test]
fn a_text_that_fills_its_context_says_so() {
    let outcome = run(&["-n", "12", "--context", "5"]).ok();
    for part in ["4 prompt tokens at ", ", 2 new tokens at ", "; the context of 5 tokens is full\n"] {
        assert!(outcome.stderr.contains(part), "{part}: {}", outcome.stderr);
    }
    let one = run(&["-n", "1"]).ok();
    assert!(one.stderr.contains(", 1 new token\n"), "{}", one.stderr);
}

#[test]
fn the_bundled_model_tells_the_stories_that_transformers_tells() {
    let expected = std::fs::read(repository("models/stories/expected.json")).unwrap();
    let expected: Value = serde_json::from_slice(&expected).unwrap();
    let exact = ["--compute-dtype", "float32", "--kv-cache", "f32", "--temperature", "0", "--json"];
    for prompt in expected["prompts"].as_array().unwrap() {
        let begin = prompt["text"].as_str().unwrap();
        let ids = prompt["ids"].as_array().unwrap().len();
        for (quant, suffix) in [("nf4", "nf4_dq"), ("none", "fp32")] {
            let all = prompt[format!("greedy_{suffix}")].as_array().unwrap();
            let count = (all.len() - ids).to_string();
            let options = ["run", "--device-map", "cpu", "--prompt", begin, "-n", &count, "--quant", quant];
            let json = halfbyte(&[&options[..], &exact].concat()).ok().json();
            assert_eq!(json["token_ids"].as_array().unwrap(), &all[ids..], "{begin} {suffix}");
            let story = prompt[format!("text_{suffix}")].as_str().unwrap();
            assert_eq!(format!("{begin}{}", json["text"].as_str().unwrap()), story);
        }
    }
}

#[test]
fn a_seed_draws_the_same_text_again_and_another_seed_another() {
    let draw = |seed: &str| run(&["--json", "-n", "24", "--temperature", "1", "--seed", seed]).ok().json();
    let [first, again, other] = ["7", "7", "8"].map(|seed| draw(seed)["text"].clone());
    assert_eq!(first, again);
    assert_ne!(first, other);
}

#[test]
fn so_many_tokens_as_were_asked_for() {
    let none = run(&["--json", "-n", "0"]).ok().json();
    assert_eq!((none["text"].as_str(), none["new_tokens"].as_u64()), (Some(""), Some(0)));
    assert_eq!(run(&["-n", "0"]).ok().stdout, format!("{PROMPT}\n"));

    let one = run(&["--json", "-n", "1"]).ok().json();
    assert_eq!(one["token_ids"].as_array().unwrap().len(), 1);
    assert_eq!(one["stop"], "max_new_tokens");

    let full = run(&["--json", "-n", "100000", "--context", "24", "--temperature", "0"]).ok().json();
    assert_eq!(full["stop"], "context_full");
    // The last token needs no place: nothing follows it.
    assert_eq!(full["prompt_tokens"].as_u64().unwrap() + full["new_tokens"].as_u64().unwrap(), 25);
    assert_eq!(full["context"], 24);
}

#[test]
fn prompts_that_cannot_be_continued_are_refused() {
    let long = PROMPT.repeat(200);
    halfbyte(&["run", "--device-map", "cpu", "-p", &long, "--json"]).refused_with(&[
        "tokens",
        "512",
        "shorten it: the model was made for 512",
    ]);
    run(&["--context", "3"]).refused_with(&["the prompt has 4 tokens", "context holds 3", "of at least 4"]);
    halfbyte(&["run", "--device-map", "cpu", "-p", ""]).refused_with(&["prompt is empty"]);
    halfbyte(&["run", "--device-map", "cpu"]).refused_with(&["--prompt", "--prompt-file"]);
}

/// Cutting it takes minutes and fifty times its memory.
#[test]
fn a_prompt_that_is_too_long_by_far_is_refused_before_it_is_cut() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prompt.txt");
    std::fs::write(&file, "Once there was a fox. ".repeat(14_000_000)).unwrap();
    let args = ["run", "--device-map", "cpu", "-n", "1", "--prompt-file", text(&file)];
    let start = std::time::Instant::now();
    halfbyte(&args).refused_with(&[
        "the prompt has 308000000 bytes",
        "23692308 tokens or more",
        "the context holds 512",
        "shorten it: the model was made for 512",
    ]);
    println!("refused after {:?}", start.elapsed());
    // What may fit is counted, not guessed.
    let args = ["run", "--device-map", "cpu", "-n", "1", "--json", "-p"];
    let fits = " fox".repeat(500);
    let tokens = halfbyte(&[&args[..], &[&fits]].concat()).ok().json()["prompt_tokens"].as_u64().unwrap();
    assert!((500..=512).contains(&tokens), "{tokens}");
}

#[test]
fn prompts_come_from_files_and_stdin() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prompt.txt");
    let from = |path: &str| {
        ["run", "--device-map", "cpu", "-n", "3", "--json", "--prompt-file", path].map(str::to_owned)
    };
    let call = |path: &str, input: &[u8]| {
        let args = from(path);
        halfbyte_with(&args.each_ref().map(String::as_str), input)
    };
    std::fs::write(&file, PROMPT).unwrap();
    let wanted = run(&["-n", "3", "--json"]).ok().json()["text"].clone();
    assert_eq!(call(text(&file), b"").ok().json()["text"], wanted);
    assert_eq!(call("-", PROMPT.as_bytes()).ok().json()["text"], wanted);

    // A last line end is the editor's, all before it is the prompt's.
    for end in ["\n", "\r\n"] {
        let ended = format!("{PROMPT}{end}");
        assert_eq!(call("-", ended.as_bytes()).ok().json()["prompt_tokens"], 4, "{ended:?}");
        std::fs::write(&file, &ended).unwrap();
        assert_eq!(call(text(&file), b"").ok().json()["text"], wanted, "{ended:?}");
        let more = format!("{PROMPT}{end}\n");
        let kept = more.strip_suffix('\n').unwrap();
        let given = halfbyte(&["run", "--device-map", "cpu", "-n", "3", "--json", "-p", kept]).ok().json();
        let read = call("-", more.as_bytes()).ok().json();
        assert_eq!(read["text"], given["text"], "{more:?}");
        assert_eq!(read["prompt_tokens"], given["prompt_tokens"], "{more:?}");
        assert_ne!(read["prompt_tokens"], 4, "{more:?}");
    }
    std::fs::write(&file, PROMPT).unwrap();

    call("-", b"").refused_with(&["prompt is empty"]);
    call("-", b"\n").refused_with(&["prompt is empty"]);
    call("-", b"caf\xe9").refused_with(&["stdin", "UTF-8"]);
    std::fs::write(&file, b"caf\xe9").unwrap();
    call(text(&file), b"").refused_with(&["prompt.txt", "UTF-8"]);
    call(text(&folder.path().join("absent.txt")), b"").refused_with(&["absent.txt", "No such file"]);
    call(text(folder.path()), b"").refused_with(&[text(folder.path()), "directory"]);
    let both = ["run", "--prompt", "a", "--prompt-file", text(&file)];
    halfbyte(&both).misused("--prompt");
}

#[test]
fn sampling_values_out_of_range_are_named() {
    for (option, value) in [
        ("--temperature", "-1"),
        ("--temperature", "nan"),
        ("--temperature", "inf"),
        ("--top-p", "0"),
        ("--top-p", "1.5"),
        ("--repetition-penalty", "0"),
        ("--repetition-penalty", "-2"),
    ] {
        run(&[&format!("{option}={value}")]).refused_with(&[option, "expected"]);
        run(&[option, value]).refused_with(&[option, "expected"]);
    }
    run(&["--top-k", "-1"]).misused("'-1' for '--top-k");
    run(&["--seed", "abc"]).misused("--seed");
    run(&["-n", "-1"]).misused("'-1' for '--max-new-tokens");
}

#[test]
fn every_quantization_and_cache_type_runs() {
    for options in [
        &["--quant", "none"][..],
        &["--quant", "fp4"],
        &["--quant", "fp4", "--no-double-quant", "--blocksize", "128"],
        &["--no-double-quant"],
        &["--blocksize", "32"],
        &["--blocksize", "4096"],
        &["--kv-cache", "f32"],
        &["--kv-cache", "q8"],
        &["--kv-cache", "q4"],
        &["--compute-dtype", "bfloat16"],
        &["--chunk", "1"],
        &["--chunk", "100000"],
    ] {
        let json = run(&[options, &["--json", "-n", "4"]].concat()).ok().json();
        assert_eq!(json["memory"][0]["planned_bytes"], json["memory"][0]["measured_bytes"], "{options:?}");
        assert!(!json["text"].as_str().unwrap().is_empty());
    }
    for (option, value, hint) in [
        ("--blocksize", "63", "power of two"),
        ("--blocksize", "0", "power of two"),
        ("--blocksize", "16", "from 32"),
        ("--blocksize", "1000000", "to 4096"),
        ("--quant", "int8", "nf4, fp4 or none"),
        ("--kv-cache", "f8", "f32, f16, q8 or q4"),
        ("--compute-dtype", "float8", "float16, bfloat16 or float32"),
        ("--chunk", "0", "at least one"),
        ("--context", "0", "at least one"),
    ] {
        run(&[option, value]).refused_with(&[&format!("{option} {value}: "), hint]);
    }
}

#[test]
fn a_context_beyond_the_model_is_refused_with_its_own() {
    run(&["--context", "513"]).refused_with(&["513", "512"]);
    run(&["--context", "18446744073709551615"]).refused_with(&["18446744073709551615", "512"]);
    run(&["--context", "-5"]).misused("-5");
    run(&["--context", "many"]).misused("--context");
}

#[test]
fn models_that_are_not_there_are_named() {
    let at = |model: &str| halfbyte(&["run", model, "--offline", "-p", "x"]);
    at("/no/such/folder").refused_with(&["/no/such/folder"]);
    at("no such name").refused_with(&["no such name", "Hub id"]);
    at("").refused_with(&["directory"]);
    at("a\nb\u{1b}[31m").refused_with(&["Hub id"]);
    let empty = tempfile::tempdir().unwrap();
    let cache = text(empty.path());
    halfbyte(&["run", "nobody/nothing", "--offline", "--cache-dir", cache, "-p", "x"])
        .refused_with(&["nobody/nothing"]);
    // A classifier cannot continue a text.
    at("sentiment").refused_with(&["BertForSequenceClassification"]);
}

#[test]
fn a_model_without_a_tokenizer_says_so() {
    halfbyte(&["run", &fixture("llama_mha"), "--device-map", "cpu", "-p", "x"])
        .refused_with(&["tokenizer.json", "llama_mha"]);
}

#[test]
fn unknown_options_and_commands_do_not_parse() {
    run(&["--frobnicate"]).misused("--frobnicate");
    halfbyte(&["frobnicate"]).misused("frobnicate");
    halfbyte(&["run", "one", "two", "-p", "x"]).misused("two");
    let help = halfbyte(&["run", "--help"]).ok();
    for option in ["--device-map", "--max-memory", "--kv-cache", "--prompt-file", "--seed"] {
        assert!(help.stdout.contains(option), "{option}");
    }
    assert!(halfbyte(&["--version"]).ok().stdout.starts_with("halfbyte "));
}

#[test]
fn a_token_is_never_printed() {
    let outcome = run(&["--token", "hf_secret", "-n", "1", "-vvv", "--json"]).ok();
    assert!(!outcome.stderr.contains("hf_secret") && !outcome.stdout.contains("hf_secret"));
}

#[test]
fn generation_defaults_are_the_models_own() {
    let model = Copy::of("models/stories");
    let greedy = run(&["--temperature", "0", "--json", "-n", "30"]).ok().json();
    model.write("generation_config.json", r#"{"do_sample": false, "max_new_tokens": 30, "eos_token_id": 2}"#);
    let args = ["run", model.name(), "--device-map", "cpu", "-p", PROMPT, "--json"];
    assert_eq!(halfbyte(&args).ok().json()["token_ids"], greedy["token_ids"]);
    // The token after the tenth ends the text, and is no part of it.
    let stop = greedy["token_ids"][10].as_u64().unwrap();
    model
        .write("generation_config.json", format!(r#"{{"max_new_tokens": 30, "eos_token_id": [2, {stop}]}}"#));
    let json = halfbyte(&args).ok().json();
    assert_eq!(json["stop"], "end_of_text");
    let ids = json["token_ids"].as_array().unwrap();
    assert!(ids.len() <= 10 && ids[..] == greedy["token_ids"].as_array().unwrap()[..ids.len()]);
}

#[test]
fn help_says_what_it_is_and_shows_examples() {
    let help = halfbyte(&["--help"]).ok().stdout;
    assert!(help.starts_with("Run Hugging Face models in 4 bits"), "{help}");
    for part in ["Examples:", "halfbyte plan meta-llama/Llama-2-7b-hf", "--max-memory wgpu:0=6GiB"] {
        assert!(help.contains(part), "{part}: {help}");
    }
    assert!(help.lines().all(|line| line.len() <= 80 || !line.starts_with("  halfbyte ")), "{help}");
    // What a missing MODEL means differs.
    for (command, default) in
        [("run", "default: stories"), ("classify", "default: sentiment"), ("bench", "place of --shape")]
    {
        let help = halfbyte(&[command, "--help"]).ok().stdout;
        let model = help.split("[MODEL]").nth(2).unwrap().split("Options:").next().unwrap();
        assert!(model.contains(default), "{command}: {model}");
    }
}

#[test]
fn layers_that_the_config_does_not_count_are_told() {
    let model = Copy::of("models/stories");
    let args = ["run", model.name(), "--device-map", "cpu", "-p", PROMPT, "-n", "2"];
    let said = halfbyte(&args).ok().stderr;
    assert!(!said.contains("layers"), "{said}");
    model.edit("config.json", |config| {
        assert_eq!(config["num_hidden_layers"], 4);
        config["num_hidden_layers"] = 3.into();
    });
    let said = halfbyte(&args).ok().stderr;
    let wanted = "its config counts 3 layers, but 4 are stored: 1 layer (9 tensors) not used";
    assert!(said.starts_with("note: ") && said.contains(wanted), "{said}");
}

#[test]
fn a_log_filter_that_is_none_is_told_once() {
    for (filter, wanted) in
        [("a=b=c", "HALFBYTE_LOG=a=b=c is ignored"), ("jnuk", "HALFBYTE_LOG=jnuk is no level")]
    {
        let args = ["devices"];
        let child = command::command(&args).env("HALFBYTE_LOG", filter).spawn().unwrap();
        let said = command::finish(&args, child).ok().stderr;
        assert_eq!(said.matches(wanted).count(), 1, "{said}");
    }
}
