//! Blocks on backends: reserved, filled, compiled, and run one after the other.

use halfbyte_backend::{
    Answer, Backend, Caps, Fault, Footprint, Input, Kind, Layout, Output, Place, Program, Rows, Slot,
    StepCost, Stretch, Ticket, WeightSource,
};
use std::ops::Range;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::{Blueprint, Initialized, ModelError};

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

/// A model that runs: its blocks on one or more backends, in order.
///
/// Dropping it frees everything that it reserved; [`Engine::release`] also waits for what is running.
pub struct Engine {
    blueprint: Blueprint,
    stages: Vec<Stage>,
    caps: Caps,
    /// What each sequence's cache holds, by a number that is never given twice.
    claims: Vec<u64>,
}

/// Consecutive blocks on one backend.
struct Stage {
    backend: Rc<dyn Backend>,
    blocks: Range<usize>,
    stretch: Stretch,
    slots: Vec<Slot>,
    program: Option<Box<dyn Program>>,
}

impl Drop for Stage {
    fn drop(&mut self) {
        // A program may refer to the slots.
        self.program = None;
        self.backend.release(&self.slots);
    }
}

impl Stage {
    fn name(&self) -> &str {
        &self.backend.info().name
    }

    async fn compile(&mut self, caps: Caps) -> Result<(), Fault> {
        self.program = Some(self.backend.compile(&self.stretch, &self.slots, caps).await?);
        Ok(())
    }

