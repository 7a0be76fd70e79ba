//! A model on its devices: planned, loaded by the plan, accounted for.

use crate::devices::{Candidate, candidates};
use crate::event::Event;
use crate::four_bit_cache;
use crate::holdings::{Held, Holding};
use crate::memory_report::{MemoryRow, memory_rows};
use crate::model_source::Model;
use crate::planning::Planning;
use crate::recovery::Loader;
use crate::unused_layers::UnusedLayers;
use crate::witness::private_resident;
use crate::{Error, LoadOptions, Progress, Silent, rates};
use halfbyte_allocation::release_unused;
use halfbyte_backend::{Backend, Fault, FaultCounts};
use halfbyte_inference::{DeviceFootprint, Engine, ModelError, Task, families};
use std::collections::BTreeMap;
use std::time::Instant;

/// A model on its devices, whatever it is for.
pub struct Loaded {
    pub(crate) engine: Engine,
    name: String,
    load_seconds: f64,
    planned: Vec<DeviceFootprint>,
    resident_before: Option<u64>,
    holding: Holding,
    // Kept last: the engine gives its memory back to its backends when it is dropped.
    loader: Loader,
    /// Whether nothing has been asked since the model was loaded or moved.
    fresh: bool,
}

/// A question to an engine that comes to rest, with `None`, where its second argument says so.
pub(crate) type Question<'a, T> =
    dyn FnMut(&mut Engine, &mut dyn FnMut() -> bool) -> Result<Option<T>, ModelError> + 'a;

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
        let candidates = pollster::block_on(candidates(options))?;
        Self::load_on(candidates, model, options, progress, start)
    }

    /// [`load`](Self::load) on devices that are open.
    pub(crate) fn load_on(
        candidates: Vec<Candidate>,
        model: &Model,
        options: &LoadOptions,
        progress: &mut dyn Progress,
        start: Instant,
    ) -> Result<Self, Error> {
        note_settings(model, options, progress)?;
        pollster::block_on(async {
            let mut planning = Planning::new(model, options, candidates)?;
            let cached = four_bit_cache::cached(model, options, &planning, progress)?;
            let model = cached.as_ref().unwrap_or(model);
            if cached.is_some() {
                planning = Planning::new(model, options, planning.candidates)?;
            }
            rates::complete(&mut planning, false)?;
            // What measuring and quantizing have freed is no part of the model's.
            release_unused();
            let resident_before = private_resident();
            let mut loader = Loader::new(planning);
            let engine = loader.first_load(progress).await?;
            loader.met();
            release_unused();
            loader.settle();
            if let Some(why) = loader.why_nothing_streams() {
                progress.note(&format!("--stream-layers always: nothing streams, {why}"));
            }
            note_new_head(&engine, loader.model(), progress);
            note_unused_layers(&engine, loader.model(), progress);
            let planned = engine.footprints()?;
            let holding = Holding::new();
            holding.set(held(&planned));
            Ok(Self {
                planned,
                engine,
                holding,
                name: model.name().to_owned(),
                load_seconds: start.elapsed().as_secs_f64(),
                resident_before,
                loader,
                fresh: true,
            })
        })
    }

    /// The model's name: its directory, Hub id or shape.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Why a model that takes token ids alone was given text in vain: a tokenizer that is not read is named.
    pub(crate) fn no_tokenizer(&self) -> Error {
        match self.loader.model().checkpoint().map(|checkpoint| checkpoint.other_tokenizer()) {
            Some(Some(refusal)) => refusal.into(),
            _ => Error::Usage(format!(
                "{} has no tokenizer.json or tokenizer.model, so text cannot be used; `halfbyte logits --ids` works without one",
                self.name
            )),
        }
    }

    /// Tokens that a text may have: for a decoder, a prompt and its continuation together.
    pub fn context(&self) -> usize {
        self.engine.blueprint().context
    }

    /// Seconds from the call to load to its return.
    pub fn load_seconds(&self) -> f64 {
        self.load_seconds
    }

    /// What happened while loading and running that was not planned.
    pub fn events(&self) -> &[Event] {
        &self.loader.events
    }

    /// Allocations and submissions of the device that [`LoadOptions::fault`] concerns.
    pub fn fault_counts(&self) -> Option<FaultCounts> {
        self.loader.fault_counts()
    }

    /// Asks the engine, and asks it again after whatever an allocation that failed or a device that was lost
    /// made necessary. `needed`: tokens of context without which another answer would come out.
    ///
    /// # Errors
    /// What `ask` says, unless it is a fault that another placement or another device mends; a refusal if
    /// none is left. The next call then opens the devices anew and plans as at first.
    pub(crate) fn ask<T>(
        &mut self,
        needed: usize,
        ask: &mut dyn FnMut(&mut Engine) -> Result<T, ModelError>,
    ) -> Result<T, Error> {
        self.ask_in_parts(needed, &mut |engine, _| ask(engine).map(Some))
    }

    /// Has blocks leave the host's memory where it has no room for an answer of `bytes` to a question that needs `needed`
    /// tokens of context; the next question carries that out, and they stay away until [`answered`](Self::answered).
    ///
    /// # Errors
    /// [`Error::Usage`] if there is no room for `what` and nothing that could make some.
    pub(crate) fn make_way(&mut self, bytes: u64, needed: usize, what: &str) -> Result<(), Error> {
        if !self.engine.is_loaded() {
            return Ok(());
        }
        self.loader.hold(self.context(), needed);
        self.loader.make_way(bytes, what)
    }

    /// What made way for an answer may come back.
    pub(crate) fn answered(&mut self) {
        self.loader.answered();
    }

    /// [`ask`](Self::ask) with a question that can be interrupted: where its second argument says so, it
    /// should come to rest and return `None`. It is asked again once blocks have moved.
    pub(crate) fn ask_in_parts<T>(&mut self, needed: usize, ask: &mut Question<'_, T>) -> Result<T, Error> {
        if !self.engine.is_loaded() {
            pollster::block_on(async {
                self.loader.refresh().await?;
                self.load_again().await?;
                self.loader.settle();
                Ok::<_, Error>(())
            })?;
        }
        let mut paused = false;
        loop {
            self.loader.hold(self.context(), needed);
            if paused || self.loader.is_due() {
                paused = false;
                pollster::block_on(self.carry_out())?;
            }
            let loader = &mut self.loader;
            match ask(&mut self.engine, &mut || loader.is_due()) {
                Ok(Some(answer)) => {
                    self.loader.met();
                    if std::mem::take(&mut self.fresh) {
                        // Some drivers compile when a program runs first.
                        release_unused();
                    }
                    return Ok(answer);
                }
                Ok(None) => paused = true,
                Err(ModelError::Fault(fault)) => pollster::block_on(self.recover(fault))?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Climbs down the ladder until the engine can be asked again.
    async fn recover(&mut self, fault: Fault) -> Result<(), Error> {
        // Steps that were ahead of the fault may have written anything.
        self.engine.lose_caches();
        match self.loader.after(fault, &mut self.engine).await {
            Ok(()) => self.load_again().await,
            Err(error) => {
                self.engine.unload().await;
                self.holding.set(Held::new());
                Err(error)
            }
        }
    }

    /// Moves what the devices' memory asks for.
    async fn carry_out(&mut self) -> Result<(), Error> {
        let done = self.loader.carry_out(&mut self.engine).await;
        self.after_loading(done).await
    }

    async fn load_again(&mut self) -> Result<(), Error> {
        let done = self.loader.load(&mut self.engine, &mut Silent).await;
        self.after_loading(done).await
    }

    async fn after_loading(&mut self, done: Result<(), Error>) -> Result<(), Error> {
        match done {
            Ok(()) => {
                self.planned = self.engine.footprints()?;
                self.fresh = true;
                release_unused();
            }
            Err(_) => self.engine.unload().await,
        }
        self.holding.set(if done.is_ok() { held(&self.planned) } else { Held::new() });
        done
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

    /// The devices that may be used.
    pub(crate) fn candidates(&self) -> &[Candidate] {
        self.loader.candidates()
    }

    /// Planned, allocated and witnessed memory of each device that holds a part of the model.
    pub fn memory(&self) -> Vec<MemoryRow> {
        let backends: Vec<&dyn Backend> = self.loader.backends().map(|backend| &**backend).collect();
        memory_rows(&self.planned, &backends, self.resident_before)
    }

    /// Layers that were brought to a GPU for prompts so far; `None` where none are.
    pub fn streamed_layers(&self) -> Option<u64> {
        self.engine.streamed()
    }

    /// Dispatches and submissions so far, `(dispatches, submissions)`.
    pub fn counts(&self) -> (u64, u64) {
        self.engine.counts()
    }
}

/// What a model holds, for whoever watches.
fn held(planned: &[DeviceFootprint]) -> Held {
    let of = |one: &DeviceFootprint| -> Vec<_> {
        one.planned.iter().map(|(purpose, bytes)| ((one.device.clone(), purpose), bytes)).collect()
    };
    planned.iter().flat_map(of).collect()
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
        Task::ClassifyTokens => "use `halfbyte classify` or TokenClassifier",
        Task::Embed => "use Embedder, or `halfbyte classify` for a new head on it",
    };
    let architecture = model.config().architecture.clone();
    Err(ModelError::Task { architecture, found, wanted, instead: instead.into() }.into())
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

/// Says that the checkpoint has layers that the config does not count.
fn note_unused_layers(engine: &Engine, model: &Model, progress: &mut dyn Progress) {
    let Some(checkpoint) = model.checkpoint() else { return };
    let blocks = engine.blueprint().blocks.iter().map(|block| block.name.as_str());
    if let Some(unused) = UnusedLayers::of(blocks, checkpoint.index.iter().map(|tensor| tensor.name.as_str()))
    {
        progress.note(&format!("{}: {unused}", model.name()));
    }
}

/// Says which settings this machine or the checkpoint overrules.
fn note_settings(model: &Model, options: &LoadOptions, progress: &mut dyn Progress) -> Result<(), Error> {
    options.fewer_threads().inspect(|fewer| progress.note(fewer));
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
