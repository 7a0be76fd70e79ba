//! The independent witness beside the ledger: this process's private resident memory. One test, so that nothing
//! else grows meanwhile.

mod reference;

use halfbyte::{CausalLm, LoadOptions, ModelSource, Silent};
use reference::in_one_heap;

/// What the allocator, the driver and the code itself may take beside what is accounted for.
const ALLOWANCE: f64 = 64.0 * 1048576.0;

/// Loads `shape` on `device_map` and compares plan, ledger and witness.
fn check(shape: &str, device_map: &str, context: usize) {
    let options = LoadOptions {
        device_map: device_map.parse().unwrap(),
        context: Some(context),
        ..LoadOptions::default()
    };
    let source = ModelSource::Synthetic(shape.into());
    let plan = halfbyte::plan(&source, &options, &mut Silent).unwrap();
    let mut model = CausalLm::load(&source, &options, &mut Silent).unwrap();
    model.logits(&[1, 2, 3, 4]).unwrap();
    for row in model.memory() {
        println!("{shape} on {device_map}: {row:?}");
        let planned = plan.devices.iter().find(|device| device.device == row.device).unwrap();
        assert_eq!((row.planned_bytes, row.measured_bytes), (planned.planned_bytes, planned.planned_bytes));
        if cfg!(target_os = "linux") {
            let (measured, witnessed) = (row.measured_bytes as f64, row.witnessed_bytes.unwrap() as f64);
            let apart = (witnessed - measured).abs();
            assert!(apart <= 0.02 * measured + ALLOWANCE, "{shape}: {row:?}");
        }
    }
}

/// Blocks of `layers` layers on the CPU, the others on the GPU.
fn hybrid(layers: usize) -> tempfile::TempPath {
    let mut map: Vec<String> =
        (0..layers).map(|layer| format!("\"model.layers.{layer}\": \"cpu\"")).collect();
    map.push("\"model.embed_tokens\": \"cpu\", \"\": \"wgpu:0\"".into());
    let file = tempfile::Builder::new().suffix(".json").tempfile().unwrap();
    std::fs::write(file.path(), format!("{{{}}}", map.join(", "))).unwrap();
    file.into_temp_path()
}

#[test]
fn plan_ledger_and_witness_agree() {
    in_one_heap("plan_ledger_and_witness_agree", small);
}

fn small() {
    // The largest shape that a test of every day may draw; the others with `--ignored`.
    check("llama-160m", "cpu", 1024);
    if cfg!(feature = "wgpu") {
        check("llama-160m", "wgpu:0", 1024);
        check("llama-160m", hybrid(6).to_str().unwrap(), 1024);
    }
}

#[test]
#[ignore = "draws 7.6 billion weights three times: cargo test --release -p halfbyte --test witness -- --ignored"]
fn plan_ledger_and_witness_agree_for_large_shapes() {
    in_one_heap("plan_ledger_and_witness_agree_for_large_shapes", large);
}

fn large() {
    for (shape, layers) in [("tinyllama-1.1b", 11), ("llama-2-7b", 16)] {
        check(shape, "cpu", 1024);
        if cfg!(feature = "wgpu") {
            check(shape, "wgpu:0", 1024);
            check(shape, hybrid(layers).to_str().unwrap(), 1024);
        }
    }
}
