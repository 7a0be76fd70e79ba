//! `--stream-layers`: layers that live on the CPU or the disk pass through a GPU for prompts, and the text is the same.
#![cfg(feature = "wgpu")]

mod reference;

use halfbyte::{
    CausalLm, DeviceMap, Flow, GenerateOptions, LoadOptions, ModelSource, Progress, QuantSpec, SampleParams,
    Silent, StreamLayers,
};
use reference::{Fixture, GPU_TOLERANCE, distance, float32};
use std::path::PathBuf;

/// The blocks of these names elsewhere than on the first GPU.
fn map(elsewhere: &[(&str, &str)]) -> DeviceMap {
    let all = std::iter::once(("", "wgpu:0")).chain(elsewhere.iter().copied());
    DeviceMap::Given(all.map(|(block, device)| (block.to_owned(), device.to_owned())).collect())
}

fn options(device_map: DeviceMap, stream_layers: StreamLayers, chunk: usize) -> LoadOptions {
    LoadOptions {
        quant: Some(QuantSpec::default()),
        cache_dir: Some(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("streaming")),
        context: Some(96),
        outputs: 16,
        device_map,
        stream_layers,
        chunk,
        ..float32()
    }
}

fn greedy(max_new_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_new_tokens, sample: SampleParams::default() }
}

fn text(model: &mut CausalLm, input: &[u32], tokens: usize) -> Vec<u32> {
    model.generate_ids(input, &greedy(tokens), &mut |_| Flow::Continue).unwrap().token_ids
}

fn check_memory(model: &CausalLm) {
    for row in model.memory() {
        assert_eq!(row.planned_bytes, row.measured_bytes, "{row:?}");
    }
}

/// Families of unlike layers, prompts in one chunk and in many, logits and a greedy text: those of transformers.
#[test]
fn always_gives_what_transformers_computes() {
    let layers = [("model.embed_tokens", "cpu"), ("model.layers.0", "cpu"), ("model.layers.1", "cpu")];
    for (name, chunk) in
        [("llama_gqa_tied_llama3rope", 64), ("gemma2_softcap", 5), ("qwen3_moe", 7), ("mistral_sw8", 3)]
    {
        let fixture = Fixture::open(name);
        let input = fixture.ids("input_ids");
        let options = options(map(&layers), StreamLayers::Always, chunk);
        let plan = halfbyte::plan(&fixture.endless(), &options, &mut Silent).unwrap();
        let mut model = CausalLm::load(&fixture.endless(), &options, &mut Silent).unwrap();
        check_memory(&model);
        for row in model.memory() {
            let planned = plan.devices.iter().find(|device| device.device == row.device).unwrap();
            assert_eq!(planned.planned_bytes, row.measured_bytes, "{name}: {row:?}");
        }
        let streamed = plan.streamed.unwrap();
        assert_eq!((streamed.device.as_str(), streamed.layers, streamed.from_tokens), ("wgpu:0", 2, 2));
        assert_eq!(text(&mut model, &input, 16), fixture.ids("greedy16.nf4dq"), "{name}");
        assert!(model.loaded().streamed_layers().unwrap() >= 2, "{name}");
        let found = model.logits(&input).unwrap();
        let distance = distance(&found, &fixture.floats("logits.nf4dq"));
        assert!(distance < GPU_TOLERANCE, "{name}: {distance:e}");
        check_memory(&model);
    }
}

/// Disk, CPU and GPU; a conversation whose second turn finds its beginning in the caches; a batch.
#[test]
fn always_gives_the_text_of_never() {
    let source = ModelSource::named("stories");
    let elsewhere = [
        ("model.embed_tokens", "disk"),
        ("model.layers.0", "disk"),
        ("model.layers.1", "cpu"),
        ("model.layers.2", "cpu"),
    ];
    let prompts =
        ["Once upon a time there was a little dog who", "Tom", "The big cat and the small mouse went to"];
    let mut answers = Vec::new();
    for stream_layers in [StreamLayers::Never, StreamLayers::Always] {
        let options = LoadOptions { sequences: 2, ..options(map(&elsewhere), stream_layers, 8) };
        let mut model = CausalLm::load(&source, &options, &mut Silent).unwrap();
        check_memory(&model);
        let mut said = model.encode(prompts[0]).unwrap();
        for _ in 0..2 {
            let more = text(&mut model, &said, 12);
            said.extend(more);
            said.extend(model.encode(prompts[2]).unwrap());
        }
        let batch = model.generate_batch(&prompts, &greedy(8)).unwrap();
        check_memory(&model);
        assert_eq!(model.loaded().streamed_layers().is_some(), stream_layers == StreamLayers::Always);
        answers.push((said, batch.into_iter().map(|text| text.token_ids).collect::<Vec<_>>()));
    }
    assert_eq!(answers[0], answers[1]);
}

