//! What is planned is what is held, to the byte; and what was held is given back.

mod reference;

use halfbyte::{AutoModel, DeviceMap, LoadOptions, ModelSource, Silent};
use halfbyte_backend::{Backend, Caps};
use halfbyte_checkpoint::Checkpoint;
use halfbyte_inference::{CheckpointSource, Engine, Settings, build};
use reference::{Fixture, path};
use std::path::PathBuf;
use std::rc::Rc;

/// Every model among the fixtures, found by its `config.json`: a new one cannot be forgotten.
fn all_fixtures() -> Vec<PathBuf> {
    let folders = ["tests/fixtures/models", "tests/fixtures/bnb_ckpt"];
    let entries = folders.iter().flat_map(|folder| std::fs::read_dir(path(folder)).unwrap());
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    found.retain(|folder| folder.join("config.json").exists());
    found.sort();
    found
}

/// The first half of a model's blocks on the CPU, the others on the GPU.
fn halves(source: &ModelSource) -> DeviceMap {
    let options = LoadOptions { device_map: DeviceMap::Only("cpu".into()), ..LoadOptions::default() };
    let layers = halfbyte::plan(source, &options, &mut Silent).unwrap().layers;
    let half = layers.len() / 2;
    let device = |at: usize| if at < half { "cpu" } else { "wgpu:0" };
    DeviceMap::Given(
        layers.iter().enumerate().map(|(at, layer)| (layer.name.clone(), device(at).to_owned())).collect(),
    )
}

#[test]
fn planned_is_measured_for_every_fixture_and_placement() {
    let mut checked = 0;
    for folder in all_fixtures() {
        let source = ModelSource::Named(folder.to_str().unwrap().into());
        let mut maps = vec![(DeviceMap::Only("cpu".into()), 1)];
        if cfg!(feature = "wgpu") {
            maps.extend([(DeviceMap::Only("wgpu:0".into()), 1), (halves(&source), 2)]);
        }
        for (device_map, devices) in maps {
            let what = format!("{} on {device_map:?}", folder.display());
            let options = LoadOptions { device_map, chunk: 64, outputs: 64, ..LoadOptions::default() };
            let plan = halfbyte::plan(&source, &options, &mut Silent).unwrap();
            assert!(plan.fits, "{what}");
            let mut model = AutoModel::load(&source, &options, &mut Silent)
                .unwrap_or_else(|error| panic!("{what}: {error}"));
            let rows = model.loaded().memory();
            assert_eq!(rows.len(), devices, "{what}");
            for row in &rows {
                let planned = plan.devices.iter().find(|device| device.device == row.device).unwrap();
                assert_eq!(row.planned_bytes, planned.planned_bytes, "{what}: {row:?}");
                assert_eq!(row.measured_bytes, planned.planned_bytes, "{what}: {row:?}");
                for purpose in &row.purposes {
                    assert_eq!(purpose.planned_bytes, purpose.measured_bytes, "{what}: {row:?}");
                }
            }
            // Nothing more is taken while it runs.
            if let AutoModel::CausalLm(model) = &mut model {
                model.logits(&[1, 2, 3, 4, 5]).unwrap();
                for (before, after) in rows.iter().zip(model.memory()) {
                    assert_eq!(before.measured_bytes, after.measured_bytes, "{what}");
                }
            }
            checked += 1;
        }
    }
    println!("{checked} fixtures and placements");
    assert!(checked >= 20, "{checked}");
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
        ..reference::float32()
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
