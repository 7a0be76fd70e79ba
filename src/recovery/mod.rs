//! Loading, and loading again: what becomes of a model when an allocation fails, a device is lost, or others
//! take its memory and give it back.

mod faults;
mod watched;
mod words;

use crate::devices::{Candidate, candidates};
use crate::event::{Event, EventKind, publish};
use crate::file_form::{self, lies_in_files, usable};
use crate::model_source::Model;
use crate::planning::{Planning, caps};
use crate::pressure::Pressure;
use crate::{Error, LoadOptions, Progress, StreamLayers};
use halfbyte_backend::{Backend, FaultCounts, FaultPlan};
use halfbyte_inference::{Engine, ModelError, Placement, Stream};
use halfbyte_placement::ladder::{Action, Setting, State, Variants};
use halfbyte_placement::{Costs, DeviceClass, Plan, Request, Wanted};
use std::rc::Rc;

/// What a model is loaded from, as often as it takes.
pub(crate) struct Loader {
    /// The model and its devices. `options.chunk`, `options.kv_cache` and the request change on the ladder.
    planning: Planning,
    /// Where the model stands; `None` at first, and after a refusal.
    state: Option<State>,
    /// Where it stood before anything happened.
    home: Option<State>,
    /// For each device, what fitted when an allocation failed.
    limits: Vec<Option<Evidence>>,
    /// What the user asked for.
    asked: Asked,
    /// How often each device was lost since the last request that was met.
    losses: Vec<usize>,
    rungs: usize,
    pressure: Pressure,
    /// What the last look at the devices asks for.
    due: Option<Due>,
    /// Whether it has been said that memory is short and nothing can move.
    stuck: bool,
    /// Whether an answer is being made that blocks had to make way for.
    answering: bool,
    fault: Option<Rc<FaultPlan>>,
    /// The device that `fault` happens to.
    faulty: Option<usize>,
    pub(crate) events: Vec<Event>,
}

/// Options and request before the ladder changed them.
struct Asked {
    options: LoadOptions,
    request: Request,
}

/// An allocation that failed says how much a device holds, until the device says that it holds more.
#[derive(Debug, Clone, Copy)]
struct Evidence {
    /// Bytes that fitted.
    fits: u64,
    /// What the device's own figures, held and free, must reach before that is forgotten.
    until: Option<u64>,
}

/// A move that is due, and why.
struct Due {
    state: State,
    actions: Vec<Action>,
    device: String,
    kind: EventKind,
    cause: String,
}

impl Variants for Planning {
    fn costs(&self, setting: Setting) -> Box<dyn Costs + '_> {
        let options = LoadOptions { chunk: setting.chunk, kv_cache: setting.kv, ..self.options.clone() };
        Box::new(self.costs_with(options))
    }
}

impl Loader {
    pub(crate) fn new(planning: Planning) -> Self {
        let devices = planning.candidates.len();
        Self {
            state: None,
            home: None,
            limits: vec![None; devices],
            asked: Asked { options: planning.options.clone(), request: planning.request.clone() },
            losses: vec![0; devices],
            rungs: 0,
            pressure: Pressure::new(planning.options.pretend_memory_file.clone()),
            due: None,
            stuck: false,
            answering: false,
            fault: planning.options.fault.map(|spec| Rc::new(FaultPlan::new(spec))),
            faulty: None,
            events: Vec::new(),
            planning,
        }
    }

    pub(crate) fn model(&self) -> &Model {
        &self.planning.model
    }

    pub(crate) fn candidates(&self) -> &[Candidate] {
        &self.planning.candidates
    }

    pub(crate) fn backends(&self) -> impl Iterator<Item = &Rc<dyn Backend>> {
        self.planning.candidates.iter().map(|one| &one.backend)
    }

    /// Why nothing streams, where everything was asked to.
    pub(crate) fn why_nothing_streams(&self) -> Option<String> {
        let state = self.state.as_ref()?;
        let asked = self.asked.options.stream_layers == StreamLayers::Always;
        (asked && state.plan.streamed.is_none()).then(|| self.planning.why_nothing_streams(&state.plan))
    }

    /// What `--fault` has counted.
    pub(crate) fn fault_counts(&self) -> Option<FaultCounts> {
        self.fault.as_ref().map(|plan| plan.counts())
    }

    /// A request was met: the next begins at the top of the ladder's count.
    pub(crate) fn met(&mut self) {
        self.losses.fill(0);
        self.rungs = 0;
        if let Some(state) = &mut self.state {
            state.released = false;
        }
    }

    /// An engine that is loaded by the plan; when something fails, by the next one.
    pub(crate) async fn first_load(&mut self, progress: &mut dyn Progress) -> Result<Engine, Error> {
        let blueprint = self.planning.costs().blueprint(1)?;
        let mut engine = Engine::unloaded((*blueprint).clone());
        self.load(&mut engine, progress).await?;
        Ok(engine)
    }

