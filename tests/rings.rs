//! Sliding windows far behind the text: caches that keep a ring of slots give the logits and texts of transformers, on
//! every device here, however the work is cut, wherever a turn begins and wherever layers go meanwhile.

mod reference;

use halfbyte::{
    CausalLm, Flow, GenerateOptions, Generation, KvType, LoadOptions, ModelSource, QuantSpec, SampleParams,
    Silent,
};
#[cfg(feature = "wgpu")]
use halfbyte::{DeviceMap, EventKind, FaultSpec, StreamLayers};
use reference::{Fixture, Setup, distance, setups};

/// A prompt of 560 tokens and 40 that follow it, under windows of 8.
const PROMPT: usize = 560;
const CONTEXT: usize = 600;

/// Of the most rows of a submission and the window.
const SLOTS: usize = 256 + 8 - 1;

/// The families whose layers all, or in part, see a window: how many do, how many do not, and bytes of keys and values of
/// a position in 32 bits.
const WINDOWED: [(&str, [usize; 2], usize); 3] = [
    ("mistral_sw8", [3, 0], 2 * 2 * 16 * 4),
    ("gemma2_softcap", [2, 1], 2 * 2 * 32 * 4),
    ("gemma3_text", [3, 1], 2 * 2 * 32 * 4),
];

/// A model and its long text.
struct Long {
    name: &'static str,
    source: ModelSource,
    ids: Vec<u32>,
    rows: Vec<u32>,
    logits: Vec<f32>,
}

impl Long {
    fn open(name: &'static str) -> Self {
        let reference = Fixture::long(name);
        let key = |what: &str| format!("{name}.{what}");
        Self {
            name,
            source: reference.made_for(CONTEXT),
            ids: reference.ids(&key("ids")),
            rows: reference.ids(&key("rows")),
            logits: reference.floats(&key("logits")),
        }
    }