/// Where nothing can stream, that is said and everything else goes on.
#[test]
fn what_cannot_stream_is_said() {
    #[derive(Default)]
    struct Notes(Vec<String>);
    impl Progress for Notes {
        fn note(&mut self, text: &str) {
            self.0.push(text.to_owned());
        }
    }
    let source = ModelSource::named("stories");
    for (device_map, why) in [
        ("cpu".parse().unwrap(), "no GPU holds"),
        ("wgpu:0".parse().unwrap(), "no layers live on the CPU"),
        (map(&[("model.embed_tokens", "cpu")]), "no layers live on the CPU"),
    ] {
        let mut notes = Notes::default();
        let model =
            CausalLm::load(&source, &options(device_map, StreamLayers::Always, 8), &mut notes).unwrap();
        assert_eq!(model.loaded().streamed_layers(), None);
        assert!(
            notes.0.iter().any(|note| note.contains("nothing streams") && note.contains(why)),
            "{:?}",
            notes.0
        );
    }
}

/// By a limit instead of a map: what streams has its room within it, and layers move to make that room.
#[test]
fn room_is_made_within_the_limit() {
    let source = ModelSource::named("stories");
    let with = |stream_layers, limit: u64| LoadOptions {
        max_memory: [("wgpu:0".to_owned(), limit)].into(),
        ..options(DeviceMap::Sequential, stream_layers, 8)
    };
    let plan =
        |stream_layers, limit| halfbyte::plan(&source, &with(stream_layers, limit), &mut Silent).unwrap();
    let on = |report: &halfbyte::PlanReport, device: &str| {
        report.layers.iter().filter(|layer| layer.device == device).count()
    };
    let load = |stream_layers, limit| {
        let mut model = CausalLm::load(&source, &with(stream_layers, limit), &mut Silent).unwrap();
        check_memory(&model);
        let input = model.encode("Once upon a time there was").unwrap();
        let text = text(&mut model, &input, 12);
        let held =
            model.memory().iter().find(|row| row.device == "wgpu:0").map_or(0, |row| row.measured_bytes);
        assert!(held <= limit, "{held} of {limit}");
        (text, model.loaded().streamed_layers())
    };
    let roomy = plan(StreamLayers::Never, 1 << 30);
    let whole = roomy.devices.iter().find(|row| row.device == "wgpu:0").unwrap().planned_bytes;
    // Whole it needs no room for anything else.
    let (wanted, streamed) = load(StreamLayers::Always, whole);
    assert_eq!(streamed, None);
    // The largest limit at which layers stream.
    let limits = (1..64).rev().map(|part| whole / 64 * part);
    let mut moved = limits.filter_map(|limit| {
        let (never, always) = (plan(StreamLayers::Never, limit), plan(StreamLayers::Always, limit));
        always.streamed.is_some().then(|| (limit, on(&never, "cpu"), on(&always, "cpu")))
    });
    let (limit, without, with_room) = moved.next().expect("a limit at which layers stream");
    assert!(with_room > without && without > 0, "{limit} of {whole}: {without}, {with_room}");
    let (text, streamed) = load(StreamLayers::Never, limit);
    assert_eq!((&text, streamed), (&wanted, None));
    let (text, streamed) = load(StreamLayers::Always, limit);
    assert_eq!(text, wanted);
    assert!(streamed.is_some_and(|brought| brought > 0), "{streamed:?}");
}
