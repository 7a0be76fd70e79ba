//! CUDA's kernels end to end, on a wgpu adapter (`cube:0`, feature `cube`): the families' fixtures, and the ladder.

mod reference;

use halfbyte::{
    CausalLm, DeviceMap, Encoded, FaultSpec, Flow, GenerateOptions, LoadOptions, ModelSource, QuantSpec,
    SampleParams, SequenceClassifier, Silent, StreamLayers,
};
use reference::{Fixture, GPU_TOLERANCE, MODELS, Setup, distance, float32};

fn setup() -> Setup {
    let device_map = DeviceMap::Only("cube:0".into());
    Setup { name: "cube", device_map, tolerance: GPU_TOLERANCE, devices: &["cube:0"] }
}

fn greedy(max_new_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_new_tokens, sample: SampleParams::default() }
}

#[test]
fn logits_and_greedy_tokens_of_all_decoders_are_those_of_transformers() {
    for model in MODELS.iter().copied().chain(["gpt2"]) {
        let fixture = Fixture::open(model);
        let input = fixture.ids("input_ids");
        let options = setup().exact(Some(QuantSpec::default()));
        let mut loaded = CausalLm::load(&fixture.endless(), &options, &mut Silent).unwrap();
        let logits = loaded.logits(&input).unwrap();
        let distance = distance(&logits, &fixture.floats("logits.nf4dq"));
        println!("{model}: {distance:.1e}");
        assert!(distance < GPU_TOLERANCE, "{model}: {distance:e}");
        let text = loaded.generate_ids(&input, &greedy(16), &mut |_| Flow::Continue).unwrap();
        assert_eq!(text.token_ids, fixture.ids("greedy16.nf4dq"), "{model}");
        // Planned is held, to the byte.
        for row in loaded.memory() {
            assert_eq!(row.planned_bytes, row.measured_bytes, "{model} on {}", row.device);
        }
    }
}

/// Far past its windows, in rings of 263 slots: a prompt, and a turn that goes back to its middle.
#[test]
fn windows_in_rings_are_those_of_transformers() {
    let long = Fixture::long("gemma2_softcap");
    let ids = long.ids("gemma2_softcap.ids");
    let options = LoadOptions { context: Some(600), chunk: 256, ..setup().exact(Some(QuantSpec::default())) };
    let mut model = CausalLm::load(&long.made_for(600), &options, &mut Silent).unwrap();
    for (given, cached) in [(560, 0), (580, 579), (560, 559)] {
        let text = model.generate_ids(&ids[..given], &greedy(600 - given), &mut |_| Flow::Continue).unwrap();
        assert_eq!((text.cached_tokens, &text.token_ids[..]), (cached, &ids[given..]));
    }
    for row in model.memory() {
        assert_eq!(row.planned_bytes, row.measured_bytes, "{}", row.device);
    }
}

#[test]
fn classifiers_are_those_of_transformers() {
    for model in ["bert_cls", "roberta_cls", "distilbert_cls"] {
        let fixture = Fixture::open(model);
        let (ids, mask) = (fixture.ids("input_ids"), fixture.ids("attention_mask"));
        let types = if model == "bert_cls" { fixture.ids("token_type_ids") } else { vec![0; ids.len()] };
        let padded = ids.len() / 3;
        let text = |row: usize| {
            let kept = (row * padded..(row + 1) * padded).filter(|&at| mask[at] == 1);
            let (ids, types) = kept.map(|at| (ids[at], types[at])).unzip();
            Encoded { ids, types }
        };
        let texts: Vec<Encoded> = (0..3).map(text).collect();
        let options = setup().exact(Some(QuantSpec::default()));
        let mut classifier = SequenceClassifier::load(&fixture.source(), &options, &mut Silent).unwrap();
        let found = classifier.logits(&texts).unwrap().concat();
        let distance = distance(&found, &fixture.floats("logits.nf4dq"));
        println!("{model}: {distance:.1e}");
        assert!(distance < GPU_TOLERANCE, "{model}: {distance:e}");
    }
}

/// Sequentially, with this limit on the device.
fn limited(limit: u64) -> LoadOptions {
    LoadOptions {
        device_map: DeviceMap::Sequential,
        max_memory: [("cube:0".to_owned(), limit)].into(),
        chunk: 8,
        context: Some(128),
        ..float32()
    }
}

fn load(options: &LoadOptions) -> CausalLm {
    CausalLm::load(&ModelSource::Bundled("stories".into()), options, &mut Silent).unwrap()
}

fn tell(model: &mut CausalLm) -> String {
    model.generate("Once there was", &greedy(12), &mut |_| Flow::Continue).unwrap().text
}

