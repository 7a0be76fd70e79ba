//! What must hold for every plan, on a thousand random machines each, against brute force.

mod synthetic;

use halfbyte_placement::{
    CONTEXT_FLOOR, CONTEXT_STEP, Costs, Device, DeviceClass, HANDOVER_SECONDS, Plan, Policy, Reason, Request,
    Streaming, Wanted, max_context, plan, refusal_with,
};
use proptest::prelude::*;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Range;
use synthetic::{Model, all_arrangements, stack, within};

fn model() -> impl Strategy<Value = Model> {
    (2_usize..7).prop_flat_map(|blocks| {
        (
            prop::collection::vec(1_000_u64..40_000, blocks),
            0_u64..12,
            prop::collection::vec(0_u64..3_000, blocks),
            prop::collection::vec(0_u64..2_000, 4),
            any::<bool>(),
            prop::option::weighted(0.15, (0_usize..4, 0..blocks)),
        )
            .prop_map(|(mut weights, kv, activations, resident, tied, cannot)| {
                if tied {
                    weights[activations.len() - 1] = weights[0];
                }
                let in_files = Vec::new();
                Model { weights, kv, activations, resident, tied, in_files, cannot, asked: Cell::new(0) }
            })
    })
}

/// One to four devices; `shared`: some of them share memory. One in five is a disk, whose memory is that of the
/// first CPU, and which reads slower than any other device.
fn machine(shared: bool) -> impl Strategy<Value = Vec<Device>> {
    let kind = prop_oneof![Just(DeviceClass::Cpu), Just(DeviceClass::Gpu), Just(DeviceClass::Gpu)];
    let kind = prop_oneof![4 => kind, 1 => Just(DeviceClass::Disk)];
    let one = (kind, 0_u64..160_000, 1e6..1e9, 0..3_usize, prop::option::of(0_u64..160_000));
    prop::collection::vec(one, 1..5).prop_map(move |all| {
        let mut devices: Vec<Device> = all
            .into_iter()
            .enumerate()
            .map(|(index, (kind, budget, rate, pool, files))| Device {
                name: format!("device:{index}"),
                pool: if shared { format!("pool {pool}") } else { format!("own {index}") },
                budget,
                budget_source: "chance".into(),
                kind,
                rate: Some(if kind == DeviceClass::Disk { rate / 1e3 } else { rate }),
                emulated: false,
                upload: None,
                products: None,
                files: files.filter(|_| kind == DeviceClass::Disk),
            })
            .collect();
        let host = devices.iter().find(|device| device.kind == DeviceClass::Cpu).cloned();
        if let Some(host) = host.filter(|_| shared) {
            for disk in devices.iter_mut().filter(|device| device.kind == DeviceClass::Disk) {
                (disk.pool, disk.budget) = (host.pool.clone(), host.budget);
            }
        }
        devices
    })
}

/// The model as these devices hold it: on disks it stays in its files.
fn on(devices: &[Device], model: &Model) -> Model {
    let is_disk = |&device: &usize| devices[device].kind == DeviceClass::Disk;
    Model { in_files: (0..devices.len()).filter(is_disk).collect(), ..model.clone() }
}

/// Arrangements that fit: those without a disk, or if there are none, those with one.
fn fitting(devices: &[Device], model: &Model) -> Vec<Vec<(usize, Range<usize>)>> {
    let mut all = all_arrangements(&stack(devices), 0..model.blocks());
    all.retain(|arrangement| within(devices, arrangement, model, CONTEXT));
    let on_disk = |arrangement: &[(usize, Range<usize>)]| {
        arrangement.iter().any(|(device, _)| devices[*device].kind == DeviceClass::Disk)
    };
    if all.iter().any(|arrangement| !on_disk(arrangement)) {
        all.retain(|arrangement| !on_disk(arrangement));
    }
    all
}

/// accelerate's order: from the last block backwards, the GPUs as they are listed, then CPUs, then disks take as
/// many blocks as fit; `None` if some are left over.
fn greedy(devices: &[Device], model: &Model) -> Option<Vec<(usize, Range<usize>)>> {
    let mut arrangement: Vec<(usize, Range<usize>)> = Vec::new();
    let mut end = model.blocks();
    for device in stack(devices).into_iter().rev() {
        let with = |start: usize| {
            let mut all = vec![(device, start..end)];
            all.extend(arrangement.iter().cloned());
            all
        };
        let start = (0..end).find(|&start| within(devices, &with(start), model, CONTEXT));
        if let Some(start) = start {
            arrangement = with(start);
            end = start;
        }
    }
    (end == 0).then_some(arrangement)
}

