//! Devices that share memory.

mod synthetic;

use halfbyte_placement::{DeviceClass::*, Policy, Request, Streaming, Wanted, plan};
use std::cell::Cell;
use synthetic::{Model, device};

/// The way that uses the fewest bytes of a pool may be the one whose small budget closes it.
#[test]
fn a_small_budget_is_not_spent_on_a_large_pool() {
    let mut devices = [
        device("cpu:0", Cpu, 10, Some(1.0)),
        device("cpu:1", Cpu, 100, Some(1.0)),
        device("wgpu:0", Gpu, 100, Some(1000.0)),
    ];
    for device in &mut devices {
        device.pool = "ram".into();
    }
    let model = Model {
        weights: vec![5, 90],
        kv: 0,
        activations: vec![0, 0],
        resident: vec![0, 1, 0],
        tied: false,
        in_files: Vec::new(),
        cannot: Some((2, 0)),
        asked: Cell::new(0),
    };
    let request = Request {
        context: Wanted::Exactly(1),
        min_context: 1,
        policy: Policy::Auto,
        streaming: Streaming::Never,
    };
    let plan = plan(&devices, &model, &request).unwrap();
    // cpu:0 would take 5 bytes, but then the three may hold 10 bytes together.
    assert_eq!(plan.stages.iter().map(|stage| stage.device).collect::<Vec<_>>(), [1, 2]);
}
