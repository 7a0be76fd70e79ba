//! What is planned is what is held, to the byte; and what was held is given back.

mod reference;

use halfbyte::{DeviceMap, LoadOptions, Silent};
use halfbyte_backend::{Backend, Caps};
use halfbyte_checkpoint::Checkpoint;
use halfbyte_inference::{CheckpointSource, Engine, Settings, build};
use reference::{Fixture, MODELS, path, setups};
use std::rc::Rc;

#[test]
fn planned_is_measured_for_every_model_and_device() {
    for setup in setups() {
        for model in MODELS {
            let fixture = Fixture::open(model);
            let options = setup.defaults();
            let plan = halfbyte::plan(&fixture.source(), &options, &mut Silent).unwrap();
            assert!(plan.fits);
            let mut model = fixture.load(&options);
            let rows = model.memory();
            assert_eq!(rows.len(), setup.devices.len());
            for row in &rows {
                let planned = plan.devices.iter().find(|device| device.device == row.device).unwrap();
                let what = format!("{} on {}", fixture.name, row.device);
                assert_eq!(row.planned_bytes, planned.planned_bytes, "{what}");
                assert_eq!(row.measured_bytes, planned.planned_bytes, "{what}");
            }
            // Nothing more is taken while it runs.
            model.logits(&fixture.ids("input_ids")).unwrap();
            for (before, after) in rows.iter().zip(model.memory()) {
                assert_eq!(before.measured_bytes, after.measured_bytes, "{}", fixture.name);
            }
        }
    }
}

/// A backend of each kind.
fn backends() -> Vec<Rc<dyn Backend>> {
    #[allow(unused_mut, reason = "only with the feature wgpu")]
    let mut backends: Vec<Rc<dyn Backend>> = vec![Rc::new(halfbyte_cpu::CpuBackend::new().unwrap())];
    #[cfg(feature = "wgpu")]
    {
        let options = halfbyte_wgpu::Options::default();
        let gpu = pollster::block_on(halfbyte_wgpu::WgpuBackend::open(0, options)).unwrap();
        backends.push(Rc::new(gpu));
    }
    backends
}

#[test]
fn dropping_a_model_returns_the_ledger_to_what_it_was() {
    let checkpoint = Checkpoint::open(&path("tests/fixtures/models/llama_mha")).unwrap();
    for backend in backends() {
        let before = backend.ledger().footprint();
        for _ in 0..3 {
            let blueprint = build(&checkpoint.config, &checkpoint.index, &Settings::default()).unwrap();
            let blocks = 0..blueprint.blocks.len();
            let caps = Caps { rows: 16, outputs: 4 };
            let source = CheckpointSource::new(&checkpoint);
            let placement = vec![(Rc::clone(&backend), blocks)];
            let engine =
                pollster::block_on(Engine::load(blueprint, placement, caps, &source, &mut |_| {})).unwrap();
            assert!(backend.ledger().footprint().total() > before.total());
            drop(engine);
            assert_eq!(backend.ledger().footprint(), before, "{}", backend.info().name);
        }
    }
}

/// The largest limit at which not all fits the GPU leads to a model on both, and is not exceeded.
#[test]
#[cfg(feature = "wgpu")]
fn layers_that_do_not_fit_the_gpu_run_on_the_cpu() {
    let fixture = Fixture::open("llama_mha");
    let with = |limit: u64| LoadOptions {
        device_map: DeviceMap::Sequential,
        max_memory: [("wgpu:0".to_owned(), limit)].into(),
        chunk: 8,
        ..LoadOptions::default()
    };
    let whole_fits = |limit: u64| {
        let plan = halfbyte::plan(&fixture.source(), &with(limit), &mut Silent).unwrap();
        plan.fits && plan.layers.iter().all(|layer| layer.device == "wgpu:0")
    };
    let (mut too_small, mut enough) = (0, 256 << 20);
    assert!(whole_fits(enough) && !whole_fits(too_small));
    while enough - too_small > 1 << 10 {
        let middle = too_small.midpoint(enough);
        if whole_fits(middle) { enough = middle } else { too_small = middle }
    }
    let mut model = fixture.load(&with(too_small));
    assert!(model.blocks_on("wgpu:0") > 0 && model.blocks_on("cpu") > 0, "{:?}", model.device_map());
    for row in model.memory() {
        assert_eq!(row.planned_bytes, row.measured_bytes);
        assert!(row.device != "wgpu:0" || row.measured_bytes <= too_small, "{row:?} of {too_small}");
    }
    let logits = model.logits(&fixture.ids("input_ids")).unwrap();
    let distance = reference::distance(&logits, &fixture.floats("logits.nf4dq"));
    assert!(distance < 5e-3, "{distance:e}");
}