fn uses_disk(devices: &[Device], plan: &Plan) -> bool {
    plan.stages.iter().any(|stage| devices[stage.device].kind == DeviceClass::Disk)
}

fn exactly(context: usize, policy: Policy) -> Request {
    Request { context: Wanted::Exactly(context), min_context: 0, policy, streaming: Streaming::Never }
}

fn stages(plan: &Plan) -> Vec<(usize, Range<usize>)> {
    plan.stages.iter().map(|stage| (stage.device, stage.blocks.clone())).collect()
}

/// Seconds of a token, by the documented sum.
fn seconds(devices: &[Device], model: &Model, arrangement: &[(usize, Range<usize>)]) -> f64 {
    let reads = |(device, blocks): &(usize, Range<usize>)| -> f64 {
        // A block's weights are read whole, the embedding is only looked up.
        let bytes: u64 = blocks.clone().filter(|&block| block > 0).map(|block| model.weights[block]).sum();
        bytes as f64 / devices[*device].rate.unwrap()
    };
    arrangement.iter().map(reads).sum::<f64>() + HANDOVER_SECONDS * (arrangement.len() - 1) as f64
}

/// The value of Sequential and Balanced, smaller is better.
fn value(
    devices: &[Device],
    model: &Model,
    balanced: bool,
    arrangement: &[(usize, Range<usize>)],
) -> Vec<f64> {
    let count = |kind| -> f64 {
        let of_kind = arrangement.iter().filter(|(device, _)| devices[*device].kind == kind);
        of_kind.map(|(_, blocks)| blocks.len() as f64).sum()
    };
    let mut value = vec![count(DeviceClass::Disk), count(DeviceClass::Cpu)];
    if balanced {
        let square = |(device, blocks): &(usize, Range<usize>)| -> f64 {
            let one = |block| model.stretch(*device, block..block + 1, CONTEXT).unwrap().total() as f64;
            blocks.clone().map(one).sum::<f64>().powi(2)
        };
        let gpus = arrangement.iter().filter(|(device, _)| devices[*device].kind == DeviceClass::Gpu);
        value.push(gpus.map(square).sum());
    } else {
        for gpu in (0..devices.len()).filter(|&device| devices[device].kind == DeviceClass::Gpu) {
            let blocks = arrangement.iter().find(|(device, _)| *device == gpu);
            value.push(-blocks.map_or(0.0, |(_, blocks)| blocks.len() as f64));
        }
    }
    value
}

const CONTEXT: usize = 512;

