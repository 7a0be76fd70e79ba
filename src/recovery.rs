//! Loading, and loading again: what becomes of a model when an allocation fails, a device is lost, or others
//! take its memory and give it back.

use crate::devices::{candidates, reopen};
use crate::event::{Event, EventKind, publish};
use crate::file_form::{self, lies_in_files, usable};
use crate::model_source::Model;
use crate::planning::{Planning, SMALLER_CHUNKS, caps};
use crate::pressure::{Pressure, Reading};
use crate::{Error, KvType, LoadOptions, Progress};
use halfbyte_backend::{Backend, Fault, FaultCounts, FaultPlan, Faulty, human_bytes};
use halfbyte_inference::{Engine, ModelError, Placement};
use halfbyte_placement::ladder::{self, Action, Bottom, Ladder, Setting, Shortfall, State, Variants};
use halfbyte_placement::{Costs, DeviceClass, Plan, Request, Wanted};
use std::rc::Rc;

/// How often a device is opened again within one request before it is done without.
const REOPENED_AT_MOST: usize = 3;

/// Rungs of the ladder that one request may climb down. Each lowers a budget below what was planned, so
/// the ladder ends by itself; this ends it sooner for who waits.
const RUNGS_AT_MOST: usize = 256;

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
            fault: planning.options.fault.map(|spec| Rc::new(FaultPlan::new(spec))),
            faulty: None,
            events: Vec::new(),
            planning,
        }
    }

    pub(crate) fn model(&self) -> &Model {
        &self.planning.model
    }

    pub(crate) fn backends(&self) -> impl Iterator<Item = &Rc<dyn Backend>> {
        self.planning.candidates.iter().map(|one| &one.backend)
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

    /// After a model was loaded: what is left now is what others were promised.
    pub(crate) fn settle(&mut self) {
        self.pressure.settle(&self.planning.candidates);
    }

    /// Finds the next rung after `fault` and notes it as an event.
    ///
    /// # Errors
    /// The fault itself if no placement helps against it; a refusal if nothing fits any more. Then the next
    /// [`load`](Self::load) plans anew.
    pub(crate) async fn after(&mut self, fault: Fault, engine: &mut Engine) -> Result<(), Error> {
        let (Fault::OutOfMemory { device, .. } | Fault::Lost { device, .. }) = &fault else {
            return Err(fault.into());
        };
        let Some(at) = self.planning.candidates.iter().position(|one| one.device.name == *device) else {
            return Err(fault.into());
        };
        let Some(state) = self.state.take() else { return Err(fault.into()) };
        self.rungs += 1;
        if self.rungs > RUNGS_AT_MOST {
            return Err(fault.into());
        }
        let (next, kind) = match &fault {
            Fault::Lost { .. } => (self.replace(state, at, engine).await, EventKind::DeviceLost),
            _ => (self.make_room(&state, at, &fault), EventKind::OutOfMemory),
        };
        let device = device.clone();
        match next {
            Ok((state, done)) => {
                let text = format!("{fault}; {done}: {}", self.describe(&state));
                self.adopt(state);
                self.note(Event { device, kind, text });
                Ok(())
            }
            Err(refused) => {
                let text = format!("{fault}; nothing else fits: {refused}");
                self.note(Event { device, kind: EventKind::Refused, text });
                Err(refused)
            }
        }
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
        self.planning.candidates = usable(&self.planning.model, options, candidates(options).await?)?;
        self.planning.options = options.clone();
        self.planning.request = self.asked.request.clone();
        self.losses = vec![0; self.planning.candidates.len()];
        self.limits = vec![None; self.planning.candidates.len()];
        self.rungs = 0;
        (self.state, self.home, self.faulty, self.stuck) = (None, None, None, false);
        Ok(())
    }

    /// Whether the devices' memory, looked at now unless that was a moment ago, asks for a move.
    pub(crate) fn is_due(&mut self) -> bool {
        if self.due.is_none()
            && let Some(readings) = self.pressure.look(&self.planning.candidates)
        {
            self.due = self.move_out(&readings).or_else(|| self.come_back(&readings));
        }
        self.due.is_some()
    }

    /// Carries out what is due.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub(crate) async fn carry_out(&mut self, engine: &mut Engine) -> Result<(), Error> {
        let Some(due) = self.due.take() else { return Ok(()) };
        let done = self.say(&due.actions, &due.state);
        let text = format!("{}; {done}: {}", due.cause, self.describe(&due.state));
        self.adopt(due.state);
        self.load(engine, &mut crate::Silent).await?;
        self.note(Event { device: due.device, kind: due.kind, text });
        Ok(())
    }

    /// Where the model could go, if a device that it is on has less left than its headroom.
    fn move_out(&mut self, readings: &[Reading]) -> Option<Due> {
        let state = self.state.as_ref()?;
        let is_on = |device: usize| state.plan.stages.iter().any(|stage| stage.device == device);
        let Some(at) = (0..readings.len()).find(|&device| readings[device].short && is_on(device)) else {
            self.stuck = false;
            return None;
        };
        let mut now = state.clone();
        for (device, reading) in now.devices.iter_mut().zip(readings) {
            device.budget = device.budget.min(reading.fits);
        }
        let shortfall = Shortfall { device: at, fits: Some(readings[at].fits) };
        let name = state.devices[at].name.clone();
        let free = human_bytes(readings[at].free.unwrap_or(0));
        let cause = format!("{name}: {free} left, the headroom is {}", human_bytes(readings[at].headroom));
        match ladder::next(&self.ladder(), &self.planning, &now, shortfall) {
            Ok((state, actions)) => {
                self.stuck = false;
                Some(Due { state, actions, device: name, kind: EventKind::MemoryShort, cause })
            }
            Err(Bottom { .. }) => {
                // It runs, and what it holds it has: only the next allocation would fail.
                if !std::mem::replace(&mut self.stuck, true) {
                    let text = format!("{cause}; nothing can move out");
                    self.note(Event { device: name, kind: EventKind::MemoryShort, text });
                }
                None
            }
        }
    }

    /// Where the model could go back to, if it is not where it was at first and there has been room for a
    /// while.
    fn come_back(&mut self, readings: &[Reading]) -> Option<Due> {
        let room = self.pressure.lasting_room(readings)?;
        let (state, home) = (self.state.as_ref()?, self.home.as_ref()?);
        if (&state.plan.stages, state.plan.context, state.setting)
            == (&home.plan.stages, home.plan.context, home.setting)
        {
            return None;
        }
        let mut devices = self.planning.devices();
        for ((device, &room), limit) in devices.iter_mut().zip(&room).zip(&mut self.limits) {
            device.budget = device.budget.min(room);
            if let Some(evidence) = *limit {
                match evidence.until {
                    Some(until) if room >= until => *limit = None,
                    _ => device.budget = device.budget.min(evidence.fits),
                }
            }
        }
        let (next, actions) = ladder::back(&self.ladder(), &self.planning, state, home, devices)?;
        let device = actions.iter().find_map(|action| match action {
            Action::Move { to, .. } => Some(*to),
            _ => None,
        });
        let device = device.or(next.plan.stages.last().map(|stage| stage.device))?;
        let device = next.devices[device].name.clone();
        let cause = format!("{device} has room again");
        Some(Due { state: next, actions, device, kind: EventKind::MemoryBack, cause })
    }

    /// The rung below `state`, after an allocation on `at` has failed.
    fn make_room(&mut self, state: &State, at: usize, fault: &Fault) -> Result<(State, String), Error> {
        let backend = &self.planning.candidates[at].backend;
        let held = state.plan.stages.iter().filter(|stage| stage.device == at);
        let planned = held.fold(0_u64, |sum, stage| sum.saturating_add(stage.footprint.total()));
        let capacity =
            backend.memory().free.map(|free| free.saturating_add(backend.ledger().footprint().total()));
        // What the device says counts where it says that it is short.
        let reported = matches!(fault, Fault::OutOfMemory { free: Some(_), .. });
        let fits = capacity.filter(|&capacity| reported && capacity < planned);
        match ladder::next(&self.ladder(), &self.planning, state, Shortfall { device: at, fits }) {
            Ok((next, actions)) => {
                if !actions.contains(&Action::Release) {
                    let fits = next.devices[at].budget;
                    let missing = planned.saturating_sub(fits);
                    let until = capacity.map(|capacity| capacity.saturating_add(missing));
                    self.limits[at] = Some(Evidence { fits, until });
                }
                let done = self.say(&actions, &next);
                Ok((next, done))
            }
            Err(Bottom { devices, refusal }) => Err(self.planning.with_remedies(refusal, &devices).into()),
        }
    }

    /// Puts another backend in a lost one's place, or does without.
    async fn replace(
        &mut self,
        state: State,
        at: usize,
        engine: &mut Engine,
    ) -> Result<(State, String), Error> {
        // Before its place is taken.
        engine.forget(&self.planning.candidates[at].backend).await;
        self.losses[at] += 1;
        let name = &state.devices[at].name;
        if self.losses[at] <= REOPENED_AT_MOST {
            match reopen(name, &self.asked.options, self.planning.candidates[at].limit.as_ref()).await {
                Ok(backend) => {
                    self.planning.candidates[at].backend = backend;
                    self.faulty = self.faulty.filter(|&faulty| faulty != at);
                    return Ok((state, "opened and loaded again".into()));
                }
                Err(fault) => tracing::warn!("{fault}: goes on without it"),
            }
        }
        // It is gone for good, whatever it says of its memory.
        self.limits[at] = Some(Evidence { fits: 0, until: None });
        let mut state = state;
        state.devices[at].budget_source = "lost".into();
        match ladder::next(&self.ladder(), &self.planning, &state, Shortfall { device: at, fits: Some(0) }) {
            Ok((next, actions)) => {
                let done = self.say(&actions, &next);
                Ok((next, format!("goes on without it, {done}")))
            }
            Err(Bottom { devices, refusal }) => Err(self.planning.with_remedies(refusal, &devices).into()),
        }
    }

    fn ladder(&self) -> Ladder {
        let lossy: &[KvType] = match self.asked.options.allow_lossy {
            true => &[KvType::F16, KvType::Q8, KvType::Q4],
            false => &[],
        };
        Ladder {
            request: self.planning.request.clone(),
            chunks: SMALLER_CHUNKS.to_vec(),
            lossy: lossy.to_vec(),
        }
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

    /// Has `--fault` happen on the first GPU that holds a part of the model, else on the CPU.
    fn wrap(&mut self, plan: &Plan) {
        let Some(fault) = self.fault.as_ref().filter(|_| self.faulty.is_none()) else { return };
        let kind = |device: usize| self.planning.candidates[device].device.kind;
        let gpu = plan.stages.iter().find(|stage| kind(stage.device) == DeviceClass::Gpu);
        let Some(stage) = gpu.or(plan.stages.first()) else { return };
        let backend = &mut self.planning.candidates[stage.device].backend;
        *backend = Rc::new(Faulty::new(Rc::clone(backend), Rc::clone(fault)));
        self.faulty = Some(stage.device);
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
        let mut report =
            |step: halfbyte_inference::Progress<'_>| progress.load(step.name, step.done, step.total);
        engine.rearrange((*blueprint).clone(), placement, caps, &*weights, &mut report).await?;
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

    /// What is done, in words.
    fn say(&self, actions: &[Action], to: &State) -> String {
        let costs = self.planning.costs();
        let device = |at: usize| to.devices[at].name.as_str();
        let words = actions.iter().map(|action| match action {
            Action::Release => "released caches and scratch and tried again".to_owned(),
            Action::Chunk(chunk) if *chunk < self.planning.options.chunk => "smaller chunks".into(),
            Action::Chunk(_) => "larger chunks".into(),
            Action::Move { blocks, from, to } => {
                let last = costs.name(blocks.end - 1);
                let names = match blocks.len() {
                    1 => last,
                    _ => format!("{} to {last}", costs.name(blocks.start)),
                };
                format!("{names} moved from {} to {}", device(*from), device(*to))
            }
            Action::Context(context) => format!("a context of {context}"),
            Action::Kv(kv) => format!("the KV cache in {}, the text may differ", kv_name(*kv)),
        });
        let words: Vec<String> = words.collect();
        if words.is_empty() { "placed again".into() } else { words.join(", ") }
    }

    fn describe(&self, state: &State) -> String {
        let plan = &state.plan;
        let stages = plan
            .stages
            .iter()
            .map(|stage| format!("{} blocks on {}", stage.blocks.len(), state.devices[stage.device].name));
        let stages = stages.collect::<Vec<_>>().join(", ");
        let chunk = state.setting.chunk.min(plan.context.max(1));
        format!("{stages}, {} tokens of context, {chunk} at once", plan.context)
    }
}

/// As `--kv-cache` has it.
fn kv_name(kv: KvType) -> &'static str {
    match kv {
        KvType::F32 => "f32",
        KvType::F16 => "f16",
        KvType::Q8 => "q8",
        KvType::Q4 => "q4",
    }
}

