//! A model on its devices: planned, loaded by the plan, accounted for.

use crate::devices::candidates;
use crate::four_bit_cache;
use crate::model_source::Model;
use crate::planning::{ModelCosts, Planning, caps};
use crate::witness::private_resident;
use crate::{Error, LoadOptions, Progress};
use halfbyte_backend::{Backend, Fault};
use halfbyte_checkpoint::Tokenizer;
use halfbyte_inference::{DeviceFootprint, Engine, ModelError, Task, families};
use halfbyte_placement::{Plan, after_failure};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::time::Instant;

/// Something that was not planned.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Event {
    /// The device where it happened.
    pub device: String,
    /// What happened, and what was done about it.
    pub text: String,
}

/// One device's memory: what was planned, what our ledger holds, what the system says.
#[derive(Debug, Clone, serde::Serialize)]
pub struct MemoryRow {
    /// The device.
    pub device: String,
    /// Bytes that the plan gave it.
    pub planned_bytes: u64,
    /// Bytes of all allocations on it, by its ledger.
    pub measured_bytes: u64,
    /// Bytes by an independent witness: for the CPU, the growth of this process's private resident memory
    /// since before loading. `None` where nothing tells.
    pub witnessed_bytes: Option<u64>,
}

/// A model on its devices, whatever it is for.
pub struct Loaded {
    pub(crate) engine: Engine,
    name: String,
    load_seconds: f64,
    events: Vec<Event>,
    planned: Vec<DeviceFootprint>,
    resident_before: Option<u64>,
    // Kept last: the engine gives its memory back to these when it is dropped.
    backends: Vec<Rc<dyn Backend>>,
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loaded").field("name", &self.name).field("device_map", &self.device_map()).finish()
    }
}

impl Loaded {
    /// Plans, then loads by the plan; when an allocation fails, by the next one.
    pub(crate) fn load(
        model: &Model,
        options: &LoadOptions,
        progress: &mut dyn Progress,
        start: Instant,
    ) -> Result<Self, Error> {
        note_settings(model, options, progress)?;
        pollster::block_on(async {
            let mut planning = Planning::new(model, options, candidates(options).await?)?;
            let cached = four_bit_cache::cached(model, options, &planning, progress)?;
            let model = cached.as_ref().unwrap_or(model);
            if cached.is_some() {
                planning = Planning::new(model, options, planning.candidates)?;
            }
            let resident_before = private_resident();
            let (engine, events) = load_by_plan(model, &planning, progress).await?;
            note_new_head(&engine, model, progress);
            Ok(Self {
                planned: engine.footprints()?,
                engine,
                name: model.name().to_owned(),
                load_seconds: start.elapsed().as_secs_f64(),
                events,
                resident_before,
                backends: planning.candidates.iter().map(|one| Rc::clone(&one.backend)).collect(),
            })
        })
    }

    /// The model's name: its directory, Hub id or shape.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Tokens that a text may have: for a decoder, a prompt and its continuation together.
    pub fn context(&self) -> usize {
        self.engine.blueprint().context
    }

    /// Seconds from the call to load to its return.
    pub fn load_seconds(&self) -> f64 {
        self.load_seconds
    }

    /// What happened while loading that was not planned.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// Blocks and their devices, as accelerate's `hf_device_map`.
    pub fn device_map(&self) -> BTreeMap<String, String> {
        let blocks = &self.engine.blueprint().blocks;
        self.engine
            .placement()
            .flat_map(|(device, range)| {
                blocks[range].iter().map(move |block| (block.name.clone(), device.to_owned()))
            })
            .collect()
    }

    /// How many blocks live on `device`.
    pub fn blocks_on(&self, device: &str) -> usize {
        self.engine.placement().filter(|(name, _)| *name == device).map(|(_, range)| range.len()).sum()
    }

    /// Planned, allocated and witnessed memory of each device that holds a part of the model.
    pub fn memory(&self) -> Vec<MemoryRow> {
        self.planned
            .iter()
            .map(|device| {
                let ledger = self.backends.iter().find(|backend| backend.info().name == device.device);
                let witnessed = private_resident().zip(self.resident_before);
                MemoryRow {
                    device: device.device.clone(),
                    planned_bytes: device.planned.total(),
                    measured_bytes: ledger.map_or(0, |backend| backend.ledger().footprint().total()),
                    witnessed_bytes: witnessed
                        .filter(|_| device.device == "cpu")
                        .map(|(now, before)| now.saturating_sub(before)),
                }
            })
            .collect()
    }

    /// Dispatches and submissions so far, `(dispatches, submissions)`.
    pub fn counts(&self) -> (u64, u64) {
        self.engine.counts()
    }
}

