//! Layers on the disk, alone and below CPU and GPU: the answers of transformers and of the CPU alone, with
//! every byte accounted for.

mod reference;

use halfbyte::{
    CausalLm, ComputeDtype, Flow, FourBitCache, GenerateOptions, KvType, LoadOptions, ModelSource, Progress,
    QuantSpec, SampleParams, Silent,
};
use reference::{Fixture, MODELS, distance};
use std::path::PathBuf;

/// A place for 4-bit forms that the tests of this file share.
fn cache() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("tiers")
}

/// Options that lose nothing but what `quant` loses.
fn exact(quant: Option<QuantSpec>, device_map: &str) -> LoadOptions {
    LoadOptions {
        quant,
        kv_cache: KvType::F32,
        compute_dtype: ComputeDtype::Float32,
        device_map: device_map.parse().unwrap(),
        cache_dir: Some(cache()),
        chunk: 64,
        outputs: 64,
        ..LoadOptions::default()
    }
}

fn greedy(max_new_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_new_tokens, sample: SampleParams::default() }
}

fn text(model: &mut CausalLm, input: &[u32], tokens: usize) -> Vec<u32> {
    model.generate_ids(input, &greedy(tokens), &mut |_| Flow::Continue).unwrap().token_ids
}

/// Planned is measured on every device, and `devices` are those that hold layers.
fn check_memory(model: &CausalLm, devices: &[&str]) {
    let rows = model.memory();
    let names: Vec<&str> = rows.iter().map(|row| row.device.as_str()).collect();
    assert_eq!(names, devices);
    for row in rows {
        assert_eq!(row.planned_bytes, row.measured_bytes, "{row:?}");
        assert_eq!(row.mapped_bytes > 0, row.device == "disk", "{row:?}");
    }
}

/// In 16 or 32 bits from the model's own file, in 4 bits from a form that is made first.
#[test]
fn everything_on_the_disk_gives_the_logits_and_text_of_transformers() {
    for name in MODELS.iter().copied().chain(["gpt2"]) {
        let fixture = Fixture::open(name);
        let input = fixture.ids("input_ids");
        for (suffix, quant) in [("", None), (".nf4dq", Some(QuantSpec::default()))] {
            let options = exact(quant, "disk");
            let plan = halfbyte::plan(&fixture.endless(), &options, &mut Silent).unwrap();
            let mut model = CausalLm::load(&fixture.endless(), &options, &mut Silent).unwrap();
            check_memory(&model, &["disk"]);
            let row = &model.memory()[0];
            let planned = plan.devices.iter().find(|device| device.device == "disk").unwrap();
            assert_eq!((planned.planned_bytes, planned.mapped_bytes), (row.planned_bytes, row.mapped_bytes));
            let logits = model.logits(&input).unwrap();
            let distance = distance(&logits, &fixture.floats(&format!("logits{suffix}")));
            assert!(distance < 2e-5, "{name}{suffix}: {distance:e}");
            assert_eq!(
                text(&mut model, &input, 16),
                fixture.ids(&format!("greedy16{suffix}")),
                "{name}{suffix}"
            );
        }
    }
}

/// bitsandbytes' own files are read as they are: plain and nested scales, NF4 and FP4, bytes stored as bf16.
#[test]
fn checkpoints_of_bitsandbytes_are_read_where_they_lie() {
    let names = ["llama_nf4_dq", "llama_nf4", "llama_fp4_dq", "llama_nf4_dq_bf16_storage_bf16"];
    for name in names {
        let fixture = Fixture::quantized(name);
        let options = LoadOptions { four_bit_cache: FourBitCache::Never, ..exact(None, "disk") };
        let mut model = fixture.load(&options);
        check_memory(&model, &["disk"]);
        let found = model.logits(&fixture.ids("input_ids")).unwrap();
        let distance = distance(&found, &fixture.floats("logits_f32_engine"));
        assert!(distance < 2e-5, "{name}: {distance:e}");
    }
}

/// GPU, CPU and disk, each with layers: by a device map, and by limits that leave no other way.
#[test]
#[cfg(feature = "wgpu")]
fn three_tiers_give_the_text_of_the_cpu_alone() {
    let source = ModelSource::named("stories");
    let alone = |map: &str| exact(Some(QuantSpec::default()), map);
    let mut cpu = CausalLm::load(&source, &alone("cpu"), &mut Silent).unwrap();
    let input = cpu.encode("Once upon a time").unwrap();
    let wanted = text(&mut cpu, &input, 64);
    let map =
        r#"{"": "wgpu:0", "model.embed_tokens": "disk", "model.layers.0": "disk", "model.layers.1": "cpu"}"#;
    let file = tempfile::Builder::new().suffix(".json").tempfile().unwrap();
    std::fs::write(file.path(), map).unwrap();
    let mut model = CausalLm::load(&source, &alone(file.path().to_str().unwrap()), &mut Silent).unwrap();
    check_memory(&model, &["disk", "cpu", "wgpu:0"]);
    assert_eq!(text(&mut model, &input, 64), wanted, "by a device map");
}

