//! Every allocation failed in turn, every submission lost in turn: the text is the undisturbed one.

mod reference;

use halfbyte::{
    CausalLm, DeviceMap, Error, FaultSpec, Flow, GenerateOptions, KvType, LoadOptions, ModelSource,
    SampleParams, Silent,
};
use reference::setups;

const PROMPT: &str = "Once there was";

fn stories() -> ModelSource {
    ModelSource::Bundled("stories".into())
}

fn exact(device_map: &DeviceMap) -> LoadOptions {
    LoadOptions { device_map: device_map.clone(), kv_cache: KvType::F32, ..LoadOptions::default() }
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

/// Places to run in: the CPU alone, and with the feature `wgpu` both by a map and by a limit.
fn places() -> Vec<(&'static str, LoadOptions)> {
    let mut places = Vec::new();
    for setup in setups().iter().filter(|setup| setup.name != "wgpu") {
        places.push((setup.name, exact(&setup.device_map)));
    }
    if cfg!(feature = "wgpu") {
        places.push(("cpu and wgpu by a limit", limited(almost())));
    }
    places
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

#[test]
fn any_allocation_may_fail() {
    for (name, options) in places() {
        let wanted = run(&options, NEVER, 32, SampleParams::default()).unwrap();
        let last = wanted.model.loaded().fault_counts().unwrap().allocations;
        assert!(last > 10 && wanted.tokens.len() == 32, "{name}: {last} allocations");
        assert!(wanted.model.events().is_empty());
        let (mut same, mut refused, mut moved) = (0, 0, 0);
        for nth in 1..=last {
            match run(&options, FaultSpec::Alloc(nth), 32, SampleParams::default()) {
                Ok(found) => {
                    assert_eq!(found.tokens, wanted.tokens, "{name}, alloc:{nth}");
                    assert_eq!(found.streamed, wanted.streamed, "{name}, alloc:{nth}");
                    assert_eq!(found.model.events().len(), 1, "{name}, alloc:{nth}");
                    same += 1;
                    moved += u64::from(found.model.device_map() != wanted.model.device_map());
                    for row in found.model.memory() {
                        assert_eq!(row.planned_bytes, row.measured_bytes, "{name}, alloc:{nth}: {row:?}");
                    }
                }
                Err(Error::Refused(_)) => refused += 1,
                Err(error) => panic!("{name}, alloc:{nth}: {error}"),
            }
        }
        println!("{name}: {last} allocations, {same} the same text ({moved} moved), {refused} refused");
        // All of these have room: smaller chunks, less context, the other device.
        assert_eq!(refused, 0, "{name}");
    }
}

#[test]
fn the_device_may_be_lost_at_any_submission() {
    let drawn = SampleParams { temperature: 0.9, seed: 7, ..SampleParams::default() };
    for (name, options) in places() {
        for sample in [SampleParams::default(), drawn] {
            let wanted = run(&options, NEVER, 12, sample).unwrap();
            let last = wanted.model.loaded().fault_counts().unwrap().submissions;
            assert!(last >= 12, "{name}: {last} submissions");
            // A software GPU takes long to compile its kernels again.
            let step = if name == "cpu" { 1 } else { 3 };
            let mut lost = 0;
            for nth in (1..=last).step_by(step) {
                let found = run(&options, FaultSpec::DeviceLost(nth), 12, sample).unwrap();
                assert_eq!(found.tokens, wanted.tokens, "{name}, device-lost:{nth}");
                assert_eq!(found.streamed, wanted.streamed, "{name}, device-lost:{nth}");
                assert_eq!(found.model.device_map(), wanted.model.device_map(), "{name}, device-lost:{nth}");
                let events = found.model.events();
                assert!(events.len() == 1 && events[0].text.contains("lost"), "{name}: {events:?}");
                lost += 1;
            }
            println!("{name}: lost at {lost} of {last} submissions, always the same text");
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

/// A model that a failure leaves no place for refuses with remedies, and the next load is as ever.
#[test]
fn what_fits_nowhere_is_refused() {
    let cpu = exact(&"cpu".parse().unwrap());
    let options = LoadOptions { context: Some(64), chunk: 8, ..cpu };
    let refused = run(&options, FaultSpec::Alloc(3), 8, SampleParams::default());
    let error = refused.err().expect("the planner has nothing smaller to offer");
    println!("{error}");
    assert!(matches!(&error, Error::Refused(refusal) if !refusal.remedies.is_empty()), "{error}");
    assert!(error.to_string().contains("--kv-cache q8"), "{error}");
    // The planner, asked apart: a byte less than what was planned does not do.
    let planned = halfbyte::plan(&stories(), &options, &mut Silent).unwrap();
    let bytes = planned.devices.iter().find(|device| device.device == "cpu").unwrap().planned_bytes;
    for (limit, fits) in [(bytes, true), (bytes - 1, false)] {
        let options = LoadOptions { max_memory: [("cpu".to_owned(), limit)].into(), ..options.clone() };
        assert_eq!(halfbyte::plan(&stories(), &options, &mut Silent).unwrap().fits, fits);
    }
    assert!(run(&options, NEVER, 8, SampleParams::default()).is_ok());
}
