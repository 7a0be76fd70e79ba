//! The ladder, down and up again: what must hold on a thousand random machines, and one story in figures.

mod synthetic;

use halfbyte_backend::KvType;
use halfbyte_placement::ladder::{
    Action, Bottom, Ladder, Setting, Shortfall, State, Variants, back, holds, next,
};
use halfbyte_placement::{Costs, Device, DeviceClass, Plan, Policy, Request, Streaming, Wanted, plan};
use proptest::prelude::*;
use std::cell::Cell;
use std::ops::Range;
use synthetic::{GIB, MIB, Model, device, within};

/// A model whose activations grow with the chunk and whose cache shrinks with its type.
#[derive(Debug)]
struct Variable(Model);

impl Variable {
    fn under(&self, setting: Setting) -> Model {
        let activations = self.0.activations.iter().map(|bytes| bytes * setting.chunk as u64 / 256).collect();
        let kv = self.0.kv * bits(setting.kv) / 16;
        Model { kv, activations, ..self.0.clone() }
    }
}

impl Variants for Variable {
    fn costs(&self, setting: Setting) -> Box<dyn Costs + '_> {
        Box::new(self.under(setting))
    }
}

fn bits(kv: KvType) -> u64 {
    match kv {
        KvType::F32 => 32,
        KvType::F16 => 16,
        KvType::Q8 => 8,
        KvType::Q4 => 4,
    }
}

const ASKED: Setting = Setting { chunk: 256, kv: KvType::F16 };

fn ladder(request: Request, allow_lossy: bool) -> Ladder {
    let lossy = if allow_lossy { vec![KvType::Q8, KvType::Q4] } else { Vec::new() };
    Ladder { request, chunks: vec![128, 32, 8], lossy }
}

fn top(devices: &[Device], model: &Variable, request: &Request) -> Option<State> {
    let plan = plan(devices, &model.under(ASKED), request).ok()?;
    Some(State { devices: devices.to_vec(), plan, setting: ASKED, released: false })
}

fn stages(plan: &Plan) -> Vec<(usize, Range<usize>)> {
    plan.stages.iter().map(|stage| (stage.device, stage.blocks.clone())).collect()
}

fn model() -> impl Strategy<Value = Variable> {
    (2_usize..7).prop_flat_map(|blocks| {
        let sizes = prop::collection::vec(1_000_u64..40_000, blocks);
        let activations = prop::collection::vec(0_u64..3_000, blocks);
        (sizes, 0_u64..12, activations, prop::collection::vec(0_u64..2_000, 4), any::<bool>()).prop_map(
            |(mut weights, kv, activations, resident, tied)| {
                if tied {
                    weights[activations.len() - 1] = weights[0];
                }
                let asked = Cell::new(0);
                let in_files = Vec::new();
                Variable(Model { weights, kv, activations, resident, tied, in_files, cannot: None, asked })
            },
        )
    })
}

/// One to three devices, some of which share memory.
fn machine() -> impl Strategy<Value = Vec<Device>> {
    let kind = prop_oneof![Just(DeviceClass::Cpu), Just(DeviceClass::Gpu), Just(DeviceClass::Gpu)];
    prop::collection::vec((kind, 20_000_u64..200_000, 1e6..1e9, 0..3_usize), 1..4).prop_map(|all| {
        let device = |(index, (kind, budget, rate, pool)): (usize, (DeviceClass, u64, f64, usize))| Device {
            name: format!("device:{index}"),
            pool: format!("pool {pool}"),
            budget,
            budget_source: "chance".into(),
            kind,
            emulated: false,
            upload: None,
            products: None,
            files: None,
            rate: Some(rate),
        };
        all.into_iter().enumerate().map(device).collect()
    })
}

/// All blocks once, within every budget.
fn check(state: &State, model: &Variable) -> Result<(), TestCaseError> {
    let stages = stages(&state.plan);
    let mut block = 0;
    for (_, range) in &stages {
        prop_assert_eq!(range.start, block);
        block = range.end;
    }
    prop_assert_eq!(block, model.0.blocks());
    let costs = model.under(state.setting);
    prop_assert!(within(&state.devices, &stages, &costs, state.plan.context), "over a budget: {state:?}");
    Ok(())
}

