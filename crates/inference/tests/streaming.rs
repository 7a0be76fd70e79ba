//! Layers that are brought to another device for long prompts: the same text, to the bit where both are the CPU.

mod fixture;

use fixture::{Fixture, exact, nf4};
use halfbyte_backend::{Backend, Caps, FaultPlan, FaultSpec, Faulty, KvType};
use halfbyte_cpu::{CpuBackend, CpuOptions, Math};
use halfbyte_inference::{
    Blueprint, CheckpointSource, Engine, Flow, GenerateOptions, ModelError, Placement, Session, Settings,
    Stream, generate, generate_batch, logits,
};
use pollster::block_on;
use std::rc::Rc;

/// One thread: there are several of these at once.
fn cpu(name: &str) -> Rc<dyn Backend> {
    let options = CpuOptions { name: name.into(), threads: Some(1), ..Default::default() };
    Rc::new(CpuBackend::with(options).unwrap())
}

/// An engine whose first `host` blocks live on the first device and stream to the second, if a prompt has
/// `from_rows` rows.
fn engine(
    fixture: &Fixture,
    blueprint: &Blueprint,
    [host, to]: [&Rc<dyn Backend>; 2],
    cut: usize,
    from_rows: Option<usize>,
    caps: Caps,
) -> Result<Engine, ModelError> {
    let placement: Placement = vec![(Rc::clone(host), 0..cut), (Rc::clone(to), cut..blueprint.blocks.len())];
    let stream = from_rows.map(|from_rows| Stream { to: Rc::clone(to), blocks: 1..cut, from_rows });
    let source = CheckpointSource::new(&fixture.checkpoint);
    let mut engine = Engine::unloaded(blueprint.clone());
    block_on(engine.rearrange_streaming(blueprint.clone(), placement, stream, caps, &source, &mut |_| {}))?;
    Ok(engine)
}

fn check_ledgers(engine: &Engine) {
    for device in engine.footprints().unwrap() {
        assert_eq!(device.planned, device.measured, "{}", device.device);
    }
}

/// A prompt, an answer, and a second turn whose prompt begins with both.
fn talk(engine: &mut Engine, prompt: &[u32]) -> Vec<u32> {
    let options = GenerateOptions { max_new_tokens: 8, ..GenerateOptions::default() };
    let mut session = Session::new(0);
    let mut said = prompt.to_vec();
    for _ in 0..2 {
        let text = block_on(generate(engine, &mut session, &said, &options, &mut |_| Flow::Continue));
        said.extend(text.unwrap().tokens);
        said.extend_from_slice(&prompt[..prompt.len().min(9)]);
    }
    said
}

/// Every family, every layer type, caches of every type, chunks that divide a prompt in many ways.
#[test]
fn streamed_prompts_give_the_text_of_those_that_are_not() {
    for model in
        ["llama_mha", "qwen2_bias", "gemma2_softcap", "gemma3_text", "mixtral_moe", "qwen3_moe", "gpt2"]
    {
        let fixture = Fixture::open(&format!("models/{model}"));
        for kv in [KvType::F32, KvType::F16, KvType::Q8, KvType::Q4] {
            let blueprint = fixture.blueprint(&Settings { kv, context: Some(64), ..exact(nf4(true)) });
            let (host, to) = (cpu("host"), cpu("to"));
            let layers = blueprint.blocks.len() - 2;
            for (cut, rows) in [(layers + 1, 5), (2, 64), (layers, 3)] {
                let caps = Caps { rows, outputs: 2 };
                let mut never = engine(&fixture, &blueprint, [&host, &to], cut, None, caps).unwrap();
                let wanted = talk(&mut never, &fixture.input());
                let wanted_logits = block_on(logits(&mut never, 0, &fixture.input())).unwrap();
                assert_eq!(never.streamed(), None);
                drop(never);
                let mut always = engine(&fixture, &blueprint, [&host, &to], cut, Some(2), caps).unwrap();
                check_ledgers(&always);
                assert_eq!(talk(&mut always, &fixture.input()), wanted, "{model} {kv:?} cut at {cut}");
                let brought = always.streamed().unwrap();
                assert!(brought >= cut as u64 - 1, "{model}: {brought} layers came");
                let found = block_on(logits(&mut always, 0, &fixture.input())).unwrap();
                assert_eq!(found, wanted_logits, "{model} {kv:?} cut at {cut}");
                check_ledgers(&always);
                block_on(always.set_caps(Caps { rows: rows + 1, outputs: 1 })).unwrap();
                check_ledgers(&always);
                assert_eq!(talk(&mut always, &fixture.input()), wanted, "{model} with other caps");
                drop(always);
                for backend in [&host, &to] {
                    assert_eq!(backend.ledger().footprint(), backend.layout().resident(), "{model}");
                }
            }
        }
    }
}

