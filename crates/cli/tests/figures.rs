//! `logits`, `perplexity`, `devices` and `doctor`.

mod command;

use command::Kind::{Count, Counts, Number, Object, Rows, Text};
use command::{fixture, halfbyte, has_fields, repository, text};
use safetensors::SafeTensors;
use std::path::Path;

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

#[test]
fn logits_are_those_of_transformers_and_are_written_whole() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("out.safetensors");
    let model = fixture("llama_mha");
    let expected = std::fs::read(format!("{model}/expected.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&expected).unwrap();
    let ids: Vec<String> = expected
        .tensor("input_ids")
        .unwrap()
        .data()
        .chunks_exact(4)
        .map(|bytes| i32::from_le_bytes(bytes.try_into().unwrap()).to_string())
        .collect();
    let wanted = floats(expected.tensor("logits.nf4dq").unwrap().data());

    let ids_text = ids.join(",");
    let args = ["logits", &model, "--ids", &ids_text, "--output", text(&file), "--device-map", "cpu"];
    let exact = ["--compute-dtype", "float32", "--kv-cache", "f32"];
    let outcome = halfbyte(&[&args[..], &exact, &["--json"]].concat()).ok();
    let json = outcome.json();
    has_fields(&json, &[("argmax", Counts), ("tokens", Count)]);
    let written = std::fs::read(&file).unwrap();
    let written = SafeTensors::deserialize(&written).unwrap();
    assert_eq!(written.names(), ["logits"]);
    let logits = written.tensor("logits").unwrap();
    assert_eq!(logits.dtype(), safetensors::Dtype::F32);
    assert_eq!(logits.shape(), [1, ids.len(), 320]);
    let logits = floats(logits.data());
    let square = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>();
    let difference = square(&mut logits.iter().zip(&wanted).map(|(a, b)| a - b));
    let distance = (difference / square(&mut wanted.iter().copied())).sqrt();
    assert!(distance < 2e-5, "{distance:e}");
    let largest = logits.chunks(320).map(|row| {
        let by_value = |a: &(usize, &f32), b: &(usize, &f32)| a.1.total_cmp(b.1);
        row.iter().enumerate().max_by(by_value).unwrap().0 as u64
    });
    let argmax: Vec<u64> = json["argmax"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
    assert_eq!(argmax, largest.collect::<Vec<_>>());
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(left, ["out.safetensors"]);

    let people = halfbyte(&args).ok();
    assert!(people.stdout.starts_with("argmax ["), "{}", people.stdout);
    assert!(people.stderr.contains("out.safetensors"), "{}", people.stderr);
}

/// The lengths that suit large models are more than the bundled one was made for.
#[test]
fn bench_of_a_model_with_a_short_context_stays_within_it() {
    let bench = ["bench", "stories", "--device-map", "cpu", "--tokens", "2", "--repeats", "1"];
    let contexts = |more: &[&str]| -> Vec<u64> {
        let json = halfbyte(&[&bench[..], &["--json"], more].concat()).ok().json();
        json["rows"].as_array().unwrap().iter().map(|row| row["context"].as_u64().unwrap()).collect()
    };
    assert_eq!(contexts(&[]), [0, 0, 510]);
    assert_eq!(contexts(&["--context", "100"]), [0, 0, 98]);
    let asked = [&bench[..], &["--decode-at", "512"]].concat();
    halfbyte(&asked).refused_with(&["514 positions", "made for 1 to 512"]);
}

#[test]
#[cfg(unix)]
fn logits_go_through_a_link_or_a_pipe_and_replace_neither() {
    let folder = tempfile::tempdir().unwrap();
    let [plain, link, real, pipe] = ["plain", "link", "real", "pipe"].map(|name| folder.path().join(name));
    let model = fixture("llama_mha");
    let write = |to: &Path| {
        halfbyte(&["logits", &model, "--ids", "1,2", "-o", text(to), "--device-map", "cpu"]).ok();
    };
    write(&plain);
    let wanted = std::fs::read(&plain).unwrap();

    std::fs::write(&real, "old").unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    write(&link);
    assert!(link.is_symlink() && std::fs::read(&real).unwrap() == wanted);

    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let from = pipe.clone();
    let reader = std::thread::spawn(move || std::fs::read(from).unwrap());
    write(&pipe);
    assert!(reader.join().unwrap() == wanted);
    let left = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(left, 4, "and nothing else is there");
}

#[test]
fn ids_and_outputs_that_are_wrong_are_named() {
    let model = fixture("llama_mha");
    let logits = |more: &[&str]| halfbyte(&[&["logits", &model, "--device-map", "cpu"], more].concat());
    logits(&["--ids", "1,320"]).refused_with(&["token id 320", "320"]);
    logits(&["--ids", "4294967295"]).refused_with(&["4294967295"]);
    logits(&["--ids", "1", "--output", "/no/such/folder/x.safetensors"]).refused_with(&["/no/such/folder"]);
    logits(&["--ids", "1,x"]).misused("x");
    logits(&["--ids", ""]).misused("--ids");
    logits(&["--ids", "-1"]).misused("-1");
    logits(&["--ids", "4294967296"]).misused("4294967296");
    logits(&[]).misused("--ids");
    let long = vec!["1"; 129].join(",");
    logits(&["--ids", &long]).refused_with(&["129 tokens", "128"]);
}

#[test]
fn perplexity_of_a_text() {
    let held_out = std::fs::read_to_string(repository("models/stories/heldout.txt")).unwrap();
    let story = held_out.split("\n\n").next().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("text.txt");
    std::fs::write(&file, story).unwrap();
    let args = ["perplexity", "--device-map", "cpu", "--text-file", text(&file)];
    let json = halfbyte(&[&args[..], &["--json"]].concat()).ok().json();
    has_fields(&json, &[("perplexity", Number), ("tokens", Count)]);
    let perplexity = json["perplexity"].as_f64().unwrap();
    assert!((1.2..1.8).contains(&perplexity), "{perplexity}");
    assert!(json["tokens"].as_u64().unwrap() > 50);
    assert!(halfbyte(&args).ok().stdout.starts_with("perplexity 1."));

    for (content, part) in [(&b""[..], "two tokens"), (b"caf\xe9", "UTF-8")] {
        std::fs::write(&file, content).unwrap();
        halfbyte(&args).refused_with(&[part]);
    }
    halfbyte(&["perplexity", "--text-file", "absent.txt"]).refused_with(&["absent.txt"]);
    let fixture = fixture("llama_mha");
    std::fs::write(&file, "x").unwrap();
    halfbyte(&[&args[..], &[&fixture]].concat()).refused_with(&["tokenizer.json"]);
}

#[test]
fn devices_are_listed() {
    let outcome = halfbyte(&["devices", "--json"]).ok();
    let json = outcome.json();
    has_fields(&json, &[("devices", Rows)]);
    let devices = json["devices"].as_array().unwrap();
    for device in devices {
        has_fields(
            device,
            &[
                ("device", Text),
                ("adapter", Text),
                ("kind", Text),
                ("driver", Text),
                ("limits", Object),
                ("held_bytes", Count),
            ],
        );
    }
    assert_eq!(devices[0]["device"], "cpu");
    has_fields(&devices[0], &[("total_bytes", Count), ("free_bytes", Count)]);
    assert!(devices[0]["free_bytes"].as_u64() <= devices[0]["total_bytes"].as_u64());
    if cfg!(feature = "wgpu") {
        let names: Vec<_> = devices.iter().map(|device| device["device"].as_str().unwrap()).collect();
        assert!(names.contains(&"wgpu:0"), "no WebGPU adapter here: {json}");
    }
    assert_eq!(outcome.stderr, "");
    let people = halfbyte(&["devices"]).ok();
    assert!(people.stdout.starts_with("device") && people.stdout.contains("cpu"), "{}", people.stdout);
}

#[test]
fn doctor_runs_the_whole_table() {
    let outcome = halfbyte(&["doctor", "--device", "cpu", "--json"]).ok();
    let json = outcome.json();
    has_fields(&json, &[("passed", Count), ("failed", Count), ("cases", Rows)]);
    assert_eq!(json["failed"], 0);
    let cases = json["cases"].as_array().unwrap();
    for case in cases {
        has_fields(case, &[("device", Text), ("step", Text), ("case", Text), ("result", Text)]);
    }
    let passed = cases.iter().filter(|case| case["result"] == "passed").count() as u64;
    assert_eq!(json["passed"].as_u64(), Some(passed));
    assert!(passed > 20);
    halfbyte(&["doctor", "--device", "wgpu:99"]).refused_with(&["there is no wgpu:99 here"]);
}