/// Whether anything fits without changing the text.
fn exact_fits(devices: &[Device], model: &Variable, request: &Request, kv: KvType) -> bool {
    [256, 128, 32, 8]
        .into_iter()
        .any(|chunk| plan(devices, &model.under(Setting { chunk, kv }), request).is_ok())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a device really holds, the ladder ends, in a plan that it holds or in a refusal that is true;
    /// no state comes twice, no budget is exceeded, and what changes the text comes after all that does not.
    #[test]
    fn it_ends_and_never_repeats_itself(
        devices in machine(),
        model in model(),
        truth in prop::collection::vec(0.0..1.2_f64, 3),
        shortfall_is_known in any::<bool>(),
        at_most in any::<bool>(),
        allow_lossy in any::<bool>(),
    ) {
        let context = if at_most { Wanted::AtMost(3000) } else { Wanted::Exactly(512) };
        let request = Request { context, min_context: 64, policy: Policy::Auto, streaming: Streaming::Never };
        let really: Vec<u64> =
            devices.iter().zip(&truth).map(|(device, share)| (device.budget as f64 * share) as u64).collect();
        let ladder = ladder(request, allow_lossy);
        let Some(mut state) = top(&devices, &model, &ladder.request) else { return Ok(()) };
        let mut seen = vec![state.clone()];
        for step in 0.. {
            check(&state, &model)?;
            let Some(stage) =
                state.plan.stages.iter().find(|stage| stage.footprint.total() > really[stage.device])
            else { break };
            let fits = shortfall_is_known.then_some(really[stage.device]);
            match next(&ladder, &model, &state, Shortfall { device: stage.device, fits }) {
                Ok((below, actions)) => {
                    prop_assert!(!seen.contains(&below), "again: {below:?}");
                    prop_assert!(!actions.is_empty() || below.devices != state.devices);
                    let lossy = actions.iter().any(|action| matches!(action, Action::Kv(_)));
                    prop_assert_eq!(lossy, below.setting.kv != state.setting.kv);
                    if lossy {
                        prop_assert!(allow_lossy);
                        let exact = exact_fits(&below.devices, &model, &ladder.request, state.setting.kv);
                        prop_assert!(!exact, "an exact rung was left out: {state:?}");
                    }
                    for (now, before) in below.devices.iter().zip(&state.devices) {
                        prop_assert!(now.budget <= before.budget);
                    }
                    seen.push(below.clone());
                    state = below;
                }
                Err(Bottom { devices, .. }) => {
                    let exact = exact_fits(&devices, &model, &ladder.request, state.setting.kv);
                    prop_assert!(!exact, "refused although something fits: {state:?}");
                    break;
                }
            }
            // By a sixteenth where nothing is known, and in one step where it is.
            prop_assert!(step < if shortfall_is_known { 12 } else { 250 }, "still climbing: {state:?}");
        }
    }

    /// When memory comes back, so do the blocks, in one step or in none, and never over a budget.
    #[test]
    fn it_leads_back(
        devices in machine(),
        model in model(),
        less in prop::collection::vec(0.3..1.0_f64, 3),
        again in prop::collection::vec(0.3..1.2_f64, 3),
    ) {
        let request = Request { context: Wanted::AtMost(3000), min_context: 64, policy: Policy::Auto, streaming: Streaming::Never };
        let ladder = ladder(request, false);
        let Some(home) = top(&devices, &model, &ladder.request) else { return Ok(()) };
        let mut state = home.clone();
        for (device, share) in less.iter().enumerate().take(devices.len()) {
            let fits = Some((devices[device].budget as f64 * share) as u64);
            match next(&ladder, &model, &state, Shortfall { device, fits }) {
                Ok((below, _)) => state = below,
                Err(_) => return Ok(()),
            }
        }
        let mut now = devices.clone();
        for (device, share) in now.iter_mut().zip(&again) {
            device.budget = device.budget.min((device.budget as f64 * share) as u64);
        }
        let returned = back(&ladder, &model, &state, &home, now.clone());
        let at = |state: &State| holds(&model, &State { devices: now.clone(), ..state.clone() });
        match returned {
            Some((above, actions)) => {
                check(&above, &model)?;
                prop_assert!(!actions.is_empty());
                prop_assert_eq!(&above.devices, &now);
                // It stays there: no going to and fro at the same budgets.
                prop_assert!(back(&ladder, &model, &above, &home, now.clone()).is_none(), "{above:?}");
            }
            None if at(&home) => prop_assert_eq!(stages(&state.plan), stages(&home.plan)),
            None => {}
        }
        let (all, _) = back(&ladder, &model, &state, &home, devices.clone()).unwrap_or((state, Vec::new()));
        prop_assert_eq!(stages(&all.plan), stages(&home.plan));
        prop_assert_eq!((all.plan.context, all.setting), (home.plan.context, home.setting));
    }
}

