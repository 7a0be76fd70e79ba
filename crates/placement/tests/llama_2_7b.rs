//! Llama-2-7B in 4 bits on machines that people have: 32 layers of 100 MiB, embedding and head of
//! 250 MiB each, a KV cache of 0.5 MiB a token.

mod synthetic;

use halfbyte_placement::{
    Costs, Device, DeviceClass::*, Plan, Policy, Reason, Refusal, Request, Streaming, Wanted, max_context,
    plan, refusal_with,
};
use std::collections::BTreeMap;
use std::ops::Range;
use synthetic::{GIB, MIB, Model, device};

const F16: u64 = 16 << 10;
const Q8: u64 = F16 * 17 / 32;

fn cpu(budget: u64) -> Device {
    device("cpu", Cpu, budget, Some(20e9))
}

fn gpu(name: &str, budget: u64) -> Device {
    device(name, Gpu, budget, Some(250e9))
}

fn request(context: Wanted, policy: Policy) -> Request {
    Request { context, min_context: 512, policy, streaming: Streaming::Never }
}

fn auto(devices: &[Device], context: Wanted) -> Result<Plan, Box<Refusal>> {
    plan(devices, &Model::llama_2_7b(F16), &request(context, Policy::Auto))
}

/// Device names and their blocks.
fn stages<'a>(devices: &'a [Device], plan: &Plan) -> Vec<(&'a str, Range<usize>)> {
    plan.stages.iter().map(|stage| (devices[stage.device].name.as_str(), stage.blocks.clone())).collect()
}

#[test]
fn eight_gib_take_everything() {
    let devices = [cpu(12 * GIB), gpu("wgpu:0", 7 * GIB)];
    let plan = auto(&devices, Wanted::AtMost(4096)).unwrap();
    assert_eq!(stages(&devices, &plan), [("wgpu:0", 0..34)]);
    assert_eq!(plan.context, 4096);
    // 3,450 MiB are read for a token: the layers and the head.
    let expected = 250e9 / (3450 * MIB) as f64;
    let predicted = plan.predicted_tokens_per_second.unwrap();
    assert!((predicted - expected).abs() < 1e-9 * expected, "{predicted} is not {expected}");
}

#[test]
fn six_gib_shorten_the_context_to_stay_whole() {
    let devices = [cpu(12 * GIB), gpu("wgpu:0", 5427 * MIB)];
    let plan = auto(&devices, Wanted::AtMost(4096)).unwrap();
    assert_eq!(stages(&devices, &plan), [("wgpu:0", 0..34)]);
    // 5,427 - 3,700 - 45 MiB at 0.5 MiB a token are 3,364 tokens.
    assert_eq!(plan.context, 3328);
}

#[test]
fn four_gib_share_with_the_cpu() {
    let devices = [cpu(12 * GIB), gpu("wgpu:0", 3584 * MIB)];
    let plan = auto(&devices, Wanted::AtMost(4096)).unwrap();
    // At the floor of 2,048 tokens a layer is 132 MiB: 24 of them and the head.
    assert_eq!(stages(&devices, &plan), [("cpu", 0..9), ("wgpu:0", 9..34)]);
    // What 24 layers leave over is 37.04 MiB of KV cache each: 2,370 tokens.
    assert_eq!(plan.context, 2304);
    // At 4,096 tokens a layer is 164 MiB: 20 of them.
    assert_eq!(auto(&devices, Wanted::Exactly(4096)).unwrap().stages[1].blocks, 13..34);
}

#[test]
fn a_context_that_was_asked_for_is_kept() {
    let devices = [cpu(12 * GIB), gpu("wgpu:0", 5427 * MIB)];
    let plan = auto(&devices, Wanted::Exactly(4096)).unwrap();
    assert_eq!(plan.context, 4096);
    assert_eq!(plan.stages[0].device, 0, "some layers move to the CPU");
}

#[test]
fn the_embedding_is_the_first_to_leave_the_gpu() {
    let devices = [cpu(12 * GIB), gpu("wgpu:0", (3700 + 1024 + 45 - 1) * MIB)];
    let plan = auto(&devices, Wanted::Exactly(2048)).unwrap();
    assert_eq!(stages(&devices, &plan), [("cpu", 0..1), ("wgpu:0", 1..34)]);
}