    fn program(&mut self) -> Result<&mut Box<dyn Program>, Fault> {
        self.program.as_mut().ok_or_else(|| Fault::Internal("a stage that was not compiled".into()))
    }
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
        placement: Vec<(Rc<dyn Backend>, Range<usize>)>,
        caps: Caps,
        source: &dyn WeightSource,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Self, ModelError> {
        check_placement(&blueprint, placement.iter().map(|(_, range)| range))?;
        let caps = at_least_one(caps);
        let mut stages = Vec::with_capacity(placement.len());
        for (backend, blocks) in placement {
            let stretch = blueprint.stretch(blocks.clone());
            stretch.check()?;
            let slots = backend.reserve(&stretch.wants).await?;
            stages.push(Stage { backend, blocks, stretch, slots, program: None });
        }
        let source = Initialized::new(source, &blueprint.initialized, blueprint.deviation);
        fill(&stages, &source, progress).await?;
        for stage in &mut stages {
            stage.compile(caps).await?;
        }
        let claims = vec![0; blueprint.sequences];
        Ok(Self { blueprint, stages, caps, claims })
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
        for stage in &mut self.stages {
            stage.compile(self.caps).await?;
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
        Ok(*claim)
    }

    /// Whether the sequence's cache still holds what was claimed.
    pub(crate) fn holds(&self, sequence: u32, claim: u64) -> bool {
        claim != 0 && self.claims.get(sequence as usize) == Some(&claim)
    }

    /// Which device runs which blocks, in order: `(device, blocks)`.
    pub fn placement(&self) -> impl Iterator<Item = (&str, Range<usize>)> {
        self.stages.iter().map(|stage| (stage.name(), stage.blocks.clone()))
    }

    /// Whether one device runs everything, so that a chosen token can feed the next step on it without
    /// being read.
    pub fn feeds_back(&self) -> bool {
        self.stages.len() == 1
    }

    /// Starts one submission on an engine of one stage; the ticket needs not be awaited before the next.
    ///
    /// # Errors
    /// [`Fault::Internal`] if there are several stages; what the program says.
    pub fn submit(&mut self, rows: &Rows<'_>) -> Result<Ticket, Fault> {
        match self.stages.as_mut_slice() {
            [stage] => stage.program()?.submit(rows),
            stages => Err(Fault::Internal(format!("one submission to {} stages", stages.len()))),
        }
    }

    /// Runs rows through all stages; hidden states are read from each and passed to the next.
    ///
    /// # Errors
    /// What a program says.
    pub async fn forward(&mut self, rows: &Rows<'_>) -> Result<Answer, Fault> {
        self.start(rows).await?.await
    }

    /// [`forward`](Self::forward) up to the last stage's submission, whose ticket is returned.
    async fn start(&mut self, rows: &Rows<'_>) -> Result<Ticket, Fault> {
        let Some((last, before)) = self.stages.split_last_mut() else {
            return Err(Fault::Internal("an engine without stages".into()));
        };
        let mut hidden: Option<Vec<f32>> = None;
        for stage in before {
            let input = hidden.as_deref().map_or(rows.input, Input::Hidden);
            let rows = Rows { input, places: rows.places, output: Output::Hidden };
            match stage.program()?.submit(&rows)?.await? {
                Answer::Hidden(values) => hidden = Some(values),
                other => {
                    return Err(Fault::Internal(format!("hidden states expected, not {}", name(&other))));
                }
            }
        }
        let input = hidden.as_deref().map_or(rows.input, Input::Hidden);
        last.program()?.submit(&Rows { input, ..*rows })
    }

    /// Runs `tokens` of one sequence from `position` on, in chunks of [`Caps::rows`]: the keys and values
    /// of all go into the cache, and the last token's row yields `last`'s answer.
    ///
    /// While the last stage runs a chunk, the stages before it run the next.
    pub(crate) async fn prefill(
        &mut self,
        sequence: u32,
        position: usize,
        tokens: &[u32],
        last: Last,
    ) -> Result<Answer, Fault> {
        let chunks = tokens.chunks(self.caps.rows);
        let count = chunks.len();
        let mut running: Option<Ticket> = None;
        for (index, chunk) in chunks.enumerate() {
            let places = places(sequence, position + index * self.caps.rows, chunk.len());
            let row = [(chunk.len() - 1) as u32];
            let output = match last {
                _ if index + 1 < count => Output::Nothing,
                Last::Logits => Output::Logits(&row),
                Last::Greedy => Output::Greedy(&row),
            };
            let ticket = self.start(&Rows { input: Input::Tokens(chunk), places: &places, output }).await?;
            if let Some(earlier) = running.replace(ticket) {
                earlier.await?;
            }
        }
        match running {
            Some(ticket) => ticket.await,
            None => Ok(Answer::Nothing),
        }
    }

    /// Dispatches and submissions so far, of all stages.
    pub fn counts(&self) -> (u64, u64) {
        let counts = self.stages.iter().filter_map(|stage| stage.program.as_ref()).map(|p| p.counts());
        counts.fold((0, 0), |(a, b), (dispatches, submissions)| (a + dispatches, b + submissions))
    }

    /// Compute passes so far, of all stages.
    pub fn passes(&self) -> u64 {
        self.stages.iter().filter_map(|stage| stage.program.as_ref()).map(|p| p.passes()).sum()
    }

    /// Runs one submission on an engine of one stage and says what each class of steps took on the device's
    /// clock; nothing if it has none.
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    pub async fn profile(&mut self, rows: &Rows<'_>) -> Result<Vec<StepCost>, Fault> {
        match self.stages.as_mut_slice() {
            [stage] => stage.program()?.profile(rows).await,
            _ => Ok(Vec::new()),
        }
    }

    /// Time of the host in calls of the driver, of an engine of one stage, since this was asked last; the first
    /// call begins to measure.
    pub fn driver_time(&mut self) -> Option<Duration> {
        match self.stages.as_mut_slice() {
            [stage] => stage.program.as_mut()?.driver_time(),
            _ => None,
        }
    }

    /// Planned and measured bytes of each device, in the order of the stages.
    ///
    /// # Errors
    /// What a layout says, which has said nothing while loading.
    pub fn footprints(&self) -> Result<Vec<DeviceFootprint>, Fault> {
        let mut devices: Vec<DeviceFootprint> = Vec::new();
        for stage in &self.stages {
            let layout = stage.backend.layout();
            let planned = Self::plan_footprint(&self.blueprint, layout, stage.blocks.clone(), &self.caps)?;
            match devices.iter_mut().find(|device| device.device == stage.name()) {
                Some(device) => device.planned.merge(&planned),
                None => {
                    let mut total = layout.resident();
                    total.merge(&planned);
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
        for mut stage in self.stages.drain(..) {
            if let Some(program) = &mut stage.program {
                // A device that was lost has nothing to wait for, and says so.
                _ = program.drain().await;
            }
        }
        self.claims.fill(0);
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
        let mut result = Ok(());
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

/// What is asked of the last row of a prefill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Last {
    /// `[vocabulary]`
    Logits,
    /// The token with the largest logit.
    Greedy,
}

/// `count` rows of one sequence from `position` on.
pub(crate) fn places(sequence: u32, position: usize, count: usize) -> Vec<Place> {
    let place = |at| Place { sequence, position: at as u32, token_type: 0 };
    (position..position + count).map(place).collect()
}

/// An answer's name, for messages.
pub(crate) fn name(answer: &Answer) -> &'static str {
    match answer {
        Answer::Nothing => "nothing",
        Answer::Hidden(_) => "hidden states",
        Answer::Logits(_) => "logits",
        Answer::Tokens(_) => "tokens",
    }
}

async fn fill(
    stages: &[Stage],
    source: &dyn WeightSource,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), ModelError> {
    // Rope tables and caches are ready once they are reserved.
    let mut uploads = Vec::new();
    for stage in stages {
        for (want, &slot) in stage.stretch.wants.iter().zip(&stage.slots) {
            if matches!(want.kind, Kind::Linear(_) | Kind::Norm(_)) {
                uploads.push((stage, want, slot, stage.backend.layout().want(&want.kind)?));
            }
        }
    }
    let total = uploads.iter().map(|&(.., bytes)| bytes).sum();
    let mut done = 0;
    for (stage, want, slot, bytes) in uploads {
        stage.backend.upload(slot, want, source).await?;
        done += bytes;
        progress(Progress { name: &want.name, device: stage.name(), bytes, done, total });
    }
    Ok(())
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
