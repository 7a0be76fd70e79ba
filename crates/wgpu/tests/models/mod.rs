//! Whole models of the repository on the last adapter of this machine.

#![allow(dead_code, reason = "each test uses a part of it")]

use halfbyte_backend::{Backend, Caps, KvType, WeightSource};
use halfbyte_checkpoint::Checkpoint;
use halfbyte_inference::{CheckpointSource, Engine, Settings, build};
use halfbyte_quant::QuantSpec;
use halfbyte_wgpu::{Options, WgpuBackend};
use pollster::block_on;
use std::path::Path;
use std::rc::Rc;

/// A model's folder in the repository.
pub fn open(folder: &str) -> Checkpoint {
    Checkpoint::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(folder)).unwrap()
}

/// A device opened with `options`.
pub fn device(options: Options) -> Rc<dyn Backend> {
    Rc::new(block_on(async {
        let devices = WgpuBackend::all().await.unwrap();
        WgpuBackend::open(devices.len() - 1, options).await.unwrap()
    }))
}

/// All of a model on one device.
pub fn load(
    checkpoint: &Checkpoint,
    source: &dyn WeightSource,
    quant: Option<QuantSpec>,
    kv: KvType,
    backend: Rc<dyn Backend>,
    rows: usize,
) -> Engine {
    load_for(checkpoint, source, Settings { quant, kv, ..Settings::default() }, backend, rows)
}

fn load_for(
    checkpoint: &Checkpoint,
    source: &dyn WeightSource,
    settings: Settings,
    backend: Rc<dyn Backend>,
    rows: usize,
) -> Engine {
    let blueprint = build(&checkpoint.config, &checkpoint.index, &settings).unwrap();
    let blocks = 0..blueprint.blocks.len();
    let caps = Caps { rows, outputs: rows };
    block_on(Engine::load(blueprint, vec![(backend, blocks)], caps, source, &mut |_| {})).unwrap()
}

/// [`load`] of what the checkpoint holds, with a cache in 32 bits.
pub fn exact(checkpoint: &Checkpoint, backend: Rc<dyn Backend>, rows: usize) -> Engine {
    let source = CheckpointSource::new(checkpoint);
    load(checkpoint, &source, Some(QuantSpec::default()), KvType::F32, backend, rows)
}

/// [`exact`] for so many sequences.
pub fn exact_for(checkpoint: &Checkpoint, backend: Rc<dyn Backend>, rows: usize, sequences: usize) -> Engine {
    let settings = Settings { kv: KvType::F32, sequences, ..Settings::default() };
    load_for(checkpoint, &CheckpointSource::new(checkpoint), settings, backend, rows)
}

/// [`exact`], in rings where layers see a window.
pub fn exact_in_rings(checkpoint: &Checkpoint, backend: Rc<dyn Backend>, rows: usize) -> Engine {
    let settings = Settings { kv: KvType::F32, rows: Some(rows), ..Settings::default() };
    load_for(checkpoint, &CheckpointSource::new(checkpoint), settings, backend, rows)
}