/// Layers that keep a window of positions, too.
#[test]
fn rings_stream() {
    for model in ["mistral_sw8", "gemma3_text"] {
        let fixture = Fixture::open(&format!("models/{model}"));
        let settings = Settings { kv: KvType::Q8, context: Some(90), ..exact(nf4(true)) };
        let whole = fixture.blueprint(&settings);
        let rings = fixture.blueprint(&Settings { rows: Some(5), ..settings });
        assert_ne!(whole.wants, rings.wants);
        let (host, to) = (cpu("host"), cpu("to"));
        let (cut, caps) = (whole.blocks.len() - 1, Caps { rows: 5, outputs: 2 });
        let mut never = engine(&fixture, &whole, [&host, &to], cut, None, caps).unwrap();
        let wanted = talk(&mut never, &fixture.input());
        drop(never);
        let mut always = engine(&fixture, &rings, [&host, &to], cut, Some(2), caps).unwrap();
        check_ledgers(&always);
        assert_eq!(talk(&mut always, &fixture.input()), wanted, "{model}");
        assert!(always.streamed().unwrap() >= cut as u64 - 1, "{model}");
    }
}

/// Prompts of a batch stream one by one; a step of the batch, a row of each, does not.
#[test]
fn batches_stream_their_prompts_only() {
    let fixture = Fixture::open("models/llama_gqa_tied_llama3rope");
    let settings = Settings { sequences: 3, context: Some(48), ..exact(nf4(true)) };
    let blueprint = fixture.blueprint(&settings);
    let (host, to) = (cpu("host"), cpu("to"));
    let input = fixture.input();
    let prompts: Vec<Vec<u32>> = vec![input.clone(), input[2..].to_vec(), input[..5].to_vec(), input.clone()];
    let options = GenerateOptions { max_new_tokens: 6, ..GenerateOptions::default() };
    let caps = Caps { rows: 4, outputs: 3 };
    let mut texts = Vec::new();
    for from_rows in [None, Some(2)] {
        let cut = blueprint.blocks.len() - 1;
        let mut engine = engine(&fixture, &blueprint, [&host, &to], cut, from_rows, caps).unwrap();
        let found = block_on(generate_batch(&mut engine, &prompts, &options, &mut |_, _| Flow::Continue));
        texts.push(found.unwrap().into_iter().map(|text| text.tokens).collect::<Vec<_>>());
        let brought = engine.streamed();
        let layers = cut as u64 - 1;
        // A model of so few layers may find some of them there from the prompt before.
        assert!(brought.is_none_or(|brought| (layers..=layers * 4).contains(&brought)), "{brought:?}");
    }
    assert_eq!(texts[0], texts[1]);
}

/// The threshold is of rows at once: a shorter prompt stays where the weights are.
#[test]
fn short_prompts_stay() {
    let fixture = Fixture::open("models/llama_mha");
    let blueprint = fixture.blueprint(&exact(nf4(true)));
    let (host, to) = (cpu("host"), cpu("to"));
    let caps = Caps { rows: 4, outputs: 1 };
    let input = fixture.input();
    let mut engine = engine(&fixture, &blueprint, [&host, &to], 3, Some(input.len()), caps).unwrap();
    let options = GenerateOptions { max_new_tokens: 2, ..GenerateOptions::default() };
    for (prompt, streams) in [(&input[1..], false), (&input[..], true)] {
        let mut session = Session::new(0);
        block_on(generate(&mut engine, &mut session, prompt, &options, &mut |_| Flow::Continue)).unwrap();
        assert_eq!(engine.streamed().unwrap() > 0, streams);
    }
}