#[test]
fn the_faster_gpu_takes_it_alone() {
    let mut devices = [cpu(12 * GIB), gpu("wgpu:0", 7 * GIB), gpu("wgpu:1", 7 * GIB)];
    devices[2].rate = Some(900e9);
    assert_eq!(stages(&devices, &auto(&devices, Wanted::Exactly(2048)).unwrap()), [("wgpu:1", 0..34)]);
}

#[test]
fn a_software_gpu_leaves_the_work_to_the_cpu() {
    let mut devices = [cpu(12 * GIB), gpu("wgpu:0", 12 * GIB)];
    devices[1].rate = Some(2e9);
    assert_eq!(stages(&devices, &auto(&devices, Wanted::AtMost(4096)).unwrap()), [("cpu", 0..34)]);
}

#[test]
fn without_rates_the_gpu_is_preferred_and_nothing_is_predicted() {
    let mut devices = [cpu(12 * GIB), gpu("wgpu:0", 7 * GIB)];
    devices[0].rate = None;
    devices[1].rate = Some(0.0);
    let plan = auto(&devices, Wanted::Exactly(2048)).unwrap();
    assert_eq!(stages(&devices, &plan), [("wgpu:0", 0..34)]);
    assert_eq!(plan.predicted_tokens_per_second, None);
}

#[test]
fn one_memory_is_counted_once() {
    let mut devices = [cpu(4 * GIB), gpu("wgpu:0", 3 * GIB)];
    assert_eq!(auto(&devices, Wanted::Exactly(2048)).unwrap().stages.len(), 2);
    devices[0].pool = "ram".into();
    devices[1].pool = "ram".into();
    let refusal = auto(&devices, Wanted::Exactly(2048)).unwrap_err();
    // The CPU alone could hold 4 GiB: 3,700 + 13 MiB of weights leave room for 766 tokens.
    assert_eq!(refusal.max_context, Some(512));
    assert!(matches!(refusal.reason, Reason::Memory(_)), "{refusal}");
    let plan = auto(&devices, Wanted::Exactly(512)).unwrap();
    assert_eq!(stages(&devices, &plan), [("cpu", 0..34)]);
}

#[test]
fn balanced_and_sequential_spread_as_they_say() {
    let devices = [cpu(12 * GIB), gpu("wgpu:0", 4 * GIB), gpu("wgpu:1", 4 * GIB)];
    let model = Model::llama_2_7b(F16);
    let balanced = plan(&devices, &model, &request(Wanted::Exactly(2048), Policy::Balanced)).unwrap();
    assert_eq!(stages(&devices, &balanced), [("wgpu:0", 0..17), ("wgpu:1", 17..34)]);
    // 4,096 - 250 - 44 MiB are 28 layers of 132 MiB.
    let sequential = plan(&devices, &model, &request(Wanted::Exactly(2048), Policy::Sequential)).unwrap();
    assert_eq!(stages(&devices, &sequential), [("wgpu:0", 0..29), ("wgpu:1", 29..34)]);
}

#[test]
fn two_cards_of_unlike_sizes_share_what_neither_holds() {
    let model = Model::llama_2_7b(F16);
    // Half each would be 2,406 MiB: the smaller one takes what it holds, 13 layers and an end.
    for (budgets, wanted) in [([2, 4], [0..14, 14..34]), ([4, 2], [0..20, 20..34])] {
        let devices = [cpu(12 * GIB), gpu("cuda:0", budgets[0] * GIB), gpu("cuda:1", budgets[1] * GIB)];
        let context = Wanted::Exactly(2048);
        let balanced = plan(&devices, &model, &request(context, Policy::Balanced)).unwrap();
        let [first, second] = wanted;
        assert_eq!(stages(&devices, &balanced), [("cuda:0", first), ("cuda:1", second)]);
        let auto = auto(&devices, context).unwrap();
        let names: Vec<&str> = stages(&devices, &auto).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["cuda:0", "cuda:1"], "{budgets:?}");
    }
}

