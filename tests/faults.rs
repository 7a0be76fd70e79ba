//! Every allocation failed in turn, every submission lost in turn: the text is the undisturbed one.

mod reference;

use halfbyte::{
    CausalLm, ComputeDtype, DeviceMap, Error, FaultSpec, Flow, GenerateOptions, KvType, LoadOptions,
    ModelSource, SampleParams, Silent, StreamLayers,
};
use reference::setups;

const PROMPT: &str = "Once there was";

fn stories() -> ModelSource {
    ModelSource::Bundled("stories".into())
}

fn exact(device_map: &DeviceMap) -> LoadOptions {
    LoadOptions {
        device_map: device_map.clone(),
        kv_cache: KvType::F32,
        compute_dtype: ComputeDtype::Float32,
        ..LoadOptions::default()
    }
}

/// Sequentially, with this limit on the GPU.
fn limited(limit: u64) -> LoadOptions {
    let max_memory = [("wgpu:0".to_owned(), limit)].into();
    // No chunk is smaller: what does not fit moves.
    LoadOptions { max_memory, chunk: 8, context: Some(128), ..exact(&DeviceMap::Sequential) }
}

/// What came of a run.
struct Outcome {
    model: CausalLm,
    streamed: String,
    tokens: Vec<u32>,
}

/// Loads with `fault` and generates `tokens` tokens.
fn run(
    options: &LoadOptions,
    fault: FaultSpec,
    tokens: usize,
    sample: SampleParams,
) -> Result<Outcome, Error> {
    let options = LoadOptions { fault: Some(fault), ..options.clone() };
    let mut model = CausalLm::load(&stories(), &options, &mut Silent)?;
    let how = GenerateOptions { max_new_tokens: tokens, sample };
    let mut streamed = String::new();
    let generation = model.generate(PROMPT, &how, &mut |text| {
        streamed += text;
        Flow::Continue
    })?;
    assert_eq!(streamed, generation.text, "{fault}: streamed and returned differ");
    Ok(Outcome { model, streamed, tokens: generation.token_ids })
}

/// A fault that does not happen: only counts.
const NEVER: FaultSpec = FaultSpec::Alloc(u64::MAX);

/// Places to run in: the CPU alone, and with the feature `wgpu` a GPU alone and both, by a map and by a limit.
fn places() -> Vec<(&'static str, LoadOptions)> {
    let mut places: Vec<_> = setups().iter().map(|setup| (setup.name, exact(&setup.device_map))).collect();
    if cfg!(feature = "wgpu") {
        places.push(("cpu and wgpu by a limit", limited(almost())));
        places.push(("streamed", streamed()));
    }
    places
}

/// Layers on the CPU that stream to the GPU for the prompt.
fn streamed() -> LoadOptions {
    let map =
        [("", "wgpu:0"), ("model.embed_tokens", "cpu"), ("model.layers.0", "cpu"), ("model.layers.1", "cpu")];
    let map = map.map(|(block, device)| (block.to_owned(), device.to_owned()));
    let stream_layers = StreamLayers::Always;
    LoadOptions { stream_layers, context: Some(128), ..exact(&DeviceMap::Given(map.into())) }
}

/// Sequentially, with a limit on the GPU that leaves room for what streams once layers have moved.
#[cfg(feature = "wgpu")]
fn streamed_by_a_limit() -> LoadOptions {
    let options = |limit| LoadOptions { stream_layers: StreamLayers::Always, ..limited(limit) };
    let streams =
        |limit: &u64| halfbyte::plan(&stories(), &options(*limit), &mut Silent).unwrap().streamed.is_some();
    let whole = almost();
    options(
        (1..32).map(|part| whole - whole / 32 * part).find(streams).expect("a limit at which layers stream"),
    )
}

/// The largest limit, to the KiB, at which the GPU does not hold all blocks.
fn almost() -> u64 {
    let (mut too_small, mut enough) = (0, 256 << 20);
    while enough - too_small > 1 << 10 {
        let middle = u64::midpoint(too_small, enough);
        let plan = halfbyte::plan(&stories(), &limited(middle), &mut Silent).unwrap();
        let whole = plan.layers.iter().all(|layer| layer.device == "wgpu:0");
        if plan.fits && whole { enough = middle } else { too_small = middle }
    }
    too_small
}

/// Runs `test` for each of `numbers`, on a few threads at once, and adds up what it counts.
fn sweep<const N: usize>(
    numbers: impl Iterator<Item = u64> + Send,
    test: &(dyn Fn(u64) -> [u64; N] + Sync),
) -> [u64; N] {
    let left = std::sync::Mutex::new(numbers);
    let next = || left.lock().unwrap().next();
    std::thread::scope(|scope| {
        let worker = || {
            let mut sum = [0; N];
            while let Some(nth) = next() {
                sum = std::array::from_fn(|at| sum[at] + test(nth)[at]);
            }
            sum
        };
        let workers: Vec<_> = (0..3).map(|_| scope.spawn(worker)).collect();
        let sums = workers.into_iter().map(|worker| worker.join().unwrap());
        sums.fold([0; N], |sum, one| std::array::from_fn(|at| sum[at] + one[at]))
    })
}