fn check_plan(devices: &[Device], model: &Model, plan: &Plan) -> Result<(), TestCaseError> {
    let stages = stages(plan);
    prop_assert!(within(devices, &stages, model, plan.context), "over a budget: {plan:?}");
    let mut next = 0;
    for stage in &plan.stages {
        prop_assert_eq!(stage.blocks.start, next);
        prop_assert!(stage.blocks.end > next);
        next = stage.blocks.end;
        let footprint = model.stretch(stage.device, stage.blocks.clone(), plan.context).unwrap();
        prop_assert_eq!(&stage.footprint, &footprint);
    }
    prop_assert_eq!(next, model.blocks());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Auto is as fast as the best of all placements, and refuses only where there is none.
    #[test]
    fn auto_equals_brute_force(devices in prop_oneof![machine(false), machine(true)], model in model()) {
        let model = on(&devices, &model);
        let best = fitting(&devices, &model)
            .iter()
            .map(|arrangement| seconds(&devices, &model, arrangement))
            .min_by(f64::total_cmp);
        match (plan(&devices, &model, &exactly(CONTEXT, Policy::Auto)), best) {
            (Ok(plan), Some(best)) => {
                check_plan(&devices, &model, &plan)?;
                let found = plan.predicted_tokens_per_second.map_or(0.0, f64::recip);
                prop_assert!((found - best).abs() <= 1e-9 * best, "{found} s, best is {best} s: {plan:?}");
            }
            (Err(refusal), None) => prop_assert!(!matches!(refusal.reason, Reason::Invalid(_))),
            (found, best) => prop_assert!(false, "found {found:?}, best {best:?}"),
        }
    }

    /// Auto is never slower than filling one device after the other, as accelerate does: GPUs first, then CPUs,
    /// then disks, each with as much as it takes of what is left, in the stack's order of blocks.
    #[test]
    fn auto_is_at_least_as_fast_as_greed(
        devices in prop_oneof![machine(false), machine(true)],
        model in model(),
    ) {
        let model = on(&devices, &model);
        if let Some(greedy) = greedy(&devices, &model) {
            let plan = plan(&devices, &model, &exactly(CONTEXT, Policy::Auto)).unwrap();
            check_plan(&devices, &model, &plan)?;
            let on_disk = greedy.iter().any(|(device, _)| devices[*device].kind == DeviceClass::Disk);
            // A disk is left out where that is possible, even if greed finds it a use.
            if uses_disk(&devices, &plan) == on_disk {
                let (ours, theirs) =
                    (seconds(&devices, &model, &stages(&plan)), seconds(&devices, &model, &greedy));
                prop_assert!(ours <= theirs * (1.0 + 1e-9), "{ours} s, greed takes {theirs} s: {greedy:?}");
            }
            prop_assert!(on_disk || !uses_disk(&devices, &plan));
        }
    }

    /// So are Sequential and Balanced by their own measures.
    #[test]
    fn other_policies_equal_brute_force(
        devices in prop_oneof![machine(false), machine(true)],
        model in model(),
        balanced in any::<bool>(),
    ) {
        let policy = if balanced { Policy::Balanced } else { Policy::Sequential };
        let model = on(&devices, &model);
        let best = fitting(&devices, &model)
            .iter()
            .map(|arrangement| value(&devices, &model, balanced, arrangement))
            .min_by(|a, b| a.partial_cmp(b).unwrap());
        match (plan(&devices, &model, &exactly(CONTEXT, policy)), best) {
            (Ok(plan), Some(best)) => {
                check_plan(&devices, &model, &plan)?;
                let found = value(&devices, &model, balanced, &stages(&plan));
                for (found, best) in found.iter().zip(&best) {
                    prop_assert!((found - best).abs() <= 1e-9 * best.abs(), "{found} is not {best}: {plan:?}");
                }
            }
            (Err(_), None) => {}
            (found, best) => prop_assert!(false, "found {found:?}, best {best:?}"),
        }
    }

    /// More memory never refuses what fitted, and never predicts a slower model.
    #[test]
    fn more_memory_never_hurts(
        devices in prop_oneof![machine(false), machine(true)],
        model in model(),
        more in prop::collection::vec(0_u64..60_000, 4),
        most in 1_usize..6_000,
        min_context in 0_usize..3_000,
    ) {
        let model = on(&devices, &model);
        let mut larger = devices.clone();
        for (device, more) in larger.iter_mut().zip(&more) {
            device.budget += more;
        }
        // A disk is left as soon as that is possible, whatever the rates say; otherwise rates decide.
        let leaves = |before: &Plan, after: &Plan| uses_disk(&devices, before) && !uses_disk(&devices, after);
        if let Ok(before) = plan(&devices, &model, &exactly(CONTEXT, Policy::Auto)) {
            let after = plan(&larger, &model, &exactly(CONTEXT, Policy::Auto)).unwrap();
            prop_assert!(uses_disk(&devices, &before) || !uses_disk(&devices, &after));
            if !leaves(&before, &after) {
                prop_assert!(after.predicted_tokens_per_second >= before.predicted_tokens_per_second);
            }
        }
        // With a context of choice: first towards the floor, then for speed.
        let request = Request { context: Wanted::AtMost(most), min_context, policy: Policy::Auto, streaming: Streaming::Never };
        if let Ok(before) = plan(&devices, &model, &request) {
            check_plan(&devices, &model, &before)?;
            prop_assert!(before.context <= most && before.context >= min_context.min(most));
            let after = plan(&larger, &model, &request).unwrap();
            let floor = CONTEXT_FLOOR.clamp(min_context.min(most), most);
            prop_assert!(uses_disk(&devices, &before) || !uses_disk(&devices, &after));
            if leaves(&before, &after) {
                return Ok(());
            }
            prop_assert!(after.context.min(floor) >= before.context.min(floor));
            if after.context.min(floor) == before.context.min(floor) {
                prop_assert!(after.predicted_tokens_per_second >= before.predicted_tokens_per_second);
            }
        }
    }

    /// The largest context fits, and the next one does not.
    #[test]
    fn max_context_is_the_largest(
        devices in prop_oneof![machine(false), machine(true)],
        model in model(),
        upper in 1_usize..9_000,
    ) {
        let model = on(&devices, &model);
        let fits = |context| {
            all_arrangements(&stack(&devices), 0..model.blocks())
                .iter()
                .any(|arrangement| within(&devices, arrangement, &model, context))
        };
        match max_context(&devices, &model, &Policy::Auto, upper) {
            Some(context) => {
                prop_assert!(context == upper || (context < upper && context % CONTEXT_STEP == 0));
                prop_assert!(fits(context));
                prop_assert!(context == upper || !fits((context + CONTEXT_STEP).min(upper)));
            }
            None => prop_assert!(!fits(CONTEXT_STEP.min(upper))),
        }
    }

    /// What a refusal says is true: its shortfalls are exact and its remedies fit.
    #[test]
    fn refusals_tell_the_truth(
        devices in machine(false),
        model in model(),
        context in 1_usize..6_000,
        less in 0.0..1.0_f64,
    ) {
        let mut devices = devices;
        for disk in devices.iter_mut().filter(|device| device.files.is_some()) {
            // Where both memory and files are short, more of one alone does not do.
            disk.budget = 1 << 40;
        }
        let model = on(&devices, &model);
        let request = exactly(context, Policy::Auto);
        if let Err(refusal) = plan(&devices, &model, &request) {
            let small = Model { kv: (model.kv as f64 * less) as u64, ..model.clone() };
            let alternatives: [(String, &dyn Costs); 1] = [("--kv-cache q8".into(), &small)];
            let refusal = refusal_with(refusal, &devices, &request, &alternatives);
            prop_assert_eq!(refusal.context, context);
            for remedy in &refusal.remedies {
                let costs = if remedy.options.contains("--kv-cache") { &small } else { &model };
                prop_assert!(plan(&devices, costs, &exactly(remedy.context, Policy::Auto)).is_ok());
            }
            for row in refusal.devices.iter().filter(|row| row.unsupported.is_none()) {
                prop_assert!(row.shortfall > 0);
                prop_assert_eq!(row.needed, row.budget + row.shortfall);
                for (spare, fits) in [(0, true), (1, false)] {
                    let mut larger = devices.clone();
                    let device = larger.iter_mut().find(|device| device.name == row.device).unwrap();
                    match device.files.as_mut().filter(|_| row.budget_source == "its limit of files") {
                        Some(files) => *files += row.shortfall - spare,
                        None => device.budget += row.shortfall - spare,
                    }
                    prop_assert_eq!(plan(&larger, &model, &request).is_ok(), fits, "{:?} less {}", row, spare);
                }
            }
            if let Reason::Memory(misfit) = &refusal.reason {
                prop_assert!(misfit.bytes > misfit.left, "{misfit:?}");
            }
        }
    }

    /// A device map is followed to the letter, or refused.
    #[test]
    fn device_maps_are_followed(
        devices in prop_oneof![machine(false), machine(true)],
        model in model(),
        choice in prop::collection::vec(0_usize..4, 7),
    ) {
        let model = on(&devices, &model);
        let target = |block: usize| choice[block] % devices.len();
        let map: BTreeMap<String, String> =
            (0..model.blocks()).map(|block| (model.name(block), devices[target(block)].name.clone())).collect();
        match plan(&devices, &model, &exactly(CONTEXT, Policy::Given(map))) {
            Ok(plan) => {
                check_plan(&devices, &model, &plan)?;
                for block in 0..model.blocks() {
                    prop_assert_eq!(plan.device_of(block), Some(target(block)));
                }
            }
            Err(refusal) => {
                let mut runs: Vec<(usize, Range<usize>)> = Vec::new();
                for block in 0..model.blocks() {
                    match runs.last_mut() {
                        Some((device, run)) if *device == target(block) => run.end = block + 1,
                        _ => runs.push((target(block), block..block + 1)),
                    }
                }
                prop_assert!(!within(&devices, &runs, &model, CONTEXT), "{refusal}");
                prop_assert!(!matches!(refusal.reason, Reason::Invalid(_)));
            }
        }
    }
}
