//! Loading, and loading again: what becomes of a model when an allocation fails or a device is lost.

use crate::devices::{candidates, reopen};
use crate::file_form::{self, lies_in_files, usable};
use crate::loading::Event;
use crate::model_source::Model;
use crate::planning::{ModelCosts, Planning, SMALLER_CHUNKS, caps};
use crate::{Error, LoadOptions, Progress};
use halfbyte_backend::{Backend, Caps, Fault, FaultCounts, FaultPlan, Faulty};
use halfbyte_inference::{Engine, ModelError};
use halfbyte_placement::{Costs, Device, DeviceClass, Plan, Refusal, Request, Wanted, after_failure};
use std::ops::Range;
use std::rc::Rc;

/// How often a device is opened again within one request before it is done without.
const REOPENED_AT_MOST: usize = 3;

/// Rungs of the ladder that one request may climb down. Each lowers a budget below what was planned, so
/// the ladder ends by itself; this ends it sooner for who waits.
const RUNGS_AT_MOST: usize = 256;

/// What a model is loaded from, as often as it takes.
pub(crate) struct Loader {
    /// The model and its devices. `options.chunk` and the request change on the ladder.
    planning: Planning,
    /// The budgets that failures have left.
    devices: Vec<Device>,
    /// What is loaded, or to be loaded next; `None` at first, and after a refusal.
    plan: Option<Plan>,
    /// What the user asked for.
    asked: Asked,
    /// How often each device was lost since the last request that was met.
    losses: Vec<usize>,
    rungs: usize,
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

/// What is to be done after a failure.
pub(crate) enum Rung {
    /// Compile for fewer rows; weights and caches stay.
    Chunk,
    /// Load by the new plan.
    Load,
}

impl Loader {
    pub(crate) fn new(planning: Planning) -> Self {
        Self {
            devices: planning.devices(),
            plan: None,
            asked: Asked { options: planning.options.clone(), request: planning.request.clone() },
            losses: vec![0; planning.candidates.len()],
            rungs: 0,
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

    /// What a program may be asked now.
    pub(crate) fn caps(&self, engine: &Engine) -> Caps {
        caps(&self.planning.options, engine.blueprint())
    }

    /// A request was met: the next begins at the top of the ladder's count.
    pub(crate) fn met(&mut self) {
        self.losses.fill(0);
        self.rungs = 0;
    }

    /// Loads by the plan; when something fails, by the next one.
    pub(crate) async fn load(&mut self, progress: &mut dyn Progress) -> Result<Engine, Error> {
        loop {
            let plan = match self.plan.clone() {
                Some(plan) => plan,
                None => self.planning.plan(&self.devices, &self.planning.costs())?,
            };
            if self.bring_to_disk(&plan, progress)? {
                continue;
            }
            self.plan = Some(plan.clone());
            self.wrap(&plan);
            match self.load_plan(&plan, progress).await {
                Ok(engine) => return Ok(engine),
                Err(Error::Model(ModelError::Fault(fault))) => {
                    self.after(fault, progress).await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Plans after `fault` and notes it as an event: what to do next.
    ///
    /// # Errors
    /// The fault itself if no plan helps against it; a refusal if nothing fits any more. Then the next
    /// [`load`](Self::load) plans anew.
    pub(crate) async fn after(&mut self, fault: Fault, progress: &mut dyn Progress) -> Result<Rung, Error> {
        let (Fault::OutOfMemory { device, .. } | Fault::Lost { device, .. }) = &fault else {
            return Err(fault.into());
        };
        let Some(at) = self.devices.iter().position(|one| one.name == *device) else {
            return Err(fault.into());
        };
        let Some(failed) = self.plan.take() else { return Err(fault.into()) };
        self.rungs += 1;
        if self.rungs > RUNGS_AT_MOST {
            return Err(fault.into());
        }
        let next = match &fault {
            Fault::OutOfMemory { wanted, free, .. } => {
                let shortfall = free.map_or(0, |free| wanted.saturating_sub(free));
                self.make_room(&failed, at, shortfall)
            }
            _ => self.replace(failed, at).await,
        };
        let device = self.devices[at].name.clone();
        let (plan, rung, done) = match next {
            Ok(next) => next,
            Err(refused) => {
                let text = format!("{fault}; nothing else fits: {refused}");
                tracing::warn!("{text}");
                self.events.push(Event { device, text });
                return Err(refused);
            }
        };
        let text = format!("{fault}; {done}: {}", self.describe(&plan));
        tracing::warn!("{text}");
        progress.note(&text);
        self.events.push(Event { device, text });
        self.plan = Some(plan);
        Ok(rung)
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
        self.devices = self.planning.devices();
        self.losses = vec![0; self.devices.len()];
        self.rungs = 0;
        self.plan = None;
        self.faulty = None;
        Ok(())
    }

    /// The exact rungs below `failed`: fewer rows at once in the same place, then blocks elsewhere (or, where
    /// the request allows it, less context), then both.
    fn make_room(
        &mut self,
        failed: &Plan,
        at: usize,
        shortfall: u64,
    ) -> Result<(Plan, Rung, &'static str), Error> {
        let planning = &mut self.planning;
        let (devices, next) =
            after_failure(&self.devices, &planning.costs(), &planning.request, failed, at, shortfall);
        self.devices = devices;
        let now = planning.options.chunk;
        let chunks = SMALLER_CHUNKS.into_iter().filter(|&chunk| chunk < now);
        for chunk in chunks.clone() {
            let options = LoadOptions { chunk, ..planning.options.clone() };
            if let Some(plan) = in_place(&planning.costs_with(options), &self.devices, failed, at) {
                planning.options.chunk = chunk;
                return Ok((plan, Rung::Chunk, "smaller chunks"));
            }
        }
        let refusal = match self.enough(next, &self.planning.costs()) {
            Ok(plan) => return Ok((plan, Rung::Load, "planned again")),
            Err(refusal) => refusal,
        };
        for chunk in chunks {
            let options = LoadOptions { chunk, ..self.planning.options.clone() };
            let costs = self.planning.costs_with(options);
            let planned = halfbyte_placement::plan(&self.devices, &costs, &self.planning.request);
            if let Ok(plan) = self.enough(planned, &costs) {
                self.planning.options.chunk = chunk;
                return Ok((plan, Rung::Load, "planned again with smaller chunks"));
            }
        }
        Err(self.planning.with_remedies(refusal, &self.devices).into())
    }

    /// A plan whose context is not below what the request needs: the planner takes a placement that it likes
    /// and grows the context in it, which may end sooner than another placement's.
    fn enough(
        &self,
        planned: Result<Plan, Box<Refusal>>,
        costs: &ModelCosts<'_>,
    ) -> Result<Plan, Box<Refusal>> {
        match planned {
            Ok(plan) if plan.context < self.planning.request.min_context => {
                let least = Wanted::Exactly(self.planning.request.min_context);
                let request = Request { context: least, ..self.planning.request.clone() };
                halfbyte_placement::plan(&self.devices, costs, &request)
            }
            planned => planned,
        }
    }

    /// Puts another backend in a lost one's place, or does without.
    async fn replace(&mut self, failed: Plan, at: usize) -> Result<(Plan, Rung, &'static str), Error> {
        self.losses[at] += 1;
        let name = &self.devices[at].name;
        if self.losses[at] <= REOPENED_AT_MOST {
            match reopen(name, &self.asked.options).await {
                Ok(backend) => {
                    self.planning.candidates[at].backend = backend;
                    self.faulty = self.faulty.filter(|&faulty| faulty != at);
                    return Ok((failed, Rung::Load, "opened and loaded again"));
                }
                Err(fault) => tracing::warn!("{fault}: goes on without it"),
            }
        }
        self.devices[at].budget = 0;
        self.devices[at].budget_source = "lost".into();
        let costs = self.planning.costs();
        let planned = self.planning.plan(&self.devices, &costs);
        Ok((self.enough(planned, &costs)?, Rung::Load, "planned again without it"))
    }

    /// Has `--fault` happen on the first GPU that holds a part of the model, else on the CPU.
    fn wrap(&mut self, plan: &Plan) {
        let Some(fault) = self.fault.as_ref().filter(|_| self.faulty.is_none()) else { return };
        let gpu = plan.stages.iter().find(|stage| self.devices[stage.device].kind == DeviceClass::Gpu);
        let Some(stage) = gpu.or(plan.stages.first()) else { return };
        let backend = &mut self.planning.candidates[stage.device].backend;
        *backend = Rc::new(Faulty::new(Rc::clone(backend), Rc::clone(fault)));
        self.faulty = Some(stage.device);
    }

    async fn load_plan(&self, plan: &Plan, progress: &mut dyn Progress) -> Result<Engine, Error> {
        let costs = self.planning.costs();
        let blueprint = costs.blueprint(plan.context)?;
        let placement: Vec<(Rc<dyn Backend>, Range<usize>)> = plan
            .stages
            .iter()
            .map(|stage| (Rc::clone(&self.planning.candidates[stage.device].backend), stage.blocks.clone()))
            .collect();
        let weights = self.planning.model.weights();
        let engine = Engine::load(
            (*blueprint).clone(),
            placement,
            caps(&self.planning.options, &blueprint),
            &*weights,
            &mut |step| progress.load(step.name, step.done, step.total),
        )
        .await?;
        Ok(engine)
    }

    /// Makes the files that a plan reads layers from, if it reads any; where it cannot, the disk is out of the
    /// game. Whether another plan is due.
    fn bring_to_disk(&mut self, plan: &Plan, progress: &mut dyn Progress) -> Result<bool, Error> {
        let is_disk = |device: &usize| self.devices[*device].kind == DeviceClass::Disk;
        let Some(disk) = plan.stages.iter().map(|stage| stage.device).find(is_disk) else { return Ok(false) };
        if lies_in_files(&self.planning.model, &self.planning.options)? {
            return Ok(false);
        }
        match file_form::make(&self.planning.model, &self.planning.options, progress) {
            Ok(model) => self.planning.model = model,
            Err(problem) => {
                progress.note(&format!("nothing can be read from the disk: {problem}"));
                self.devices[disk].budget = 0;
                self.devices[disk].budget_source = problem;
            }
        }
        self.plan = None;
        Ok(true)
    }

    fn describe(&self, plan: &Plan) -> String {
        let stages = plan
            .stages
            .iter()
            .map(|stage| format!("{} blocks on {}", stage.blocks.len(), self.devices[stage.device].name));
        let stages = stages.collect::<Vec<_>>().join(", ");
        let chunk = self.planning.options.chunk.min(plan.context.max(1));
        format!("{stages}, {} tokens of context, {chunk} at once", plan.context)
    }
}

/// `failed` under other costs, if what the device and its pool then hold keeps within its budget.
fn in_place(costs: &ModelCosts<'_>, devices: &[Device], failed: &Plan, at: usize) -> Option<Plan> {
    let mut plan = failed.clone();
    let mut held = 0_u64;
    for stage in &mut plan.stages {
        stage.footprint = costs.stretch(stage.device, stage.blocks.clone(), plan.context).ok()?;
        if devices[stage.device].pool == devices[at].pool {
            held = held.saturating_add(stage.footprint.total());
        }
    }
    (held <= devices[at].budget).then_some(plan)
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
        let generation = loaded.ask(PROMPT.len() + tokens, &mut |engine| {
            so_far = tokens.min(so_far + every);
            let options = GenerateOptions { max_new_tokens: so_far, ..GenerateOptions::default() };
            let generation = attempts.go_on(engine, &mut session, &options, &mut |token| {
                streamed.push(token);
                Flow::Continue
            })?;
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
        let found = text(&mut loaded, 40, 8).unwrap();
        assert_eq!(found, wanted);
        let texts: Vec<&str> = loaded.events().iter().map(|event| event.text.as_str()).collect();
        assert_eq!(texts.len(), 4, "{texts:#?}");
        // 128, 32 and 8 rows at once, then less context, but enough for this text.
        assert!(texts[..3].iter().all(|text| text.contains("smaller chunks")), "{texts:#?}");
        assert!(texts[3].contains("planned again") && loaded.context() >= 46, "{texts:#?}");
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