/// Whether the planner, asked apart and told what the devices turned out to hold, finds no place either.
fn nothing_fits(refusal: &halfbyte::Refusal, options: &LoadOptions) -> bool {
    let mut max_memory = options.max_memory.clone();
    max_memory.extend(refusal.devices.iter().map(|device| (device.device.clone(), device.budget)));
    [256, 128, 32, 8].into_iter().all(|chunk| {
        let options = LoadOptions { max_memory: max_memory.clone(), chunk, ..options.clone() };
        !halfbyte::plan(&stories(), &options, &mut Silent).unwrap().fits
    })
}

/// Fails every `step`th allocation of a load and 32 tokens, `count` of them in a row, and prints what came of it.
fn fail_allocations(name: &str, options: &LoadOptions, count: u64, step: usize) {
    let wanted = run(options, NEVER, 32, SampleParams::default()).unwrap();
    let last = wanted.model.loaded().fault_counts().unwrap().allocations;
    assert!(last > 10 && wanted.tokens.len() == 32, "{name}: {last} allocations");
    assert!(wanted.model.events().is_empty());
    let (tokens, streamed, map) = (wanted.tokens, wanted.streamed, wanted.model.device_map());
    let numbers = (1..=last).step_by(step);
    let tried = numbers.clone().count() as u64;
    let [same, refused, moved] = sweep(numbers, &|first| {
        let fault = FaultSpec::Allocs { first, count };
        match run(options, fault, 32, SampleParams::default()) {
            Ok(found) => {
                assert_eq!(found.tokens, tokens, "{name}, {fault}");
                assert_eq!(found.streamed, streamed, "{name}, {fault}");
                assert!(!found.model.events().is_empty(), "{name}, {fault}");
                for row in found.model.memory() {
                    assert_eq!(row.planned_bytes, row.measured_bytes, "{name}, {fault}: {row:?}");
                }
                [1, 0, u64::from(found.model.device_map() != map)]
            }
            Err(Error::Refused(refusal)) => {
                assert!(nothing_fits(&refusal, options), "{name}, {fault}: {refusal}");
                [0, 1, 0]
            }
            Err(error) => panic!("{name}, {fault}: {error}"),
        }
    });
    println!(
        "{name}, alloc:N*{count}: {tried} of N to {last}, {same} the same text ({moved} moved), {refused} refused"
    );
    assert_eq!(same + refused, tried, "{name}");
    // All of these have room: smaller chunks, less context, the other device.
    assert_eq!(refused, 0, "{name}");
}

/// Loses the device at each submission of `new_tokens` tokens in turn.
fn lose_the_device(name: &str, options: &LoadOptions, new_tokens: usize, sample: SampleParams) {
    let wanted = run(options, NEVER, new_tokens, sample).unwrap();
    let last = wanted.model.loaded().fault_counts().unwrap().submissions;
    assert!(last >= new_tokens as u64, "{name}: {last} submissions");
    let (tokens, streamed, map) = (wanted.tokens, wanted.streamed, wanted.model.device_map());
    let [lost] = sweep(1..=last, &|nth| {
        let found = run(options, FaultSpec::DeviceLost(nth), new_tokens, sample).unwrap();
        assert_eq!(found.tokens, tokens, "{name}, device-lost:{nth}");
        assert_eq!(found.streamed, streamed, "{name}, device-lost:{nth}");
        assert_eq!(found.model.device_map(), map, "{name}, device-lost:{nth}");
        let events = found.model.events();
        assert!(events.len() == 1 && events[0].text.contains("lost"), "{name}: {events:?}");
        [1]
    });
    println!("{name}: lost at each of {last} submissions, {lost} times the same text");
    assert_eq!(lost, last);
}

#[test]
fn any_allocation_may_fail() {
    for (name, options) in places() {
        // Once, and again at what is tried in its place: then less is done at once, or blocks move. A software
        // GPU takes long to open: one of the two for each way to use it, and every third allocation.
        let (counts, step) = match name {
            "cpu" => (1..=2, 1),
            "wgpu" => (1..=1, 3),
            "cpu and wgpu by a limit" => (2..=2, 3),
            _ => continue,
        };
        for count in counts {
            fail_allocations(name, &options, count, step);
        }
    }
}