/// KV bytes of Llama-2-7B in f16: a token and layer.
const F16: u64 = 2 * 4096 * 2;

#[test]
fn a_gpu_that_shrinks_and_grows_again() {
    let devices = [
        device("cpu", DeviceClass::Cpu, 12 * GIB, Some(20e9)),
        device("wgpu:0", DeviceClass::Gpu, 7 * GIB, Some(200e9)),
    ];
    let model = Variable(Model::llama_2_7b(F16));
    let request = Request {
        context: Wanted::Exactly(2048),
        min_context: 0,
        policy: Policy::Auto,
        streaming: Streaming::Never,
    };
    let ladder = ladder(request, true);
    let home = top(&devices, &model, &ladder.request).unwrap();
    assert_eq!(stages(&home.plan), [(1, 0..34)]);
    let planned = home.plan.footprint(1).total();
    let short = |missing| Shortfall { device: 1, fits: Some(planned - missing) };

    // A few bytes less: fewer rows at once do it.
    let (chunked, actions) = next(&ladder, &model, &home, short(MIB)).unwrap();
    assert_eq!(actions, [Action::Chunk(128)]);
    assert_eq!(stages(&chunked.plan), [(1, 0..34)]);
    // More: the first blocks go to the CPU.
    let (moved, actions) = next(&ladder, &model, &home, short(300 * MIB)).unwrap();
    assert_eq!(actions, [Action::Move { blocks: 0..2, from: 1, to: 0 }]);
    // Of an unknown shortfall the first guess is that it was a moment's, the second a sixteenth.
    let unknown = Shortfall { device: 1, fits: None };
    let (tried, actions) = next(&ladder, &model, &moved, unknown).unwrap();
    assert_eq!((actions, stages(&tried.plan)), (vec![Action::Release], stages(&moved.plan)));
    let (lower, actions) = next(&ladder, &model, &tried, unknown).unwrap();
    assert_eq!(actions, [Action::Move { blocks: 2..5, from: 1, to: 0 }]);
    // The CPU is full as well: the cache shrinks, which was allowed.
    let full = State {
        devices: lower.devices.iter().map(|one| Device { budget: 9 * GIB / 4, ..one.clone() }).collect(),
        ..lower.clone()
    };
    let (lossy, actions) =
        next(&ladder, &model, &full, Shortfall { device: 1, fits: Some(9 * GIB / 4) }).unwrap();
    assert!(actions.contains(&Action::Kv(KvType::Q8)), "{actions:?}");
    assert_eq!(lossy.setting.kv, KvType::Q8);
    // A part of the memory is back, then all of it.
    let mut part = devices.to_vec();
    part[1].budget = planned - 150 * MIB;
    let (above, actions) = back(&ladder, &model, &lower, &home, part.clone()).unwrap();
    assert_eq!(actions, [Action::Move { blocks: 1..5, from: 0, to: 1 }]);
    assert_eq!(back(&ladder, &model, &above, &home, part), None);
    let (all, _) = back(&ladder, &model, &above, &home, devices.to_vec()).unwrap();
    assert_eq!(all.plan, home.plan);
    assert_eq!(back(&ladder, &model, &all, &home, devices.to_vec()), None);
}
