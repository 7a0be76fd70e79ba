//! `halfbyte plan`, and budgets that are too small: the figures, and remedies that are tried.

mod command;

use command::Kind::{Count, Flag, MaybeNumber, Rows, Text, Texts};
use command::{Outcome, finish, fixture, halfbyte, has_fields, text};
use std::path::Path;

fn plan(more: &[&str]) -> Outcome {
    halfbyte(&[&["plan"], more].concat())
}

#[test]
fn json_has_every_field() {
    for model in ["stories", &fixture("llama_mha"), &fixture("gemma3_text")] {
        let outcome = plan(&[model, "--device-map", "cpu", "--json"]).ok();
        let json = outcome.json();
        has_fields(
            &json,
            &[
                ("fits", Flag),
                ("devices", Rows),
                ("layers", Rows),
                ("max_context", MaybeNumber),
                ("download_bytes", Count),
                ("remedies", Texts),
            ],
        );
        assert_eq!(json["fits"], true);
        for device in json["devices"].as_array().unwrap() {
            let parts = ["weights_bytes", "kv_cache_bytes", "activation_bytes", "scratch_bytes"];
            has_fields(device, &[("device", Text), ("budget_bytes", Count), ("planned_bytes", Count)]);
            let sum: u64 = parts.iter().map(|part| device[*part].as_u64().unwrap()).sum();
            assert_eq!(sum, device["planned_bytes"].as_u64().unwrap(), "{device}");
        }
        for layer in json["layers"].as_array().unwrap() {
            has_fields(layer, &[("name", Text), ("device", Text), ("bytes", Count)]);
            assert!(layer["bytes"].as_u64().unwrap() > 0, "{layer}");
        }
        assert_eq!(outcome.stderr, "");
    }
}

#[test]
fn people_get_a_table() {
    let outcome = plan(&["--device-map", "cpu"]).ok();
    for part in ["device", "weights", "KV cache", "budget", "cpu", "fits, with a context of 512 tokens"] {
        assert!(outcome.stdout.contains(part), "{part}: {}", outcome.stdout);
    }
    let refused = plan(&["--device-map", "cpu", "--max-memory", "cpu=1MiB"]);
    assert!(refused.refused().contains("it does not fit"), "{}", refused.stderr);
}

#[test]
fn what_is_planned_is_what_is_held() {
    for options in [&["--context", "100"][..], &["--kv-cache", "q8"], &["--quant", "none", "--chunk", "7"]] {
        let options = [&["stories", "--device-map", "cpu", "--json"], options].concat();
        let planned = plan(&options).ok().json()["devices"][0]["planned_bytes"].clone();
        let run = halfbyte(&[&["run", "-p", "Once", "-n", "1"], &options[..]].concat()).ok().json();
        assert_eq!(run["memory"][0]["planned_bytes"], planned);
        assert_eq!(run["memory"][0]["measured_bytes"], planned);
    }
}

#[test]
fn a_batch_needs_a_cache_for_each_sequence() {
    let cache = |batch: &str| {
        let json = plan(&["--device-map", "cpu", "--json", "--batch", batch]).ok().json();
        json["devices"][0]["kv_cache_bytes"].as_u64().unwrap()
    };
    assert_eq!(cache("3"), 3 * cache("1"));
    plan(&["--batch", "0"]).refused_with(&["--batch 0"]);
}

/// `args` with the options of a remedy in the place of their own.
fn remedied(args: &[&str], remedy: &str) -> Vec<String> {
    let mut args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    let words: Vec<&str> = remedy.split_whitespace().collect();
    for pair in words.chunks(2) {
        let [option, value] = pair else { panic!("{remedy:?} is no list of options and values") };
        match args.iter().position(|arg| arg == option) {
            Some(at) => args[at + 1] = (*value).to_owned(),
            None => args.extend([(*option).to_owned(), (*value).to_owned()]),
        }
    }
    args
}