#[test]
#[cfg(feature = "wgpu")]
#[ignore = "opens a software GPU some 200 times: cargo test -p halfbyte --test faults -- --ignored --nocapture"]
fn any_allocation_on_a_gpu_may_fail() {
    for (name, options) in places() {
        for count in 1..=3 {
            if matches!(name, "wgpu" | "cpu and wgpu by a limit") {
                fail_allocations(name, &options, count, 1);
            }
        }
    }
}

/// A few of those of layers that stream; [`any_allocation_of_what_streams_may_fail`] is all of them.
#[test]
#[cfg(feature = "wgpu")]
fn allocations_of_what_streams_may_fail() {
    fail_allocations("streamed", &streamed(), 1, 19);
    fail_allocations("streamed by a limit", &streamed_by_a_limit(), 2, 23);
}

#[test]
#[cfg(feature = "wgpu")]
#[ignore = "opens a software GPU some 500 times: cargo test -p halfbyte --test faults -- --ignored --nocapture"]
fn any_allocation_of_what_streams_may_fail() {
    for count in 1..=3 {
        fail_allocations("streamed", &streamed(), count, 1);
        fail_allocations("streamed by a limit", &streamed_by_a_limit(), count, 1);
    }
}

#[test]
#[cfg(feature = "wgpu")]
#[ignore = "opens a software GPU some 100 times: cargo test -p halfbyte --test faults -- --ignored --nocapture"]
fn the_device_may_be_lost_at_any_submission_of_what_streams() {
    lose_the_device("streamed, 32 tokens", &streamed(), 32, SampleParams::default());
    lose_the_device("streamed by a limit", &streamed_by_a_limit(), 32, SampleParams::default());
}

#[test]
fn the_device_may_be_lost_at_any_submission() {
    let drawn = SampleParams { temperature: 0.9, seed: 7, ..SampleParams::default() };
    for (name, options) in places() {
        for sample in [SampleParams::default(), drawn] {
            // A software GPU takes long to compile its kernels again.
            if name != "cpu" && (name == "cpu and wgpu" || sample == drawn) {
                continue;
            }
            let new_tokens = if name == "cpu" { 12 } else { 4 };
            lose_the_device(name, &options, new_tokens, sample);
        }
    }
}

#[test]
fn batches_logits_and_scores_survive_too() {
    let options = LoadOptions { sequences: 2, outputs: 4, ..exact(&"cpu".parse().unwrap()) };
    let prompts = [PROMPT, "The little dog"];
    let how = GenerateOptions { max_new_tokens: 6, sample: SampleParams::default() };
    let ask = |fault| {
        let options = LoadOptions { fault: Some(fault), ..options.clone() };
        let mut model = CausalLm::load(&stories(), &options, &mut Silent).unwrap();
        let texts: Vec<_> =
            model.generate_batch(&prompts, &how).unwrap().into_iter().map(|text| text.token_ids).collect();
        let logits = model.logits(&[1, 5, 9, 200, 7]).unwrap();
        let score = model.perplexity("Once there was a little dog. The dog was happy.").unwrap();
        let counts = model.loaded().fault_counts().unwrap();
        (texts, logits, score, counts.submissions, model.events().len())
    };
    let wanted = ask(NEVER);
    for nth in 1..=wanted.3 {
        let found = ask(FaultSpec::DeviceLost(nth));
        assert_eq!((&found.0, &found.1, &found.2), (&wanted.0, &wanted.1, &wanted.2), "device-lost:{nth}");
        assert_eq!(found.4, 1, "device-lost:{nth}");
    }
    println!("batch, logits, perplexity: lost at each of {} submissions", wanted.3);
}

/// A model that failures leave no place for refuses with remedies, and the next load is as ever.
#[test]
fn what_fits_nowhere_is_refused() {
    let cpu = exact(&"cpu".parse().unwrap());
    let options = LoadOptions { context: Some(64), chunk: 8, ..cpu };
    // One failure may be a moment's; two at the same place are less memory than there was said to be.
    assert!(run(&options, FaultSpec::Alloc(3), 8, SampleParams::default()).is_ok());
    let twice = FaultSpec::Allocs { first: 3, count: 2 };
    let refused = run(&options, twice, 8, SampleParams::default());
    let Some(Error::Refused(refusal)) = refused.err() else { panic!("there is nothing smaller to offer") };
    println!("{refusal}");
    assert!(!refusal.remedies.is_empty() && refusal.to_string().contains("--kv-cache q8"), "{refusal}");
    assert!(nothing_fits(&refusal, &options), "{refusal}");
    // What was allowed beforehand is done, and said to have been done.
    let lossy = LoadOptions { allow_lossy: true, ..options.clone() };
    let found = run(&lossy, twice, 8, SampleParams::default()).unwrap();
    let events = found.model.events();
    assert!(events.last().unwrap().text.contains("the text may differ"), "{events:#?}");
    assert!(run(&options, NEVER, 8, SampleParams::default()).is_ok());
}