    /// Makes the engine what the state says; when something fails, what the next one says. Blocks that stay
    /// on their device are not touched.
    pub(crate) async fn load(
        &mut self,
        engine: &mut Engine,
        progress: &mut dyn Progress,
    ) -> Result<(), Error> {
        loop {
            let state = match self.state.clone() {
                Some(state) => state,
                None => self.first_state()?,
            };
            if self.bring_to_disk(&state, progress)? {
                continue;
            }
            self.wrap(&state.plan);
            let loaded = self.rearrange(engine, &state.plan, progress).await;
            self.state = Some(state);
            match loaded {
                Ok(()) => {
                    self.pressure.moved();
                    return Ok(());
                }
                Err(ModelError::Fault(fault)) => self.after(fault, engine).await?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn first_state(&mut self) -> Result<State, Error> {
        let devices = self.planning.devices();
        let plan = self.planning.plan(&devices, &self.planning.costs())?;
        let setting = self.setting();
        let state = State { devices, plan, setting, released: false };
        self.home = Some(state.clone());
        Ok(state)
    }

    /// What is kept of the request while a text that needs `needed` tokens of context is in the making: the
    /// context that was promised, or where the user named none, at least that much.
    pub(crate) fn hold(&mut self, context: usize, needed: usize) {
        let request = &mut self.planning.request;
        if let Wanted::AtMost(_) = self.asked.request.context {
            request.context = Wanted::AtMost(context);
            request.min_context = needed.clamp(1, context.max(1));
        }
    }

    /// Opens all devices anew and forgets what the ladder did: for the first request after a refusal.
    pub(crate) async fn refresh(&mut self) -> Result<(), Error> {
        let options = &self.asked.options;
        self.planning.candidates.clear();
        let usable = usable(&self.planning.model, options, candidates(options).await?)?;
        (self.planning.candidates, self.planning.without_disk) = (usable.candidates, usable.without_disk);
        self.planning.options = options.clone();
        self.planning.request = self.asked.request.clone();
        self.losses = vec![0; self.planning.candidates.len()];
        self.limits = vec![None; self.planning.candidates.len()];
        self.rungs = 0;
        (self.state, self.home, self.faulty, self.stuck) = (None, None, None, false);
        Ok(())
    }

    fn setting(&self) -> Setting {
        Setting { chunk: self.planning.options.chunk, kv: self.planning.options.kv_cache }
    }

    fn adopt(&mut self, state: State) {
        self.planning.options.chunk = state.setting.chunk;
        self.planning.options.kv_cache = state.setting.kv;
        self.state = Some(state);
    }

    fn note(&mut self, event: Event) {
        publish(&event);
        self.events.push(event);
    }

    async fn rearrange(
        &self,
        engine: &mut Engine,
        plan: &Plan,
        progress: &mut dyn Progress,
    ) -> Result<(), ModelError> {
        let blueprint = match self.planning.costs().blueprint(plan.context) {
            Ok(blueprint) => blueprint,
            Err(Error::Model(error)) => return Err(error),
            Err(error) => return Err(ModelError::Invalid(error.to_string())),
        };
        let placement: Placement = plan
            .stages
            .iter()
            .map(|stage| (Rc::clone(&self.planning.candidates[stage.device].backend), stage.blocks.clone()))
            .collect();
        let weights = self.planning.model.weights();
        let caps = caps(&self.planning.options, &blueprint);
        let stream = plan.streamed.as_ref().map(|streamed| Stream {
            to: Rc::clone(&self.planning.candidates[streamed.device].backend),
            blocks: streamed.blocks.clone(),
            from_rows: streamed.from_rows,
        });
        let mut report =
            |step: halfbyte_inference::Progress<'_>| progress.load(step.name, step.done, step.total);
        let blueprint = (*blueprint).clone();
        engine.rearrange_streaming(blueprint, placement, stream, caps, &*weights, &mut report).await?;
        Ok(())
    }

    /// Makes the files that a plan reads layers from, if it reads any; where it cannot, the disk is out of the
    /// game. Whether that led to another plan.
    fn bring_to_disk(&mut self, state: &State, progress: &mut dyn Progress) -> Result<bool, Error> {
        let is_disk = |device: &usize| state.devices[*device].kind == DeviceClass::Disk;
        let stages = &state.plan.stages;
        let Some(disk) = stages.iter().map(|stage| stage.device).find(is_disk) else { return Ok(false) };
        if lies_in_files(&self.planning.model, &self.planning.options)? {
            return Ok(false);
        }
        let mut devices = state.devices.clone();
        match file_form::make(&self.planning.model, &self.planning.options, progress) {
            Ok(model) => self.planning.model = model,
            Err(problem) => {
                progress.note(&format!("nothing can be read from the disk: {problem}"));
                devices[disk].budget = 0;
                devices[disk].budget_source = problem;
                self.limits[disk] = Some(Evidence { fits: 0, until: None });
            }
        }
        let plan = self.planning.plan(&devices, &self.planning.costs())?;
        let next = State { devices, plan, ..state.clone() };
        if self.home.as_ref().is_some_and(|home| home.plan == state.plan) {
            self.home = Some(next.clone());
        }
        self.state = Some(next);
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