/// Limits as a user would give them: what fits neither is read from the disk, and no limit is exceeded.
#[test]
#[cfg(feature = "wgpu")]
fn limits_spread_a_model_over_three_tiers() {
    let source = ModelSource::Synthetic("llama-160m".into());
    let options = |map: &str, limits: &[(&str, u64)]| LoadOptions {
        context: Some(64),
        chunk: 8,
        outputs: 1,
        max_memory: limits.iter().map(|&(name, mebibytes)| (name.to_owned(), mebibytes << 20)).collect(),
        ..exact(Some(QuantSpec::default()), map)
    };
    let limits = [("wgpu:0", 100), ("cpu", 40)];
    // `auto` would rather read from the disk than use a GPU that the processor emulates.
    let mut model = CausalLm::load(&source, &options("sequential", &limits), &mut Silent).unwrap();
    println!("{:?}", model.device_map());
    check_memory(&model, &["disk", "cpu", "wgpu:0"]);
    let held = |name: &str| model.memory().iter().find(|row| row.device == name).unwrap().measured_bytes;
    assert!(held("wgpu:0") <= 100 << 20 && held("cpu") + held("disk") <= 40 << 20, "{:?}", model.memory());
    let input = [5, 17, 300, 2, 88];
    let mut cpu = CausalLm::load(&source, &options("cpu", &[]), &mut Silent).unwrap();
    assert_eq!(text(&mut model, &input, 6), text(&mut cpu, &input, 6));
}

/// The disk is used where nothing else has room, said so, and forbidden by `disk=0`.
#[test]
fn the_disk_is_the_last_resort_and_can_be_forbidden() {
    #[derive(Default)]
    struct Notes(Vec<String>);
    impl Progress for Notes {
        fn note(&mut self, text: &str) {
            self.0.push(text.to_owned());
        }
    }
    let fixture = Fixture::open("llama_mha");
    let folder = tempfile::tempdir().unwrap();
    let options = |limits: &[(&str, u64)]| LoadOptions {
        max_memory: limits.iter().map(|&(name, bytes)| (name.to_owned(), bytes)).collect(),
        cache_dir: Some(folder.path().into()),
        context: Some(64),
        chunk: 8,
        ..exact(Some(QuantSpec::default()), "auto")
    };
    // Whatever GPU this machine has is left out.
    let gpu = ("wgpu:0", 0);
    let plan = |options: &LoadOptions| halfbyte::plan(&fixture.source(), options, &mut Silent).unwrap();
    let on_disk = |report: &halfbyte::PlanReport| report.layers.iter().any(|layer| layer.device == "disk");
    let roomy = plan(&options(&[gpu]));
    assert!(roomy.fits && !on_disk(&roomy), "{roomy:?}");
    let needed = roomy.devices.iter().find(|row| row.device == "cpu").unwrap().planned_bytes;

    let tight = [gpu, ("cpu", needed - 1)];
    let report = plan(&options(&tight));
    assert!(report.fits && on_disk(&report), "{report:?}");
    let mut notes = Notes::default();
    let model = CausalLm::load(&fixture.source(), &options(&tight), &mut notes).unwrap();
    assert!(
        model.blocks_on("disk") > 0
            && model.memory().iter().all(|row| row.planned_bytes == row.measured_bytes)
    );
    assert!(notes.0.iter().any(|note| note.contains("4-bit form") && note.contains("disk")), "{:?}", notes.0);

    let forbidden = plan(&options(&[gpu, ("cpu", needed - 1), ("disk", 0)]));
    assert!(!forbidden.fits, "{forbidden:?}");
    let less = plan(&options(&[gpu, ("cpu", needed - 1), ("disk", 1000)]));
    assert!(!less.fits, "{less:?}");
    let never = LoadOptions { four_bit_cache: FourBitCache::Never, ..options(&tight) };
    assert!(!plan(&never).fits);
}

/// A made-up model is written once in 4 bits and then read from there: the text is that of its weights in memory.
#[test]
fn a_made_up_model_is_written_and_read() {
    let source = ModelSource::Synthetic("llama-160m".into());
    let options = |map: &str| LoadOptions { context: Some(64), ..exact(Some(QuantSpec::default()), map) };
    let input = [5, 17, 300, 2, 88];
    let mut cpu = CausalLm::load(&source, &options("cpu"), &mut Silent).unwrap();
    let wanted = text(&mut cpu, &input, 6);
    drop(cpu);
    let mut disk = CausalLm::load(&source, &options("disk"), &mut Silent).unwrap();
    check_memory(&disk, &["disk"]);
    assert_eq!(text(&mut disk, &input, 6), wanted);
}
