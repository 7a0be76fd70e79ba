//! `halfbyte quantize` as a user runs it.

use safetensors::SafeTensors;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models").join(name)
}

fn halfbyte(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_halfbyte")).args(args).output().unwrap()
}

/// The error of a command that must fail for the user's sake: exit code 1 and one line.
fn refusal(args: &[&str]) -> String {
    let output = halfbyte(args);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(output.stdout.is_empty());
    text
}

fn logits(model: &str, file: &Path, more: &[&str]) -> Vec<u8> {
    let file_name = file.to_str().unwrap();
    let mut args = vec!["logits", model, "--ids", "5,17,300,2", "--output", file_name, "--device-map", "cpu"];
    args.extend(more);
    let output = halfbyte(&args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let bytes = std::fs::read(file).unwrap();
    SafeTensors::deserialize(&bytes).unwrap().tensor("logits").unwrap().data().to_vec()
}

#[test]
fn what_is_written_answers_as_what_is_quantized_while_loading() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("logits.safetensors");
    for (fixture_name, options) in [
        ("llama_mha", &[][..]),
        ("llama_bf16_sharded", &["--quant", "fp4", "--no-double-quant"]),
        ("llama_gqa_tied_llama3rope", &["--blocksize", "128"]),
    ] {
        let source = fixture(fixture_name);
        let (source, out) = (source.to_str().unwrap(), scratch.path().join(fixture_name));
        let out = out.to_str().unwrap();
        let mut args = vec!["quantize", source, "--output", out, "--json", "--max-shard-size", "100kB"];
        args.extend(options);
        let output = halfbyte(&args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["tensors"], 21);
        assert!(report["bytes_out"].as_u64().unwrap() < report["bytes_in"].as_u64().unwrap());
        assert!(report["shards"].as_u64().unwrap() > 1);
        assert!(report["seconds"].as_f64().unwrap() > 0.0);
        assert_eq!(logits(out, &file, &[]), logits(source, &file, options), "{fixture_name}");
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let source = fixture("llama_mha");
    let source = source.to_str().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("out");
    let out = out.to_str().unwrap();
    for (option, value) in [
        ("--quant", "q4_k"),
        ("--blocksize", "48"),
        ("--quant-storage", "int64"),
        ("--compute-dtype", "uint8"),
        ("--max-shard-size", "many"),
        ("--max-shard-size", "0"),
    ] {
        let error = refusal(&["quantize", source, "--output", out, option, value]);
        assert!(error.contains(value), "{error}");
    }
    assert!(refusal(&["quantize", source, "--output", source]).contains("other files"));
    assert!(refusal(&["quantize", "no/such/model/here", "--output", out]).contains("no/such/model/here"));
    assert!(!Path::new(out).exists());
    assert!(halfbyte(&["quantize", source, "--output", out]).status.success());
    let again = scratch.path().join("again");
    assert!(refusal(&["quantize", out, "--output", again.to_str().unwrap()]).contains("quantized already"));
}

#[test]
fn the_plan_says_which_module_is_in_what_format() {
    let scratch = tempfile::tempdir().unwrap();
    let (source, out) = (fixture("llama_f16"), scratch.path().join("out"));
    let (source, out) = (source.to_str().unwrap(), out.to_str().unwrap());
    let skip = "model.layers.1,o_proj";
    assert!(halfbyte(&["quantize", source, "--output", out, "--skip-modules", skip]).status.success());
    let output = halfbyte(&["plan", out, "--json", "--device-map", "cpu"]);
    let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
    let layers = plan["layers"].as_array().unwrap().iter();
    let weights: Vec<&Value> = layers.flat_map(|layer| layer["weights"].as_array().unwrap()).collect();
    let format = |name: &str| {
        let found = weights.iter().find(|weight| weight["name"] == name);
        found.unwrap_or_else(|| panic!("{name} is not in the plan"))["format"].as_str().unwrap()
    };
    assert_eq!(format("model.embed_tokens"), "float16");
    assert_eq!(format("lm_head"), "float16");
    assert_eq!(format("model.layers.0.self_attn.q_proj"), "nf4");
    assert_eq!(format("model.layers.0.self_attn.o_proj"), "float16");
    assert_eq!(format("model.layers.1.mlp.down_proj"), "float16");
    assert_eq!(format("model.layers.2.mlp.down_proj"), "nf4");
    let quantized = weights.iter().find(|weight| weight["format"] == "nf4").unwrap();
    assert_eq!((&quantized["blocksize"], &quantized["double_quant"]), (&64.into(), &true.into()));
}

/// `quantize` of the bundled model, which may write no file of more than `most` bytes: the system kills it there, or
/// where `full` says so refuses to write, as a disk does that is full.
#[cfg(unix)]
fn stopped_at(most: u64, full: bool, out: &str) -> Output {
    let trap = if full { "trap '' XFSZ; " } else { "" };
    // In blocks of 512 bytes.
    let line = format!("ulimit -c 0 && {trap}ulimit -f {} && exec \"$@\"", most / 512);
    let mut shell = Command::new("sh");
    shell.args(["-c", &line, "sh", env!("CARGO_BIN_EXE_halfbyte"), "quantize", "stories", "--output", out]);
    shell.output().unwrap()
}

#[cfg(unix)]
#[test]
fn one_file_goes_on_where_it_was_killed_or_the_disk_was_full() {
    use std::os::unix::process::ExitStatusExt;
    let scratch = tempfile::tempdir().unwrap();
    let whole = scratch.path().join("whole");
    let report = halfbyte(&["quantize", "stories", "--output", whole.to_str().unwrap(), "--json"]);
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    assert_eq!((&report["shards"], &report["resumed_tensors"]), (&1.into(), &0.into()));
    let bytes = report["bytes_out"].as_u64().unwrap();
    for full in [false, true] {
        let out = scratch.path().join(format!("full-{full}"));
        let name = out.to_str().unwrap();
        for most in [bytes / 2, bytes * 3 / 4] {
            let stopped = stopped_at(most, full, name);
            let said = String::from_utf8(stopped.stderr).unwrap();
            if full {
                assert_eq!(stopped.status.code(), Some(1), "{said}");
                assert_eq!(said.lines().count(), 1, "{said}");
                assert!(said.contains("model.safetensors.part") && said.contains("goes on"), "{said}");
            } else {
                assert!(stopped.status.signal().is_some(), "{said}");
            }
            assert!(!out.join("model.safetensors").exists() && !out.join("config.json").exists());
        }
        let report = halfbyte(&["quantize", "stories", "--output", name, "--json"]);
        let report: Value = serde_json::from_slice(&report.stdout).unwrap();
        assert!(report["resumed_tensors"].as_u64().unwrap() > 3, "{report}");
        let names = |dir: &Path| {
            let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
            entries.collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(names(&out), names(&whole));
        for file in names(&whole) {
            assert!(std::fs::read(out.join(&file)).unwrap() == std::fs::read(whole.join(&file)).unwrap());
        }
    }
}
