//! The independent witness beside the ledger: private resident memory of a process that is a user's in everything,
//! one model and the allocator's own choice of heaps. Each check runs in a process of its own, so that nothing else
//! grows meanwhile.

mod reference;

use halfbyte::{CausalLm, LoadOptions, ModelSource, Silent};
use reference::in_own_process;

/// What the allocator, the driver and the code itself may take beside what is accounted for. On software Vulkan most
/// of it is compiled shaders and the compiler: some 45 MiB.
const ALLOWANCE: f64 = 64.0 * 1048576.0;

const CONTEXT: usize = 1024;

/// Names what the process of [`in_own_process`] is to load.
const WHAT: &str = "HALFBYTE_TEST_WITNESS";

/// Loads `shape` on `device_map` in a process of its own, and compares plan, ledger and witness there.
fn check(test: &str, shape: &str, device_map: &str) {
    in_own_process(test, &[(WHAT, &format!("{shape} {device_map}"))]);
}

/// What the process does.
fn watched(what: &str) {
    let (shape, device_map) = what.split_once(' ').unwrap();
    let options = LoadOptions {
        device_map: device_map.parse().unwrap(),
        // Software Vulkan says of its memory what fits no large shape.
        max_memory: [("wgpu:0".to_owned(), 8 << 30)].into(),
        context: Some(CONTEXT),
        ..LoadOptions::default()
    };
    let source = ModelSource::Synthetic(shape.into());
    let plan = halfbyte::plan(&source, &options, &mut Silent).unwrap();
    let mut model = CausalLm::load(&source, &options, &mut Silent).unwrap();
    model.logits(&[1, 2, 3, 4]).unwrap();
    for row in model.memory() {
        let planned = plan.devices.iter().find(|device| device.device == row.device).unwrap();
        assert_eq!((row.planned_bytes, row.measured_bytes), (planned.planned_bytes, planned.planned_bytes));
        for purpose in &row.purposes {
            assert_eq!(purpose.planned_bytes, purpose.measured_bytes, "{purpose:?} on {}", row.device);
        }
        let memory = row.purposes.iter().filter(|one| one.purpose != "mapped files");
        assert_eq!(memory.map(|one| one.measured_bytes).sum::<u64>(), row.measured_bytes);
        if cfg!(target_os = "linux") {
            let (measured, witnessed) = (row.measured_bytes as f64, row.witnessed_bytes.unwrap() as f64);
            let apart = witnessed - measured;
            println!(
                "{shape}, {} of {device_map}: {measured} planned and held, {witnessed} witnessed, {:+.1} MiB",
                row.device,
                apart / 1048576.0
            );
            assert!(apart.abs() <= 0.02 * measured + ALLOWANCE, "{shape}: {row:?}");
        }
    }
}

/// The first `layers` layers on the CPU, the others on the GPU.
fn hybrid(layers: usize) -> tempfile::TempPath {
    let mut map: Vec<String> =
        (0..layers).map(|layer| format!("\"model.layers.{layer}\": \"cpu\"")).collect();
    map.push("\"model.embed_tokens\": \"cpu\", \"\": \"wgpu:0\"".into());
    let file = tempfile::Builder::new().suffix(".json").tempfile().unwrap();
    std::fs::write(file.path(), format!("{{{}}}", map.join(", "))).unwrap();
    file.into_temp_path()
}

/// `shape` on the CPU, the GPU, and on both with `layers` layers on the CPU.
fn check_everywhere(test: &str, shape: &str, layers: usize) {
    if let Ok(what) = std::env::var(WHAT) {
        return watched(&what);
    }
    check(test, shape, "cpu");
    if cfg!(feature = "wgpu") {
        check(test, shape, "wgpu:0");
        check(test, shape, hybrid(layers).to_str().unwrap());
    }
}

#[test]
fn plan_ledger_and_witness_agree() {
    check_everywhere("plan_ledger_and_witness_agree", "llama-160m", 6);
}

#[test]
fn plan_ledger_and_witness_agree_for_tinyllama() {
    check_everywhere("plan_ledger_and_witness_agree_for_tinyllama", "tinyllama-1.1b", 11);
}

#[test]
#[ignore = "draws 6.7 billion weights three times: cargo test --release -p halfbyte --test witness -- --ignored"]
fn plan_ledger_and_witness_agree_for_llama_2_7b() {
    check_everywhere("plan_ledger_and_witness_agree_for_llama_2_7b", "llama-2-7b", 16);
}