/// A CPU whose rows are interleaved has the canonical bytes again.
#[test]
fn interleaved_rows_stream_too() {
    let fixture = Fixture::open("models/llama_mha");
    let blueprint = fixture.blueprint(&exact(nf4(true)));
    let fast =
        CpuOptions { name: "host".into(), math: Some(Math::Fast), threads: Some(1), ..Default::default() };
    let host: Rc<dyn Backend> = Rc::new(CpuBackend::with(fast).unwrap());
    let to = cpu("to");
    let caps = Caps { rows: 64, outputs: 64 };
    let mut engine =
        engine(&fixture, &blueprint, [&host, &to], blueprint.blocks.len() - 1, Some(2), caps).unwrap();
    let found = block_on(logits(&mut engine, 0, &fixture.input())).unwrap();
    assert!(engine.streamed().unwrap() > 0);
    // Exact arithmetic on the device that the layers came to.
    let distance = fixture::distance(&found, &fixture.floats("logits.nf4dq"));
    assert!(distance < 2e-5, "{distance:e}");
}

/// Any allocation may fail, at either device, and the device may be lost at any submission: nothing stays behind,
/// and the engine runs again once there is room.
#[test]
fn failures_leave_nothing_behind() {
    let fixture = Fixture::open("models/gemma2_softcap");
    let blueprint = fixture.blueprint(&Settings { context: Some(64), ..exact(nf4(true)) });
    let caps = Caps { rows: 5, outputs: 1 };
    let cut = blueprint.blocks.len() - 1;
    let never = FaultSpec::Alloc(u64::MAX);
    let run = |spec: FaultSpec, faulty_host: bool| {
        let plan = Rc::new(FaultPlan::new(spec));
        let faulty = |backend: Rc<dyn Backend>, is: bool| match is {
            true => Rc::new(Faulty::new(backend, Rc::clone(&plan))) as Rc<dyn Backend>,
            false => backend,
        };
        let plain = [cpu("host"), cpu("to")];
        let (host, to) =
            (faulty(Rc::clone(&plain[0]), faulty_host), faulty(Rc::clone(&plain[1]), !faulty_host));
        let loaded = engine(&fixture, &blueprint, [&host, &to], cut, Some(2), caps);
        let text = loaded.and_then(|mut engine| {
            let options = GenerateOptions { max_new_tokens: 4, ..GenerateOptions::default() };
            let mut session = Session::new(0);
            let input = fixture.input();
            block_on(generate(&mut engine, &mut session, &input, &options, &mut |_| Flow::Continue))
        });
        for backend in &plain {
            assert_eq!(backend.ledger().footprint(), backend.layout().resident(), "{spec}");
        }
        (text.map(|text| text.tokens), plan.counts())
    };
    for faulty_host in [false, true] {
        let (text, counts) = run(never, faulty_host);
        text.unwrap();
        assert!(counts.allocations > 10 && counts.submissions > 4, "{counts:?}");
        for nth in 1..=counts.allocations {
            assert!(run(FaultSpec::Alloc(nth), faulty_host).0.is_err(), "alloc:{nth}");
        }
        for nth in 1..=counts.submissions {
            assert!(run(FaultSpec::DeviceLost(nth), faulty_host).0.is_err(), "device-lost:{nth}");
        }
    }
}

#[test]
fn a_stream_that_is_none_is_refused() {
    let fixture = Fixture::open("models/llama_mha");
    let blueprint = fixture.blueprint(&exact(nf4(true)));
    let (host, to) = (cpu("host"), cpu("to"));
    let source = CheckpointSource::new(&fixture.checkpoint);
    let blocks = blueprint.blocks.len();
    for (streamed, onto) in [(0..2, &to), (1..1, &to), (1..3, &to), (1..blocks, &to), (1..2, &host)] {
        let placement: Placement = vec![(Rc::clone(&host), 0..2), (Rc::clone(&to), 2..blocks)];
        let stream = Stream { to: Rc::clone(onto), blocks: streamed.clone(), from_rows: 2 };
        let mut engine = Engine::unloaded(blueprint.clone());
        let caps = Caps { rows: 4, outputs: 1 };
        let refused = block_on(engine.rearrange_streaming(
            blueprint.clone(),
            placement,
            Some(stream),
            caps,
            &source,
            &mut |_| {},
        ));
        assert!(matches!(refused, Err(ModelError::Invalid(_))), "{streamed:?}");
    }
}