#[cfg(test)]
mod tests {
    use crate::attempts::Attempts;
    use crate::loading::Loaded;
    use crate::{Error, LoadOptions, ModelSource, Silent};
    use halfbyte_backend::{Fault, KvType, Purpose};
    use halfbyte_inference::{Flow, GenerateOptions, ModelError, Session};
    use std::time::Instant;

    /// `stories` on the CPU.
    fn stories() -> Loaded {
        let options = LoadOptions {
            device_map: "cpu".parse().unwrap(),
            kv_cache: KvType::F32,
            ..LoadOptions::default()
        };
        let model = ModelSource::named("stories").open(&options, &mut Silent).unwrap();
        Loaded::load(&model, &options, &mut Silent, Instant::now()).unwrap()
    }

    fn out_of_memory() -> ModelError {
        let (device, name) = ("cpu".to_owned(), "a buffer".to_owned());
        Fault::OutOfMemory { device, name, wanted: 100, free: Some(60), what: Purpose::Scratch }.into()
    }

    fn lost() -> ModelError {
        Fault::Lost { device: "cpu".into(), reason: "a test".into() }.into()
    }

    const PROMPT: [u32; 6] = [1, 260, 918, 365, 340, 448];

    /// Generates `tokens` tokens. After each `every` of them an allocation fails.
    fn text(loaded: &mut Loaded, tokens: usize, every: usize) -> Result<Vec<u32>, Error> {
        let (mut attempts, mut session) = (Attempts::new(&PROMPT), Session::new(0));
        let mut streamed = Vec::new();
        let mut so_far = 0;
        let generation = loaded.ask_in_parts(PROMPT.len() + tokens, &mut |engine, pause| {
            so_far = tokens.min(so_far + every);
            let options = GenerateOptions { max_new_tokens: so_far, ..GenerateOptions::default() };
            let mut on_token = |token| {
                streamed.push(token);
                Flow::Continue
            };
            let generation = attempts.go_on(engine, &mut session, &options, &mut on_token, pause)?;
            if so_far < tokens { Err(out_of_memory()) } else { Ok(generation) }
        })?;
        assert_eq!(streamed, generation.tokens, "each token once");
        Ok(generation.tokens)
    }

