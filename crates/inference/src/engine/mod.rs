//! Blocks on backends, in order: placed, moved, accounted for.

mod carried;
mod lanes;
mod parked;
mod stage;
mod streaming;
mod submit;

use crate::{Blueprint, Initialized, ModelError};
use carried::carry;
use halfbyte_backend::{Backend, Caps, Fault, Footprint, Layout, WeightSource};
use parked::Parked;
use stage::{Stage, fill};
use std::ops::Range;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use streaming::Streaming;
pub use streaming::{STREAMED_ROWS, Stream, StreamFootprints};
pub(crate) use submit::{Last, name, places};

/// Ranges of a blueprint's blocks, in order and without gaps, each with its backend.
pub type Placement = Vec<(Rc<dyn Backend>, Range<usize>)>;

/// How far loading has come: reported when a want has been filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The want, as in `model.layers.0.self_attn.qkv`.
    pub name: &'a str,
    /// The device that now holds it.
    pub device: &'a str,
    /// Its bytes there.
    pub bytes: u64,
    /// Bytes filled so far, on all devices.
    pub done: u64,
    /// Bytes to fill, on all devices.
    pub total: u64,
}

/// One device's account of an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceFootprint {
    /// The device, as in `wgpu:0`.
    pub device: String,
    /// What the engine was to take there, by the backend's [`Layout`], its own staging included.
    pub planned: Footprint,
    /// What the backend's ledger says that it holds: all of it, other engines' too.
    pub measured: Footprint,
}

/// What became of a model's bytes when it was placed anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moved {
    /// Bytes that stayed on their devices.
    pub kept: u64,
    /// Bytes that were reserved, and filled where they are weights.
    pub placed: u64,
    /// Whether a cache did not stay, so that sessions compute their tokens again.
    pub caches_lost: bool,
}

/// A model that runs: its blocks on one or more backends, in order.
///
/// Dropping it frees everything that it reserved; [`Engine::release`] also waits for what is running.
pub struct Engine {
    blueprint: Blueprint,
    /// Before the stages, whose slots it refers to.
    streaming: Option<Streaming>,
    stages: Vec<Stage>,
    /// What a placement that failed half way left on the devices, for the next one.
    parked: Parked,
    caps: Caps,
    /// What each sequence's cache holds, by a number that is never given twice.
    claims: Vec<u64>,
    /// How many positions of each sequence's cache were written since it was claimed.
    filled: Vec<usize>,
}

/// The next claim on a sequence, of any engine of this process; 0 is nobody's.
static CLAIM: AtomicU64 = AtomicU64::new(1);