#[test]
fn remedies_are_many_and_each_works_when_it_is_tried() {
    let mut tried = std::collections::BTreeSet::new();
    for limits in [
        &["--max-memory", "cpu=1MiB"][..],
        &["--max-memory", "cpu=4MiB"],
        &["--max-memory", "cpu=4500KiB", "--context", "512"],
        &["--max-memory", "cpu=5MiB", "--context", "512", "--kv-cache", "f32"],
        &["--max-memory", "cpu=2500KiB", "--context", "512", "--kv-cache", "f32", "--chunk", "16"],
        &["--context", "600"],
    ] {
        let options = [&["stories", "--device-map", "cpu"], limits].concat();
        let json = plan(&[&options[..], &["--json"]].concat()).ok().json();
        assert_eq!(json["fits"], false, "{limits:?}");
        let refusal = json["refusal"].as_str().unwrap();
        let remedies = json["remedies"].as_array().unwrap();
        assert!(!remedies.is_empty(), "{limits:?}: {refusal}");

        // Running is refused with the same words, and every remedy among them.
        let run = [&["run", "-p", "Once", "-n", "2"], &options[..]].concat();
        let outcome = halfbyte(&run);
        outcome.refused_with(&[refusal]);
        for remedy in remedies.iter().map(|remedy| remedy.as_str().unwrap()) {
            assert!(refusal.contains(remedy), "{remedy}: {refusal}");
            let args = remedied(&run, remedy);
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let again = halfbyte(&[&args[..], &["--json"]].concat());
            assert_eq!(again.code, Some(0), "{}: {}", again.line, again.stderr);
            let held = again.json()["memory"][0]["measured_bytes"].as_u64().unwrap();
            assert!(held > 0);
            tried.insert(remedy.split_whitespace().next().unwrap().to_owned());
        }
    }
    for option in ["--context", "--kv-cache", "--chunk", "--max-memory"] {
        assert!(tried.contains(option), "no refusal offered {option}: {tried:?}");
    }
}

#[test]
fn a_limit_is_never_exceeded() {
    for limit in [5_500_000u64, 5_700_000, 6_000_000] {
        let limits = format!("cpu={limit}");
        let args = ["run", "--device-map", "cpu", "--max-memory", &limits, "-p", "Once", "-n", "2", "--json"];
        let held = halfbyte(&args).ok().json()["memory"][0]["measured_bytes"].as_u64().unwrap();
        assert!(held <= limit, "{held} of {limit}");
    }
}

#[test]
fn limits_and_devices_that_are_wrong_are_named() {
    for (limits, part) in [
        ("cpu", "DEVICE=SIZE"),
        ("gpu=1GiB", "\"gpu\""),
        ("cpu=lots", "--max-memory cpu=lots: \"lots\" is no size"),
        ("cpu=-1GiB", "-1GiB"),
        ("cpu=1e400GiB", "1e400GiB"),
        ("wgpu:99=1GiB", "wgpu:99"),
        ("cpu=", "no size"),
    ] {
        plan(&["--max-memory", limits]).refused_with(&[part]);
    }
    for (device, part) in [
        ("wgpu:99", "there is no wgpu:99 here"),
        ("cuda:0", "cuda:0"),
        ("gpu", "expected auto"),
        ("", "expected auto"),
        ("wgpu:", "expected auto"),
        ("CPU", "expected auto"),
        ("absent.json", "absent.json"),
    ] {
        plan(&["--device-map", device]).refused_with(&[part]);
    }
}