#[test]
fn sequential_spills_its_first_blocks_to_the_cpu() {
    let devices = [cpu(12 * GIB), gpu("wgpu:0", GIB), gpu("wgpu:1", 2 * GIB)];
    let model = Model::llama_2_7b(F16);
    let plan = plan(&devices, &model, &request(Wanted::Exactly(2048), Policy::Sequential)).unwrap();
    // GPU 1 ends with the head: 2,048 - 250 - 45 MiB are 13 layers; GPU 0: 1,024 - 44 are 7.
    assert_eq!(stages(&devices, &plan), [("cpu", 0..13), ("wgpu:0", 13..20), ("wgpu:1", 20..34)]);
}

#[test]
fn a_refusal_names_the_block_the_bytes_and_what_fits() {
    let devices = [cpu(12 * GIB), gpu("wgpu:0", (3450 + 1024 + 157) * MIB)];
    let model = Model::llama_2_7b(F16);
    let small = Model::llama_2_7b(Q8);
    let request = request(Wanted::Exactly(2048), Policy::Only("wgpu:0".into()));
    let refusal = plan(&devices, &model, &request).unwrap_err();
    let alternatives: [(String, &dyn Costs); 1] = [("--kv-cache q8".into(), &small)];
    let refusal = refusal_with(refusal, &devices, &request, &alternatives);
    // 251 MiB: the head, and 1 MiB more of activations.
    assert_eq!(
        refusal.to_string(),
        "lm_head needs 251.0 MiB, wgpu:0 has 113.0 MiB of its 4.5 GiB budget left; \
         --context 1536, --device-map auto or --kv-cache q8 fits"
    );
    assert_eq!(refusal.max_context, Some(1536));
    assert_eq!(refusal.devices.len(), 1);
    assert_eq!(refusal.devices[0].shortfall, 138 * MIB);
}

#[test]
fn an_alternative_may_need_a_smaller_context_too() {
    let devices = [gpu("wgpu:0", 4 * GIB)];
    let (model, small) = (Model::llama_2_7b(F16), Model::llama_2_7b(Q8));
    let request = request(Wanted::Exactly(4096), Policy::Auto);
    let alternatives: [(String, &dyn Costs); 1] = [("--kv-cache q8".into(), &small)];
    let refusal =
        refusal_with(plan(&devices, &model, &request).unwrap_err(), &devices, &request, &alternatives);
    let options: Vec<_> = refusal.remedies.iter().map(|remedy| remedy.options.as_str()).collect();
    // The GPU stands first here, where its model has no staging: 4,096 - 3,713 MiB are 766 tokens in
    // f16 and 1,442 in q8.
    assert_eq!(options, ["--context 512", "--kv-cache q8 --context 1280"]);
    assert_eq!(max_context(&devices, &small, &Policy::Auto, 4096), Some(1280));
}

#[test]
fn a_context_of_no_use_is_no_remedy() {
    let devices = [gpu("wgpu:0", 4 * GIB)];
    let (model, small) = (Model::llama_2_7b(F16), Model::llama_2_7b(Q8));
    let request = Request {
        context: Wanted::AtMost(4096),
        min_context: 2048,
        policy: Policy::Auto,
        streaming: Streaming::Never,
    };
    let refusal = plan(&devices, &model, &request).unwrap_err();
    // Worth knowing, but less than what is of use; and the same costs again are no way out.
    assert_eq!(refusal.max_context, Some(512));
    let alternatives: [(String, &dyn Costs); 2] =
        [("--same".into(), &model), ("--kv-cache q8".into(), &small)];
    let refusal = refusal_with(refusal, &devices, &request, &alternatives);
    assert_eq!(refusal.remedies, []);
    let exactly = Request { context: Wanted::Exactly(2048), ..request };
    let refusal = plan(&devices, &model, &exactly).unwrap_err();
    let refusal = refusal_with(refusal, &devices, &exactly, &alternatives[..1]);
    assert_eq!(refusal.remedies.len(), 1, "only --context 512: {refusal}");
}