/// Refuses a model that cannot be made to do what is wanted, and says what to do with it.
pub(crate) fn expect(model: &Model, wanted: Task) -> Result<(), Error> {
    let found = families::task(model.config())?;
    if (found == Task::Generate) == (wanted == Task::Generate) {
        return Ok(());
    }
    let instead = match found {
        Task::Generate => "use `halfbyte run` or CausalLm",
        Task::ClassifySequence => "use `halfbyte classify` or SequenceClassifier",
        Task::ClassifyTokens => "use halfbyte_inference::classify, which labels every token",
        Task::Embed => "use Embedder, or `halfbyte classify` for a new head on it",
    };
    let architecture = model.config().architecture.clone();
    Err(ModelError::Task { architecture, found, wanted, instead: instead.into() }.into())
}

/// The model's tokenizer, if it came with one.
pub(crate) fn tokenizer(model: &Model) -> Result<Option<Tokenizer>, Error> {
    match model.checkpoint() {
        Some(checkpoint) if checkpoint.has_tokenizer() => Ok(Some(checkpoint.tokenizer()?)),
        _ => Ok(None),
    }
}

/// Says which tensors no checkpoint gave.
fn note_new_head(engine: &Engine, model: &Model, progress: &mut dyn Progress) {
    let drawn = &engine.blueprint().initialized;
    if !drawn.is_empty() {
        progress.note(&format!(
            "{} has no {}: newly initialized at random. Train the model on a task before its answers mean \
             anything.",
            model.name(),
            drawn.join(", ")
        ));
    }
}

/// Says which settings a checkpoint overrules.
fn note_settings(model: &Model, options: &LoadOptions, progress: &mut dyn Progress) -> Result<(), Error> {
    let Some(stored) = model.checkpoint().map(|one| one.config.quantization()).transpose()?.flatten() else {
        return Ok(());
    };
    let asked = options.quant.map_or_else(|| "none".to_owned(), |spec| spec.quant_type.to_string());
    let kept = stored.quant_type.to_string();
    if asked != kept {
        progress.note(&format!("{} is quantized already: it stays {kept}, not {asked}", model.name()));
    }
    Ok(())
}

/// Loads by the plan; when an allocation fails, by the next one.
async fn load_by_plan(
    model: &Model,
    planning: &Planning<'_>,
    progress: &mut dyn Progress,
) -> Result<(Engine, Vec<Event>), Error> {
    let mut devices = planning.devices();
    let costs = planning.costs();
    let mut plan = planning.plan(&devices, &costs)?;
    let mut events = Vec::new();
    loop {
        let fault = match load_plan(model, planning, &costs, &plan, progress).await {
            Ok(engine) => return Ok((engine, events)),
            Err(Error::Model(ModelError::Fault(fault @ Fault::OutOfMemory { .. }))) => fault,
            Err(error) => return Err(error),
        };
        let Fault::OutOfMemory { device, wanted, free, .. } = &fault else { return Err(fault.into()) };
        let Some(index) = devices.iter().position(|one| one.name == *device) else {
            return Err(fault.into());
        };
        let shortfall = free.map_or(0, |free| wanted.saturating_sub(free));
        let (lowered, next) = after_failure(&devices, &costs, &planning.request, &plan, index, shortfall);
        devices = lowered;
        plan = next.map_err(|refusal| planning.with_remedies(refusal, &devices))?;
        let moved = plan
            .stages
            .iter()
            .map(|stage| format!("{} blocks on {}", stage.blocks.len(), devices[stage.device].name));
        let text = format!("{fault}; planned again: {}", moved.collect::<Vec<_>>().join(", "));
        tracing::warn!("{text}");
        progress.note(&text);
        events.push(Event { device: devices[index].name.clone(), text });
    }
}

async fn load_plan(
    model: &Model,
    planning: &Planning<'_>,
    costs: &ModelCosts<'_>,
    plan: &Plan,
    progress: &mut dyn Progress,
) -> Result<Engine, Error> {
    let blueprint = costs.blueprint(plan.context)?;
    let placement: Vec<(Rc<dyn Backend>, Range<usize>)> = plan
        .stages
        .iter()
        .map(|stage| (Rc::clone(&planning.candidates[stage.device].backend), stage.blocks.clone()))
        .collect();
    let weights = model.weights();
    let engine = Engine::load(
        (*blueprint).clone(),
        placement,
        caps(planning.options, &blueprint),
        &*weights,
        &mut |step| progress.load(step.name, step.done, step.total),
    )
    .await?;
    Ok(engine)
}