    fn load(&self, options: &LoadOptions) -> CausalLm {
        let loaded = CausalLm::load(&self.source, options, &mut Silent);
        loaded.unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    /// Logits of the prompt where the reference has some.
    fn logits(&self, model: &mut CausalLm) -> Vec<f32> {
        let all = model.logits(&self.ids[..PROMPT]).unwrap();
        let width = all.len() / PROMPT;
        self.rows.iter().flat_map(|&row| &all[row as usize * width..][..width]).copied().collect()
    }

    /// A turn: the first `given` tokens, continued up to `end`.
    fn turn(&self, model: &mut CausalLm, given: usize, end: usize) -> Generation {
        ask(model, &self.ids[..given], end - given, &mut |_| ())
    }
}

fn ask(model: &mut CausalLm, prompt: &[u32], tokens: usize, at: &mut dyn FnMut(usize)) -> Generation {
    let how = GenerateOptions { max_new_tokens: tokens, sample: SampleParams::default() };
    let mut count = 0;
    let said = model.generate_ids(prompt, &how, &mut |_| {
        count += 1;
        at(count);
        Flow::Continue
    });
    said.unwrap()
}

fn options(setup: &Setup, chunk: usize) -> LoadOptions {
    LoadOptions { context: Some(CONTEXT), chunk, ..setup.exact(Some(QuantSpec::default())) }
}

/// Bytes of keys and values, as planned and as held.
fn cache_bytes(model: &CausalLm) -> u64 {
    let rows = model.memory();
    assert!(rows.iter().all(|row| row.planned_bytes == row.measured_bytes), "{rows:?}");
    let caches = rows.iter().flat_map(|row| &row.purposes).filter(|one| one.purpose == "KV cache");
    caches.map(|one| one.measured_bytes).sum()
}

#[test]
fn logits_and_turns_are_those_of_transformers() {
    for setup in setups() {
        // A software GPU compiles long: the other tests show it the other families.
        let models = if setup.devices == ["cpu"] { 3 } else { 1 };
        for (name, [windows, wholes], position) in WINDOWED.into_iter().rev().take(models) {
            let long = Long::open(name);
            let what = format!("{name} on {}", setup.name);
            let mut model = long.load(&options(&setup, 256));
            assert_eq!(
                cache_bytes(&model),
                (position * (windows * SLOTS + wholes * CONTEXT)) as u64,
                "{what}"
            );
            let distance = distance(&long.logits(&mut model), &long.logits);
            println!("{what}: {distance:.1e}");
            assert!(distance < setup.tolerance, "{what}: {distance:e}");
            // How many tokens are given, up to where the text goes on, and how many were still there: after 599 positions
            // the rings begin at 336, so a row that sees eight may be 343.
            let turns = [
                (PROMPT, CONTEXT, 0),
                (PROMPT + 20, CONTEXT, PROMPT + 19),
                (PROMPT, CONTEXT, PROMPT - 1),
                (344, 345, 343),
                (PROMPT, CONTEXT, 344),
                (343, 344, 0),
                (PROMPT, CONTEXT, 343),
                (20, 21, 0),
                (PROMPT, CONTEXT, 20),
            ];
            for (given, end, cached) in turns {
                let turn = long.turn(&mut model, given, end);
                assert_eq!(turn.cached_tokens, cached, "{what}: from {given} to {end}");
                if given >= PROMPT {
                    assert_eq!(turn.token_ids, long.ids[given..end], "{what}: from {given} to {end}");
                }
            }
        }
    }
}

/// However many rows a submission has, and whatever a cache's numbers are: rings differ from whole caches, which a
/// submission of the whole text needs, by what rounds otherwise in another number of rows. That is far less than what the
/// numbers themselves cost; another position's key or value costs more.
#[test]
fn every_format_and_chunk_is_that_of_whole_caches() {
    for setup in setups().into_iter().filter(|setup| setup.devices.len() == 1) {
        let long = Long::open("gemma3_text");
        // Kernels see to formats: a software GPU, which compiles long, shows one.
        let on_cpu = setup.devices == ["cpu"];
        for kv_cache in [KvType::Q8, KvType::F16, KvType::Q4].into_iter().take(if on_cpu { 3 } else { 1 }) {
            let load = |chunk| long.load(&LoadOptions { kv_cache, ..options(&setup, chunk) });
            let mut whole = load(CONTEXT);
            let wanted = long.logits(&mut whole);
            let cost = distance(&wanted, &long.logits);
            for chunk in [7, 300] {
                let mut rings = load(chunk);
                assert!(cache_bytes(&rings) < cache_bytes(&whole), "{chunk}");
                let distance = distance(&long.logits(&mut rings), &wanted);
                let what = format!("{kv_cache:?}, chunks of {chunk} on {}", setup.name);
                println!("{what}: {distance:.1e} of {cost:.1e}");
                assert!(distance < 0.25 * cost, "{what}: {distance:e}");
            }
        }
    }
}

/// Layers that live on the CPU and stream to the GPU for what a turn brings, in one chunk and in many.
#[test]
#[cfg(feature = "wgpu")]
fn turns_stream_past_their_windows() {
    let map = [("", "cpu"), ("lm_head", "wgpu:0")];
    let map = map.map(|(block, device)| (block.to_owned(), device.to_owned()));
    let long = Long::open("mistral_sw8");
    for chunk in [40, CONTEXT] {
        let options = LoadOptions {
            device_map: DeviceMap::Given(map.clone().into()),
            stream_layers: StreamLayers::Always,
            ..options(&setups()[1], chunk)
        };
        let mut model = long.load(&options);
        cache_bytes(&model);
        for (given, end, cached) in
            [(300, 304, 0), (PROMPT, CONTEXT, 300), (PROMPT + 20, CONTEXT, PROMPT + 19)]
        {
            let turn = long.turn(&mut model, given, end);
            assert_eq!(turn.cached_tokens, cached, "chunks of {chunk}: from {given} to {end}");
            if given >= PROMPT {
                assert_eq!(turn.token_ids, long.ids[given..end], "chunks of {chunk}: from {given} to {end}");
            }
        }
        // Three layers in two places: one of them is there for the second turn.
        let brought = model.loaded().streamed_layers().unwrap();
        assert!(brought >= 5, "{brought}");
    }
}

/// A GPU's memory shrinks in the middle of a text and grows again: rings go with their layers, from one device's form
/// to the other's and back.
#[test]
#[cfg(feature = "wgpu")]
fn rings_follow_their_layers() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("memory");
    let set = |bytes: u64| std::fs::write(&file, format!("wgpu:0={bytes}\n")).unwrap();
    let plenty = 1 << 30;
    set(plenty);
    let long = Long::open("gemma2_softcap");
    let options = LoadOptions {
        device_map: DeviceMap::Sequential,
        pretend_memory_file: Some(file.clone()),
        // No smaller chunk makes room.
        ..options(&setups()[1], 8)
    };
    let mut model = long.load(&options);
    assert_eq!(model.blocks_on("cpu"), 0);
    let all = model.memory()[0].planned_bytes;
    // What is heard below are tokens alone: the prompt is read.
    long.turn(&mut model, PROMPT, PROMPT + 1);
    let text = ask(&mut model, &long.ids[..PROMPT], CONTEXT - PROMPT, &mut |token| match token {
        6 => set(all),
        20 => set(plenty),
        _ => {}
    });
    assert_eq!(text.token_ids, long.ids[PROMPT..], "{:#?}", model.events());
    let kinds: Vec<EventKind> = model.events().iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [EventKind::MemoryShort, EventKind::MemoryBack], "{:#?}", model.events());
    // Since the way back, tokens one by one: the prompt was not computed again, which takes 70 submissions.
    let (_, submissions) = model.counts();
    assert!(submissions < 30, "{submissions} submissions");
    let turn = long.turn(&mut model, PROMPT + 20, CONTEXT);
    assert_eq!((turn.cached_tokens, &turn.token_ids[..]), (PROMPT + 19, &long.ids[PROMPT + 20..]));
}

/// A device that is lost in the middle of a text is opened again, and rings are filled from the tokens.
#[test]
#[cfg(feature = "wgpu")]
fn rings_that_were_lost_are_computed_again() {
    let long = Long::open("mistral_sw8");
    let fault = Some(FaultSpec::DeviceLost(30));
    let mut model = long.load(&LoadOptions { fault, ..options(&setups()[1], 64) });
    let text = long.turn(&mut model, PROMPT, CONTEXT);
    assert_eq!(text.token_ids, long.ids[PROMPT..], "{:#?}", model.events());
    assert_eq!(model.events().len(), 1, "{:#?}", model.events());
}
