//! Layers with a sliding window keep the window and a submission, not the whole context: the same text, wherever it
//! goes on.

mod fixture;

use fixture::{Fixture, distance, exact, nf4};
use halfbyte_backend::{Backend, Caps, Kind, KvType};
use halfbyte_cpu::CpuBackend;
use halfbyte_inference::{
    Blueprint, CheckpointSource, Engine, Flow, GenerateOptions, Session, Settings, generate, logits,
};
use pollster::block_on;
use std::rc::Rc;

/// The families whose layers all, or in part, see eight positions.
const MODELS: [&str; 3] = ["mistral_sw8", "gemma2_softcap", "gemma3_text"];
const CAPS: Caps = Caps { rows: 5, outputs: 5 };

/// What keeps every position, and what keeps twelve where eight are seen.
fn blueprints(fixture: &Fixture, kv: KvType) -> [Blueprint; 2] {
    let settings = Settings { context: Some(100), kv, ..exact(nf4(true)) };
    let rings = Settings { rows: Some(CAPS.rows), ..settings.clone() };
    [fixture.blueprint(&settings), fixture.blueprint(&rings)]
}

fn cache_bytes(blueprint: &Blueprint) -> u64 {
    let caches = blueprint.wants.iter().map(|want| match &want.kind {
        Kind::Kv(shape) => shape.bytes(),
        _ => 0,
    });
    caches.sum()
}

fn text(engine: &mut Engine, session: &mut Session, prompt: &[u32], tokens: usize) -> Vec<u32> {
    let options = GenerateOptions { max_new_tokens: tokens, ..GenerateOptions::default() };
    let said = block_on(generate(engine, session, prompt, &options, &mut |_| Flow::Continue)).unwrap();
    said.tokens
}

#[test]
fn the_text_is_that_of_whole_caches() {
    for model in MODELS {
        let fixture = Fixture::open(&format!("models/{model}"));
        for kv in [KvType::F32, KvType::Q4] {
            let [whole, rings] = blueprints(&fixture, kv);
            let windows = rings.wants.iter().filter(
                |want| matches!(&want.kind, Kind::Kv(shape) if shape.slots() == 12 && shape.capacity == 100),
            );
            assert!(windows.count() >= 2, "{model}");
            assert!(cache_bytes(&rings) * 2 < cache_bytes(&whole), "{model}");
            let (mut whole, mut rings) = (fixture.load(whole, CAPS), fixture.load(rings, CAPS));
            let input = fixture.input();
            let wanted = block_on(logits(&mut whole, 0, &input)).unwrap();
            assert_eq!(block_on(logits(&mut rings, 0, &input)).unwrap(), wanted, "{model} {kv:?}");
            let wanted = text(&mut whole, &mut Session::new(0), &input, 60);
            assert_eq!(text(&mut rings, &mut Session::new(0), &input, 60), wanted, "{model} {kv:?}");
        }
    }
}

/// A turn that goes back to where the window is still there goes on from it; one that goes back farther is computed anew.
#[test]
fn a_turn_goes_back_as_far_as_its_window_is_kept() {
    for model in MODELS {
        let fixture = Fixture::open(&format!("models/{model}"));
        let [whole, rings] = blueprints(&fixture, KvType::F32);
        let (mut whole, mut rings) = (fixture.load(whole, CAPS), fixture.load(rings, CAPS));
        let input = fixture.input();
        for (kept, reused) in [(30, 30), (25, 25), (24, 0), (3, 0)] {
            let mut long = input.iter().cycle().take(30).copied().collect::<Vec<_>>();
            let mut session = Session::new(0);
            block_on(session.extend(&mut rings, &long)).unwrap();
            long.truncate(kept);
            long.extend([9, 8, 7, 6, 5, 4, 3]);
            assert_eq!(session.reusable(&rings, &long), reused, "{model}: back to {kept}");
            let found = block_on(session.extend(&mut rings, &long)).unwrap();
            let wanted = block_on(Session::new(0).extend(&mut whole, &long)).unwrap();
            assert!(distance(&found, &wanted) < 1e-6, "{model}: back to {kept}");
            let more = text(&mut rings, &mut session, &long, 9);
            assert_eq!(more, text(&mut whole, &mut Session::new(0), &long, 9), "{model}: back to {kept}");
        }
        // What is shorter than a ring is all there.
        let mut session = Session::new(0);
        block_on(session.extend(&mut rings, &input[..12])).unwrap();
        assert_eq!(session.reusable(&rings, &input[..2]), 1);
    }
}

/// Rings follow their layers to another device and back, in the middle of a text.
#[test]
fn rings_move_with_their_layers() {
    for model in MODELS {
        let fixture = Fixture::open(&format!("models/{model}"));
        let [whole, rings] = blueprints(&fixture, KvType::Q8);
        let input = fixture.input();
        let mut session = Session::new(0);
        let mut whole = fixture.load(whole, CAPS);
        let wanted = text(&mut whole, &mut session, &input, 30);

        let devices: [Rc<dyn Backend>; 2] = [Rc::new(CpuBackend::scalar()), Rc::new(CpuBackend::scalar())];
        let blocks = rings.blocks.len();
        let source = CheckpointSource::new(&fixture.checkpoint);
        let mut engine = Engine::unloaded(rings.clone());
        let (mut session, mut said) = (Session::new(0), input.clone());
        for cut in [blocks - 1, 2, 3] {
            let placement = vec![(devices[0].clone(), 0..cut), (devices[1].clone(), cut..blocks)];
            let moved = block_on(engine.rearrange(rings.clone(), placement, CAPS, &source, &mut |_| {}));
            assert!(!moved.unwrap().caches_lost, "{model}");
            if said.len() > input.len() {
                assert!(session.reusable(&engine, &said) + 1 >= said.len(), "{model}: computed again");
            }
            said.extend(text(&mut engine, &mut session, &said.clone(), 10));
        }
        assert_eq!(said[input.len()..], wanted, "{model}");
    }
}