impl Engine {
    /// Loads a model: reserves the wants of every stage, fills them from `source`, compiles.
    ///
    /// `placement`: ranges of the blueprint's blocks in order, without gaps; layers on the CPU belong
    /// first. `caps`: rows of a submission (the chunk of a prefill), and rows whose logits one may ask
    /// for. All stages are reserved before any byte is uploaded, so that a placement that does not fit
    /// fails at once.
    ///
    /// # Errors
    /// [`ModelError::Invalid`] for a placement with gaps; what a backend or the source says, after which
    /// nothing remains reserved.
    pub async fn load(
        blueprint: Blueprint,
        placement: Placement,
        caps: Caps,
        source: &dyn WeightSource,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Self, ModelError> {
        let mut engine = Self::unloaded(blueprint);
        let blueprint = engine.blueprint.clone();
        engine.rearrange(blueprint, placement, caps, source, progress).await?;
        Ok(engine)
    }

    /// An engine that holds nothing yet: [`rearrange`](Self::rearrange) loads it.
    pub fn unloaded(blueprint: Blueprint) -> Self {
        let (claims, filled) = (vec![0; blueprint.sequences], vec![0; blueprint.sequences]);
        let caps = Caps { rows: 1, outputs: 1 };
        Self {
            blueprint,
            streaming: None,
            stages: Vec::new(),
            parked: Parked::default(),
            caps,
            claims,
            filled,
        }
    }

    /// Makes the engine live by another placement, for other caps, or with another context or KV type: all
    /// that `blueprint`, a blueprint of the same model, says.
    ///
    /// Nothing streams: that is [`rearrange_streaming`](Self::rearrange_streaming)'s.
    ///
    /// What runs is drained first. A want that its backend holds already stays where it is with what is in
    /// it, weights as well as keys and values; what no block needs any more is freed; only the rest is
    /// reserved, all of it before any byte is uploaded, and filled from `source`. If every cache stays or can
    /// follow its layer, so do the sessions; otherwise they compute their tokens again.
    ///
    /// # Errors
    /// As [`load`](Self::load). Then the engine is not [loaded](Self::is_loaded), but keeps what it has on
    /// its devices for the next call, which needs not upload it again.
    pub async fn rearrange(
        &mut self,
        blueprint: Blueprint,
        placement: Placement,
        caps: Caps,
        source: &dyn WeightSource,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Moved, ModelError> {
        self.rearrange_streaming(blueprint, placement, None, caps, source, progress).await
    }

    /// [`rearrange`](Self::rearrange), and from now on the layers of `stream` are brought to another device for long
    /// prompts. What that takes is reserved before any byte is uploaded, too.
    ///
    /// # Errors
    /// As [`rearrange`](Self::rearrange), and [`ModelError::Invalid`] for a stream that does not fit the placement.
    pub async fn rearrange_streaming(
        &mut self,
        blueprint: Blueprint,
        placement: Placement,
        stream: Option<Stream>,
        caps: Caps,
        source: &dyn WeightSource,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Moved, ModelError> {
        check_placement(&blueprint, placement.iter().map(|(_, range)| range))?;
        self.park().await;
        self.blueprint = blueprint;
        self.caps = at_least_one(caps);
        let mut stages = Vec::with_capacity(placement.len());
        let placed = self.place(placement, stream, &mut stages, source, progress).await;
        match placed {
            Ok(moved) => {
                self.stages = stages;
                if moved.caches_lost || self.claims.len() != self.blueprint.sequences {
                    self.lose_caches();
                }
                Ok(moved)
            }
            Err(error) => {
                self.lose_caches();
                stages.into_iter().for_each(|stage| self.parked.take_in(stage));
                Err(error)
            }
        }
    }

    /// Makes `stages` of what is parked and what is to be had from `source`.
    async fn place(
        &mut self,
        placement: Placement,
        stream: Option<Stream>,
        stages: &mut Vec<Stage>,
        source: &dyn WeightSource,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Moved, ModelError> {
        let mut moved = Moved::default();
        for (backend, blocks) in placement {
            let stretch = self.blueprint.stretch(blocks.clone());
            stretch.check()?;
            let slots = stretch.wants.iter().map(|want| self.parked.find(&backend, want)).collect();
            stages.push(Stage { backend, blocks, stretch, slots, program: None });
        }
        let carried = carry(&self.parked, stages, &self.filled).await;
        // What leaves a device makes room for what comes to it.
        self.parked.release();
        for stage in stages.iter_mut() {
            stage.reserve(&mut moved).await?;
        }
        let streaming = match stream {
            Some(stream) => Some(Streaming::new(&self.blueprint, stages, stream, self.caps).await?),
            None => None,
        };
        let initialized = Initialized::new(source, &self.blueprint.initialized, self.blueprint.deviation);
        fill(stages, &initialized, progress).await?;
        moved.caches_lost &= carried.is_none();
        for cache in carried.into_iter().flatten() {
            cache.put(stages).await?;
        }
        for stage in stages {
            stage.compile(self.caps).await?;
        }
        self.streaming = streaming;
        Ok(moved)
    }

    /// Waits for what is running and frees the programs; what the slots hold stays for the next placement.
    async fn park(&mut self) {
        if let Some(mut streaming) = self.streaming.take() {
            _ = streaming.drain().await;
        }
        for mut stage in self.stages.drain(..) {
            if let Some(mut program) = stage.program.take() {
                // A device that was lost has nothing to wait for, and says so.
                _ = program.drain().await;
            }
            self.parked.take_in(stage);
        }
    }

    /// Frees everything that is held on `backend`, which is gone; the engine is not loaded after it, but
    /// keeps what other devices hold.
    pub async fn forget(&mut self, backend: &Rc<dyn Backend>) {
        self.park().await;
        self.lose_caches();
        self.parked.forget(backend);
    }

    /// Sessions compute their tokens again: what the caches hold is not to be relied on.
    pub fn lose_caches(&mut self) {
        self.claims = vec![0; self.blueprint.sequences];
        self.filled = vec![0; self.blueprint.sequences];
    }

    /// Notes that the cache of `sequence` is written up to `positions`.
    fn fills(&mut self, sequence: u32, positions: usize) {
        if let Some(filled) = self.filled.get_mut(sequence as usize) {
            *filled = positions.max(*filled);
        }
    }

    /// The model.
    pub fn blueprint(&self) -> &Blueprint {
        &self.blueprint
    }

    /// The most that one submission may carry.
    pub fn caps(&self) -> Caps {
        self.caps
    }

    /// Compiles anew for other caps, smaller ones mostly; weights and caches stay. The old programs are
    /// freed first. After a failure the engine runs again once this succeeds.
    ///
    /// # Errors
    /// What a device says while it is drained or compiles.
    pub async fn set_caps(&mut self, caps: Caps) -> Result<(), Fault> {
        self.caps = at_least_one(caps);
        for stage in &mut self.stages {
            if let Some(mut program) = stage.program.take() {
                program.drain().await?;
            }
        }
        let stream = self.streaming.take().map(|streaming| streaming.stream().clone());
        for stage in &mut self.stages {
            stage.compile(self.caps).await?;
        }
        if let Some(stream) = stream {
            let streaming = Streaming::new(&self.blueprint, &self.stages, stream, self.caps).await;
            self.streaming = Some(streaming.map_err(|error| match error {
                ModelError::Fault(fault) => fault,
                other => Fault::Internal(other.to_string()),
            })?);
        }
        Ok(())
    }

    /// Claims a sequence's cache for a new content: whoever held it before has lost it.
    ///
    /// # Errors
    /// [`ModelError::Invalid`] if the engine has no such sequence.
    pub(crate) fn claim(&mut self, sequence: u32) -> Result<u64, ModelError> {
        let held = self.claims.len();
        let Some(claim) = self.claims.get_mut(sequence as usize) else {
            return Err(ModelError::Invalid(format!("sequence {sequence} of an engine for {held}")));
        };
        *claim = CLAIM.fetch_add(1, Ordering::Relaxed);
        self.filled[sequence as usize] = 0;
        Ok(*claim)
    }

    /// Whether the sequence's cache still holds what was claimed.
    pub(crate) fn holds(&self, sequence: u32, claim: u64) -> bool {
        claim != 0 && self.claims.get(sequence as usize) == Some(&claim)
    }

    /// Whether the caches of `sequence` still hold what the row at `position` sees: rings forget what the rows after it
    /// were stored over.
    pub(crate) fn reaches(&self, sequence: u32, position: usize) -> bool {
        let filled = self.filled.get(sequence as usize).copied().unwrap_or(0);
        self.blueprint.windows().all(|(shape, window)| {
            filled.saturating_sub(shape.slots()) <= (position + 1).saturating_sub(window)
        })
    }

    /// Which device runs which blocks, in order: `(device, blocks)`.
    pub fn placement(&self) -> impl Iterator<Item = (&str, Range<usize>)> {
        self.stages.iter().map(|stage| (stage.name(), stage.blocks.clone()))
    }

    /// Planned and measured bytes of each device, in the order of the stages.
    ///
    /// # Errors
    /// What a layout says, which has said nothing while loading.
    pub fn footprints(&self) -> Result<Vec<DeviceFootprint>, Fault> {
        let mut devices: Vec<DeviceFootprint> = Vec::new();
        let streamed = self.stream_footprints()?;
        for stage in &self.stages {
            let layout = stage.backend.layout();
            let planned = Self::plan_footprint(&self.blueprint, layout, stage.blocks.clone(), &self.caps)?;
            match devices.iter_mut().find(|device| device.device == stage.name()) {
                Some(device) => device.planned.merge(&planned),
                None => {
                    let mut total = layout.resident();
                    total.merge(&planned);
                    if let (Some(streaming), Some(streamed)) = (&self.streaming, &streamed) {
                        if devices.is_empty() {
                            total.merge(&streamed.host);
                        }
                        if Rc::ptr_eq(&stage.backend, &streaming.stream().to) {
                            total.merge(&streamed.to);
                        }
                    }
                    devices.push(DeviceFootprint {
                        device: stage.name().to_owned(),
                        planned: total,
                        measured: stage.backend.ledger().footprint(),
                    });
                }
            }
        }
        Ok(devices)
    }

    fn stream_footprints(&self) -> Result<Option<StreamFootprints>, Fault> {
        let Some((streaming, first)) = self.streaming.as_ref().zip(self.stages.first()) else {
            return Ok(None);
        };
        let Stream { to, blocks, .. } = streaming.stream();
        let (host, to) = (first.backend.layout(), to.layout());
        StreamFootprints::of(&self.blueprint, first.blocks.clone(), blocks.clone(), host, to, &self.caps)
            .map(Some)
    }

    /// Bytes that blocks take on a device: what [`load`](Self::load) will allocate there for them. Pure:
    /// needs no device. What the device holds anyway ([`Layout::resident`]) is not among them.
    ///
    /// # Errors
    /// [`Fault::Unsupported`] if the device cannot hold or run them.
    pub fn plan_footprint(
        blueprint: &Blueprint,
        layout: &dyn Layout,
        blocks: Range<usize>,
        caps: &Caps,
    ) -> Result<Footprint, Fault> {
        blueprint.footprint(layout, blocks, caps)
    }

    /// Waits for what is running, then frees all weights, caches and programs; the engine can be asked what
    /// it was, but runs nothing any more. For a device that is gone or needed otherwise.
    pub async fn unload(&mut self) {
        self.park().await;
        self.parked.release();
        self.lose_caches();
    }

    /// Whether the engine has anything to run with.
    pub fn is_loaded(&self) -> bool {
        !self.stages.is_empty()
    }

    /// Waits for what is running, then frees everything.
    ///
    /// # Errors
    /// What a device says while it is drained; everything is freed all the same.
    pub async fn release(mut self) -> Result<(), Fault> {
        let mut result = match &mut self.streaming {
            Some(streaming) => streaming.drain().await,
            None => Ok(()),
        };
        for stage in &mut self.stages {
            let drained = stage.program()?.drain().await;
            result = result.and(drained);
        }
        result
    }
}

fn at_least_one(caps: Caps) -> Caps {
    Caps { rows: caps.rows.max(1), outputs: caps.outputs.max(1) }
}

fn check_placement<'a>(
    blueprint: &Blueprint,
    ranges: impl Iterator<Item = &'a Range<usize>>,
) -> Result<(), ModelError> {
    let mut at = 0;
    for range in ranges {
        if range.start != at || range.end <= range.start {
            let message = format!("a placement goes on with blocks {range:?} after block {at}");
            return Err(ModelError::Invalid(message));
        }
        at = range.end;
    }
    if at == blueprint.blocks.len() {
        return Ok(());
    }
    Err(ModelError::Invalid(format!("a placement of {at} blocks for a model of {}", blueprint.blocks.len())))
}