#[test]
fn device_maps_go_by_the_longest_prefix() {
    let devices = [cpu(12 * GIB), gpu("wgpu:0", 7 * GIB)];
    let model = Model::llama_2_7b(F16);
    let planned = |pairs: &[(&str, &str)]| {
        let map: BTreeMap<_, _> = pairs.iter().map(|&(key, to)| (key.to_owned(), to.to_owned())).collect();
        plan(&devices, &model, &request(Wanted::Exactly(2048), Policy::Given(map)))
    };
    let plan = planned(&[("", "cpu"), ("model.layers.1", "wgpu:0"), ("lm_head", "0")]).unwrap();
    let expected = [("cpu", 0..2), ("wgpu:0", 2..3), ("cpu", 3..33), ("wgpu:0", 33..34)];
    assert_eq!(stages(&devices, &plan), expected, "layer 1, and not 10 to 19");

    let message = |pairs: &[(&str, &str)]| planned(pairs).unwrap_err().to_string();
    assert_eq!(message(&[("", "cuda:3")]), "there is no device \"cuda:3\" here, only cpu, wgpu:0");
    assert_eq!(
        message(&[("model", "cpu")]),
        "the device map has no device for lm_head; add it, or \"\" for all the rest"
    );
    assert_eq!(
        message(&[("", "cpu"), ("transformer.h.0", "0")]),
        "the device map names \"transformer.h.0\", but the model has no such block; its blocks are \
         model.embed_tokens, model.layers.0, …, lm_head"
    );
}

#[test]
fn blocks_stay_off_a_device_that_cannot_run_them() {
    let devices = [cpu(12 * GIB), gpu("wgpu:0", 12 * GIB)];
    let model = Model { cannot: Some((1, 20)), ..Model::llama_2_7b(F16) };
    let plan_ = plan(&devices, &model, &request(Wanted::Exactly(2048), Policy::Auto)).unwrap();
    assert_eq!(stages(&devices, &plan_), [("cpu", 0..21), ("wgpu:0", 21..34)]);
    let only = request(Wanted::Exactly(2048), Policy::Only("wgpu:0".into()));
    let refusal = plan(&devices, &model, &only).unwrap_err();
    assert_eq!(refusal.to_string(), "device 1 cannot run model.layers.19; --device-map auto fits");
}

#[test]
fn nothing_to_place_or_nowhere_is_said() {
    let nowhere = auto(&[], Wanted::Exactly(1)).unwrap_err();
    assert_eq!(nowhere.to_string(), "there is no device to place the model on");
    let empty = Model { weights: Vec::new(), ..Model::llama_2_7b(F16) };
    let nothing = plan(&[cpu(GIB)], &empty, &request(Wanted::Exactly(1), Policy::Auto)).unwrap_err();
    assert_eq!(nothing.to_string(), "the model has no blocks");
}

#[test]
fn costs_are_asked_for_seldom() {
    let asked = |devices: &[Device], context| {
        let mut model = Model::llama_2_7b(F16);
        let layer = model.weights[1];
        model.weights.splice(1..1, vec![layer; 66]);
        model.activations.splice(1..1, vec![12 * MIB; 66]);
        plan(devices, &model, &request(context, Policy::Auto)).unwrap();
        model.asked.get()
    };
    let two = [cpu(30 * GIB), gpu("wgpu:0", 7 * GIB)];
    let four = [cpu(30 * GIB), gpu("wgpu:0", 3 * GIB), gpu("wgpu:1", 3 * GIB), gpu("wgpu:2", 3 * GIB)];
    let mut unified = two.clone();
    unified[0].pool = "wgpu:0".into();
    unified[1].budget = 30 * GIB;
    // Two hundred are the blocks' reads, on each of two devices.
    for (devices, context, most) in [
        (&two[..], Wanted::Exactly(2048), 250),
        (&two[..], Wanted::AtMost(4096), 300),
        (&unified[..], Wanted::AtMost(4096), 650),
        (&four[..], Wanted::AtMost(4096), 1500),
    ] {
        let asked = asked(devices, context);
        assert!(asked <= most, "{asked} questions for {} devices, {context:?}", devices.len());
    }
}