#[test]
fn device_maps_from_files() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("map.json");
    let with = |map: &str| {
        std::fs::write(&file, map).unwrap();
        plan(&["--device-map", text(&file), "--json"])
    };
    for map in
        [r#"{"": "cpu"}"#, r#"{"model": "cpu", "lm_head": "cpu"}"#, r#"{"model.layers.1": "cpu", "": "cpu"}"#]
    {
        let json = with(map).ok().json();
        let layers = json["layers"].as_array().unwrap();
        assert!(layers.len() == 6 && layers.iter().all(|layer| layer["device"] == "cpu"), "{json}");
    }
    for (map, parts) in [
        ("{", &["map.json", "expected an object"][..]),
        ("[]", &["map.json", "expected an object"]),
        ("\"cpu\"", &["map.json", "expected an object"]),
        (r#"{"": 7}"#, &["map.json", "expected an object"]),
        (r#"{"": "gpu"}"#, &["map.json", "\"gpu\""]),
        ("{}", &["map.json", "no module"]),
        (r#"{"": "wgpu:99"}"#, &["there is no wgpu:99"]),
        // These contradict the model.
        (r#"{"model.layers.77": "cpu", "": "cpu"}"#, &["model.layers.77", "model.embed_tokens"]),
        (r#"{"model": "cpu"}"#, &["no device for lm_head"]),
        ("{\"a\\nb\": \"x\\u001b\"}", &["map.json", "no device"]),
    ] {
        with(map).refused_with(parts);
    }
}

#[test]
fn a_model_without_a_tokenizer_is_planned() {
    let json = plan(&[&fixture("llama_mha"), "--device-map", "cpu", "--json"]).ok().json();
    assert_eq!((json["fits"].as_bool(), json["context"].as_u64()), (Some(true), Some(128)));
    assert_eq!(json["max_context"], 128);
}

/// Llama-2-7B in 1 GiB: TinyLlama is of its family, was planned and fits; on 16 MiB nothing does.
#[test]
fn a_smaller_model_of_the_family_is_named_where_it_fits() {
    let arguments = ["synthetic:llama-2-7b", "--context", "512", "--device-map", "cpu", "--json"];
    let remedies = |limit: &str| {
        let json = plan(&[&arguments[..], &["--max-memory", limit]].concat()).ok().json();
        assert_eq!(json["fits"], false, "{limit}");
        let all: Vec<String> = serde_json::from_value(json["remedies"].clone()).unwrap();
        all
    };
    let tiny = "TinyLlama/TinyLlama-1.1B-Chat-v1.0".to_owned();
    assert!(remedies("cpu=1GiB").contains(&tiny));
    assert!(!remedies("cpu=16MiB").contains(&tiny));
    let refused = plan(&[&arguments[..5], &["--max-memory", "cpu=1GiB"]].concat());
    assert!(refused.refused().contains(&format!("{tiny} fits")), "{}", refused.stderr);
}

/// Rates as a file states them decide where layers go, whether they stream, and what is said about it.
#[test]
#[cfg(feature = "wgpu")]
fn stated_rates_decide() {
    let folder = tempfile::tempdir().unwrap();
    let (rates, map) = (folder.path().join("rates.json"), folder.path().join("map.json"));
    let on_cpu = ["model.embed_tokens", "model.layers.0", "model.layers.1"];
    let on_cpu = on_cpu.map(|block| format!("{block:?}: \"cpu\", ")).concat();
    std::fs::write(&map, format!("{{{on_cpu}\"\": \"wgpu:0\"}}")).unwrap();
    let with = |rates: &Path, more: &[&str]| {
        let args = [&["plan", "stories", "--json"], more].concat();
        finish(&args, command::command(&args).env("HALFBYTE_RATES", rates).spawn().unwrap())
    };
    let state = |products: f64, gpu: f64, upload: f64| {
        let of = |read: f64, products: f64| {
            format!("\"read_bytes_per_second\": {read}, \"products_per_second\": {products}")
        };
        let (cpu, gpu) = (of(1e11, products), of(gpu, gpu));
        let text =
            format!("{{\"cpu\": {{{cpu}}}, \"wgpu:0\": {{{gpu}, \"upload_bytes_per_second\": {upload}}}}}");
        std::fs::write(&rates, text).unwrap();
    };
    let (by_map, by_limit) = (["--device-map", text(&map)], ["--max-memory", "wgpu:0=1GiB"]);
    let on = |json: &serde_json::Value, device: &str| {
        json["layers"].as_array().unwrap().iter().filter(|layer| layer["device"] == device).count()
    };
    // A slow processor beside a fast GPU: all on the GPU where there is a choice, and else layers stream.
    state(1e10, 1e13, 1e10);
    let free = with(&rates, &by_limit).ok().json();
    assert_eq!((on(&free, "cpu"), free["not_streamed"].as_str()), (0, None), "{free}");
    let first = with(&rates, &by_map).ok().json();
    let tokens = first["streamed"]["from_tokens"].as_u64().unwrap();
    assert_eq!(
        (first["streamed"]["layers"].as_u64(), &first["not_streamed"]),
        (Some(2), &serde_json::Value::Null)
    );
    assert_eq!(first["devices"][1]["rates"]["upload_bytes_per_second"], 1e10);
    assert!(first["predicted_tokens_per_second"].as_f64().unwrap() > 0.0);
    // A processor twice as fast needs prompts about twice as long.
    state(2e10, 1e13, 1e10);
    let second = with(&rates, &by_map).ok().json()["streamed"]["from_tokens"].as_u64().unwrap();
    assert!(tokens > 2 && second.abs_diff(2 * tokens) <= 2, "{tokens}, {second}");
    // A GPU that is slower than the processor: all on that, and nothing streams.
    state(1e11, 1e9, 1e9);
    let free = with(&rates, &by_limit).ok().json();
    assert_eq!(on(&free, "wgpu:0"), 0, "{free}");
    let never = with(&rates, &by_map).ok().json();
    let why = never["not_streamed"].as_str().unwrap();
    assert!(why.contains("no prompt is long enough: of products a second wgpu:0 does 1.00 G"), "{why}");
    assert_eq!(never["streamed"], serde_json::Value::Null);
    let nothing_known = with(Path::new("never"), &by_map).ok().json();
    assert_eq!(nothing_known["not_streamed"], "the rates of cpu are not known");
    // What is wrong is named.
    with(Path::new("often"), &by_map).refused_with(&["HALFBYTE_RATES=often"]);
    state(-1.0, 1e9, 1e9);
    with(&rates, &by_map).refused_with(&["HALFBYTE_RATES", "a rate of cpu is not above 0"]);
}

/// What a prediction rests on is said: a disk's rate is stated or a part of its processor's, and halves with it.
#[test]
fn a_prediction_says_what_it_rests_on() {
    let folder = tempfile::tempdir().unwrap();
    let (rates, map) = (folder.path().join("rates.json"), folder.path().join("map.json"));
    std::fs::write(&map, r#"{"model.embed_tokens": "disk", "model.layers.0": "disk", "": "cpu"}"#).unwrap();
    let with = |stated: &str, more: &[&str]| {
        std::fs::write(&rates, stated).unwrap();
        let common = ["plan", "stories", "--device-map", text(&map), "--cache-dir", text(folder.path())];
        let args = [&common[..], more].concat();
        finish(&args, command::command(&args).env("HALFBYTE_RATES", &rates).spawn().unwrap()).ok()
    };
    let cpu = r#""cpu": {"read_bytes_per_second": 2e10}"#;
    let predicted = |stated: &str| {
        let json = with(stated, &["--json"]).json();
        let from = json["predicted_from"].as_array().unwrap().clone();
        let of = |at: usize| from.get(at).map_or(0.0, |rate| rate["read_bytes_per_second"].as_f64().unwrap());
        let source = from.last().map(|rate| rate["source"].as_str().unwrap().to_owned());
        (json["predicted_tokens_per_second"].as_f64(), [of(0), of(1)], source)
    };
    let (slow, rates_of, source) =
        predicted(&format!(r#"{{{cpu}, "disk": {{"read_bytes_per_second": 1e9}}}}"#));
    assert_eq!((rates_of, source.as_deref()), ([2e10, 1e9], Some("stated")));
    let (assumed, rates_of, source) = predicted(&format!("{{{cpu}}}"));
    assert_eq!((rates_of, source.as_deref()), ([2e10, 2e9], Some("assumed")));
    assert!(assumed > slow && slow > Some(0.0), "{assumed:?}, {slow:?}");
    assert_eq!(predicted("{}"), (None, [0.0; 2], None), "nothing is known");
    let said = with(&format!("{{{cpu}}}"), &[]).stdout;
    assert!(said.contains("cpu at 20 GB a second (stated), disk at 2.0 GB a second (assumed, "), "{said}");
}

/// Where the 4-bit form that layers are read from cannot be written, they are not planned to be, and that is said with
/// the way out.
#[test]
fn a_cache_that_cannot_be_written_is_no_disk() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a file");
    std::fs::write(&file, "in the way").unwrap();
    let common = ["stories", "--max-memory", "cpu=4MiB", "--max-memory", "wgpu:0=0", "--cache-dir"];
    let with = |cache: &Path| plan(&[&common[..], &[text(cache), "--json"]].concat()).ok().json();
    let roomy = with(folder.path());
    assert!(roomy["layers"].as_array().unwrap().iter().any(|layer| layer["device"] == "disk"), "{roomy}");
    let refused = with(&file.join("cache"));
    let why = refused["refusal"].as_str().unwrap();
    for part in ["nothing can be read from the disk", "a file/cache", "cannot be written to (--cache-dir"] {
        assert!(why.contains(part), "{why}");
    }
    let on_disk = ["logits", "stories", "--ids", "1", "--device-map", "disk", "--cache-dir"];
    let cache = file.join("cache");
    halfbyte(&[&on_disk[..], &[text(&cache)]].concat()).refused_with(&["cannot be written to (--cache-dir"]);
}

/// What is read from the disk is computed in the CPU's memory: where that is short, the CPU is named, and its limit.
#[test]
fn too_little_memory_for_the_disk_is_the_cpus() {
    let refused =
        halfbyte(&["run", "stories", "-p", "Once", "--max-memory", "cpu=64KiB", "--max-memory", "wgpu:0=0"]);
    let line = refused.refused();
    assert!(line.contains("cpu has") && !line.contains("disk has"), "{line}");
    assert!(line.contains("--max-memory cpu="), "{line}");
}

#[test]
fn more_sequences_than_can_be_meant_are_refused_by_the_options_name() {
    let refused = halfbyte(&["plan", "--batch", "100000000000", "--device-map", "cpu"]);
    refused.refused_with(&["--batch 100000000000", "at most 65536 sequences"]);
}