    #[test]
    fn memory_that_fails_again_and_again_in_a_text_does_not_change_it() {
        let mut loaded = stories();
        let wanted = text(&mut loaded, 40, 40).unwrap();
        assert_eq!((wanted.len(), loaded.events().len()), (40, 0));
        let found = text(&mut loaded, 40, 7).unwrap();
        assert_eq!(found, wanted);
        let texts: Vec<&str> = loaded.events().iter().map(|event| event.text.as_str()).collect();
        assert_eq!(texts.len(), 5, "{texts:#?}");
        // The same again, fewer rows at once, then less context, but enough for this text.
        assert!(texts[0].contains("released caches and scratch"), "{texts:#?}");
        assert!(texts[1..4].iter().all(|text| text.contains("smaller chunks")), "{texts:#?}");
        assert!(texts[4].contains("a context of") && loaded.context() >= 46, "{texts:#?}");
        for row in loaded.memory() {
            assert_eq!(row.planned_bytes, row.measured_bytes);
        }
        assert_eq!(text(&mut loaded, 40, 40).unwrap(), wanted);
    }

    #[test]
    fn a_ladder_without_end_ends_in_a_refusal_and_the_model_can_be_asked_again() {
        let mut loaded = stories();
        let wanted = text(&mut loaded, 8, 8).unwrap();
        for fault in [out_of_memory, lost] {
            let mut asked = 0;
            let refused = loaded.ask::<()>(100, &mut |_| {
                asked += 1;
                Err(fault())
            });
            println!("asked {asked} times: {}", refused.as_ref().unwrap_err());
            assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
            assert!((3..30).contains(&asked), "{asked}");
            let last = loaded.events().last().unwrap();
            assert!(last.text.contains("nothing else fits"), "{last:?}");
            let held: u64 = loaded.memory().iter().map(|row| row.measured_bytes).sum();
            assert!(held < 1 << 20, "a refusal frees what was loaded, but {held} bytes are held");
            assert_eq!(text(&mut loaded, 8, 8).unwrap(), wanted);
            assert_eq!(loaded.context(), 512, "as at first");
        }
    }
}