#[test]
fn layers_over_two_devices_say_the_same() {
    let mut whole = load(&limited(1 << 30));
    let wanted = tell(&mut whole);
    let all = whole.memory().iter().find(|row| row.device == "cube:0").unwrap().measured_bytes;
    drop(whole);

    // Each a device, a queue and a server of its own, as two GPUs: hidden states go through the host.
    let mut options = limited(all - 1);
    options.max_memory.insert("cube:1".into(), all - 1);
    let mut shared = load(&options);
    let blocks = |device: &str| shared.blocks_on(device);
    assert!(blocks("cube:0") > 0 && blocks("cube:1") > 0, "{:?}", shared.device_map());
    assert_eq!(blocks("cpu"), 0);
    for row in shared.memory() {
        assert_eq!(row.planned_bytes, row.measured_bytes, "{}", row.device);
    }
    assert_eq!(tell(&mut shared), wanted);
    drop(shared);
    // Of unlike sizes, by another policy: neither holds all, and together they hold it. (`auto` would rather have the CPU
    // than software GPUs: two cards under it are planned in the placement crate's tests.)
    let mut balanced = LoadOptions { device_map: DeviceMap::Balanced, ..limited(all - 1) };
    let less = all - all / 32;
    balanced.max_memory.insert("cube:1".into(), less);
    let mut shared = load(&balanced);
    let blocks = ["cube:0", "cube:1", "cpu"].map(|device| shared.blocks_on(device));
    assert!(blocks[0] > 0 && blocks[1] > 0 && blocks[2] == 0, "{:?}", shared.device_map());
    for row in shared.memory() {
        assert_eq!(row.planned_bytes, row.measured_bytes, "{}", row.device);
        assert!(row.device != "cube:1" || row.measured_bytes <= less, "{}", row.measured_bytes);
    }
    assert_eq!(tell(&mut shared), wanted);
    drop(shared);

    // Draws, too: by the host, from logits.
    let drawn = |model: &mut CausalLm| {
        let sample = SampleParams { temperature: 1.0, seed: 5, ..SampleParams::default() };
        let options = GenerateOptions { max_new_tokens: 12, sample };
        model.generate("Once there was", &options, &mut |_| Flow::Continue).unwrap().text
    };
    let across = drawn(&mut load(&options));
    assert_eq!(drawn(&mut load(&limited(1 << 30))), across);
}

#[test]
fn layers_of_the_cpu_pass_through_it_for_prompts() {
    let layers =
        [("", "cube:0"), ("model.embed_tokens", "cpu"), ("model.layers.0", "cpu"), ("model.layers.1", "cpu")];
    let map = layers.iter().map(|&(block, device)| (block.to_owned(), device.to_owned())).collect();
    // One prompt in one chunk and in many: then its caches' beginning comes with each layer.
    for (name, chunk) in [("llama_gqa_tied_llama3rope", 64), ("gemma2_softcap", 5)] {
        let fixture = Fixture::open(name);
        let input = fixture.ids("input_ids");
        let options = LoadOptions {
            device_map: DeviceMap::Given(Clone::clone(&map)),
            stream_layers: StreamLayers::Always,
            chunk,
            ..setup().exact(Some(QuantSpec::default()))
        };
        let mut model = CausalLm::load(&fixture.endless(), &options, &mut Silent).unwrap();
        for row in model.memory() {
            assert_eq!(row.planned_bytes, row.measured_bytes, "{name}: {}", row.device);
        }
        let text = model.generate_ids(&input, &greedy(16), &mut |_| Flow::Continue).unwrap();
        assert_eq!(text.token_ids, fixture.ids("greedy16.nf4dq"), "{name}");
        assert!(model.loaded().streamed_layers().unwrap() >= 2, "{name}");
        // Its beginning is in the caches: what follows streams after it.
        let logits = model.logits(&input).unwrap();
        let distance = distance(&logits, &fixture.floats("logits.nf4dq"));
        assert!(distance < GPU_TOLERANCE, "{name}: {distance:e}");
    }
}

#[test]
fn out_of_memory_is_a_value_and_the_ladder_goes_on() {
    let mut whole = load(&limited(1 << 30));
    assert_eq!(whole.blocks_on("cpu"), 0);
    let wanted = tell(&mut whole);
    let all = whole.memory().iter().find(|row| row.device == "cube:0").unwrap().measured_bytes;
    drop(whole);

    // What does not fit lives on the CPU.
    let mut shared = load(&limited(all - 1));
    assert!(shared.blocks_on("cube:0") > 0 && shared.blocks_on("cpu") > 0, "{:?}", shared.device_map());
    for row in shared.memory() {
        assert_eq!(row.planned_bytes, row.measured_bytes, "{}", row.device);
        assert!(row.device != "cube:0" || row.measured_bytes < all, "{} of {all} bytes", row.measured_bytes);
    }
    assert_eq!(tell(&mut shared), wanted);
    drop(shared);

    // An allocation that fails at load or compile, a device that is lost in mid-text: the same text.
    let faults =
        [FaultSpec::Alloc(1), FaultSpec::Alloc(3), FaultSpec::DeviceLost(1), FaultSpec::DeviceLost(5)];
    for fault in faults {
        let mut model = load(&LoadOptions { fault: Some(fault), ..limited(1 << 30) });
        assert_eq!(tell(&mut model), wanted, "{fault}");
        assert!(!model.events().is_empty(), "{fault}: nothing happened");
    }
}
