//! Plans what will live where, from headers alone.

use crate::devices::{Candidate, candidates};
use crate::file_form::{Usable, usable};
use crate::model_source::{Model, ModelSource};
use crate::options::{DeviceMap, LoadOptions};
use crate::plan_report::PlanReport;
use crate::{Error, KvType, Progress, human_bytes, rates};
use halfbyte_backend::{Caps, Footprint};
use halfbyte_checkpoint::ModelConfig;
use halfbyte_inference::settings::DEFAULT_CONTEXT;
use halfbyte_inference::{
    Blueprint, Settings, StreamFootprints, Task, Tensors, build, smaller_of_the_family,
};
use halfbyte_placement::{
    Costs, Device, DeviceClass, Plan, Policy, Reason, Refusal, Remedy, Request, Wanted, refusal_with,
};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

/// The least context that is worth loading a model for, where the user names none.
const MIN_CONTEXT: usize = 256;

/// Tokens at once that are tried where more do not fit, the largest first.
pub(crate) const SMALLER_CHUNKS: [usize; 3] = [128, 32, 8];

/// Says what will live where, without loading anything.
///
/// # Errors
/// What is wrong with the model or the options. That it does not fit is no error: see
/// [`PlanReport::fits`].
pub fn plan(
    source: &ModelSource,
    options: &LoadOptions,
    progress: &mut dyn Progress,
) -> Result<PlanReport, Error> {
    let model = source.open_headers(options, progress)?;
    options.fewer_threads().inspect(|fewer| progress.note(fewer));
    let candidates = pollster::block_on(candidates(options))?;
    let mut planning = Planning::new(&model, options, candidates)?;
    rates::complete(&mut planning, true)?;
    planning.report()
}

/// Refuses a model that would not fit, before it is downloaded.
pub(crate) fn check_fit(model: &Model, options: &LoadOptions) -> Result<(), Error> {
    let candidates = pollster::block_on(candidates(options))?;
    let planning = Planning::new(model, options, candidates)?;
    planning.plan(&planning.devices(), &planning.costs())?;
    Ok(())
}

/// Everything that a plan is made from; kept while loading, for the ladder.
pub(crate) struct Planning {
    pub(crate) model: Model,
    pub(crate) options: LoadOptions,
    pub(crate) candidates: Vec<Candidate>,
    /// Why the disk is not among them, if it could have been.
    pub(crate) without_disk: Option<String>,
    pub(crate) request: Request,
    pub(crate) model_context: usize,
}

impl Planning {
    pub(crate) fn new(
        model: &Model,
        options: &LoadOptions,
        candidates: Vec<Candidate>,
    ) -> Result<Self, Error> {
        // The smallest blueprint shows everything that is wrong with the model before bytes are counted.
        let blueprint = build(model.config(), model.tensors(), &settings(options, Some(1)))?;
        let model_context = blueprint.max_positions;
        let context = match options.context {
            Some(0) => {
                return Err(Error::Usage("--context 0: a context holds at least one token".into()));
            }
            Some(exact) => Wanted::Exactly(exact),
            None => Wanted::AtMost(model_context.clamp(1, DEFAULT_CONTEXT)),
        };
        let policy = match &options.device_map {
            DeviceMap::Auto => Policy::Auto,
            DeviceMap::Balanced => Policy::Balanced,
            DeviceMap::Sequential => Policy::Sequential,
            DeviceMap::Only(name) => Policy::Only(name.clone()),
            DeviceMap::Given(map) => Policy::Given(map.clone()),
        };
        let streaming = options.stream_layers;
        let min_context = MIN_CONTEXT.min(model_context.max(1));
        let request = Request { context, min_context, policy, streaming };
        let Usable { candidates, without_disk } = usable(model, options, candidates)?;
        let (model, options) = (model.clone(), options.clone());
        Ok(Self { model, options, candidates, without_disk, request, model_context })
    }

    pub(crate) fn devices(&self) -> Vec<Device> {
        self.candidates.iter().map(|one| one.device.clone()).collect()
    }

    pub(crate) fn costs(&self) -> ModelCosts<'_> {
        self.costs_with(self.options.clone())
    }

    /// Costs under other options.
    pub(crate) fn costs_with(&self, options: LoadOptions) -> ModelCosts<'_> {
        ModelCosts {
            config: self.model.config(),
            tensors: self.model.tensors(),
            options,
            candidates: &self.candidates,
            blueprints: RefCell::default(),
        }
    }

    /// A plan, or a refusal whose remedies have been planned.
    pub(crate) fn plan(&self, devices: &[Device], costs: &ModelCosts<'_>) -> Result<Plan, Box<Refusal>> {
        halfbyte_placement::plan(devices, costs, &self.request)
            .map_err(|refusal| self.with_remedies(refusal, devices))
    }

    /// Adds to a refusal's remedies what else would fit: smaller chunks, a smaller KV cache, a limit that is
    /// raised, a smaller model of the same family by name.
    pub(crate) fn with_remedies(&self, refusal: Box<Refusal>, devices: &[Device]) -> Box<Refusal> {
        let smaller: &[(KvType, &str)] = match self.options.kv_cache {
            KvType::F32 => &[(KvType::F16, "f16"), (KvType::Q8, "q8"), (KvType::Q4, "q4")],
            KvType::F16 => &[(KvType::Q8, "q8"), (KvType::Q4, "q4")],
            KvType::Q8 => &[(KvType::Q4, "q4")],
            KvType::Q4 => &[],
        };
        let raised = self.raised_limits(&refusal, devices);
        let mut refusal = refusal;
        refusal.without_disk.clone_from(&self.without_disk);
        // The largest chunk that fits is the fastest: smaller ones need no mention.
        let offered = refusal.remedies.len();
        for &chunk in SMALLER_CHUNKS.iter().filter(|&&chunk| chunk < self.options.chunk) {
            if refusal.remedies.len() == offered {
                let options = LoadOptions { chunk, ..self.options.clone() };
                refusal = self.with_alternative(refusal, devices, format!("--chunk {chunk}"), options);
            }
        }
        for &(kv_cache, name) in smaller {
            let options = LoadOptions { kv_cache, ..self.options.clone() };
            refusal = self.with_alternative(refusal, devices, format!("--kv-cache {name}"), options);
        }
        refusal.remedies.extend(raised);
        refusal.remedies.extend(self.smaller_model(&refusal, devices));
        refusal
    }

    /// The largest well-known model of the same family that fits under the same options.
    fn smaller_model(&self, refusal: &Refusal, devices: &[Device]) -> Option<Remedy> {
        if matches!(refusal.reason, Reason::Invalid(_)) {
            return None;
        }
        smaller_of_the_family(self.model.config(), self.model.name()).into_iter().find_map(|model| {
            let costs = ModelCosts {
                config: model.config(),
                tensors: &model,
                options: self.options.clone(),
                candidates: &self.candidates,
                blueprints: RefCell::default(),
            };
            let plan = halfbyte_placement::plan(devices, &costs, &self.request).ok()?;
            Some(Remedy { options: model.name.to_owned(), context: plan.context })
        })
    }

    /// Adds `name` to a refusal's remedies if the model fits with `options`.
    fn with_alternative(
        &self,
        refusal: Box<Refusal>,
        devices: &[Device],
        name: String,
        options: LoadOptions,
    ) -> Box<Refusal> {
        let costs = self.costs_with(options);
        refusal_with(refusal, devices, &self.request, &[(name, &costs as &dyn Costs)])
    }

    /// Limits of `--max-memory` that stand in the way, each raised to what is needed where the device has
    /// that much.
    fn raised_limits(&self, refusal: &Refusal, devices: &[Device]) -> Vec<Remedy> {
        let mut remedies: Vec<(String, u64, Remedy)> = Vec::new();
        for shortage in &refusal.devices {
            let Some(at) = devices.iter().position(|device| device.name == shortage.device) else { continue };
            // What layers on the disk take is the CPU's memory.
            let of_host = devices[at].kind == DeviceClass::Disk && devices[at].budget == shortage.budget;
            let name = if of_host { "cpu" } else { shortage.device.as_str() };
            if !self.options.max_memory.contains_key(name) || shortage.shortfall == 0 {
                continue;
            }
            let mebibytes = shortage.needed.saturating_add(shortage.shared).div_ceil(1 << 20);
            let mut raised = devices.to_vec();
            let is_raised =
                |device: &Device| device.name == name || (name == "cpu" && device.kind == DeviceClass::Disk);
            raised
                .iter_mut()
                .filter(|device| is_raised(device))
                .for_each(|device| device.budget = mebibytes << 20);
            let available = self.candidates.get(at).is_some_and(|one| one.unlimited() >= mebibytes << 20);
            if !available {
                continue;
            }
            if let Ok(plan) = halfbyte_placement::plan(&raised, &self.costs(), &self.request) {
                let options = format!("--max-memory {name}={mebibytes}MiB");
                // Of two sizes for one device the larger one is remembered, which needs no disk.
                remedies.retain(|(other, size, _)| other != name || *size > mebibytes);
                if !remedies.iter().any(|(other, ..)| other == name) {
                    remedies.push((name.to_owned(), mebibytes, Remedy { options, context: plan.context }));
                }
            }
        }
        remedies.into_iter().map(|(.., remedy)| remedy).collect()
    }

    /// Why nothing of a plan streams, though it was asked to.
    pub(crate) fn why_nothing_streams(&self, plan: &Plan) -> String {
        let is_gpu = |device: usize| self.candidates[device].device.kind == DeviceClass::Gpu;
        let gpu = plan.stages.iter().find(|stage| is_gpu(stage.device));
        let (Some(gpu), Some(first)) = (gpu, plan.stages.first()) else {
            return "no GPU holds a part of the model".into();
        };
        if gpu.blocks.start < 2 {
            return "no layers live on the CPU or the disk before those on a GPU".into();
        }
        let blocks = 1..gpu.blocks.start;
        let first = (first.device, first.blocks.clone());
        match self.costs().streaming(first, blocks, gpu.device, plan.context) {
            Ok((_, bytes)) => {
                format!(
                    "{} has no room for the {} of it",
                    gpu_name(self, gpu.device),
                    human_bytes(bytes.total())
                )
            }
            Err(why) => why,
        }
    }
}

pub(crate) fn gpu_name(planning: &Planning, device: usize) -> &str {
    &planning.candidates[device].device.name
}

/// The most positions that a model was made for.
pub(crate) fn max_positions(model: &Model, options: &LoadOptions) -> Result<usize, Error> {
    Ok(build(model.config(), model.tensors(), &settings(options, Some(1)))?.max_positions)
}

/// The settings of a blueprint for `context` tokens. Chunks below the default one do not change it: where memory makes them
/// smaller, caches stay.
fn settings(options: &LoadOptions, context: Option<usize>) -> Settings {
    Settings {
        quant: options.quant,
        kv: options.kv_cache,
        context,
        sequences: options.sequences.max(1),
        rows: Some(options.chunk.max(LoadOptions::default().chunk).max(options.sequences)),
        task: options.task,
        convert_heads: options.convert_heads,
        ..Settings::default()
    }
}

/// The most texts whose labels one submission asks for.
const LABELLED_AT_ONCE: usize = 64;

/// What a program for this blueprint may be asked. An encoder sees a text whole, however small the chunk.
pub(crate) fn caps(options: &LoadOptions, blueprint: &Blueprint) -> Caps {
    let context = blueprint.context.max(1);
    let (rows, outputs) = match blueprint.task {
        Task::Generate => (options.chunk.clamp(1, context), options.outputs.max(options.sequences)),
        Task::ClassifySequence => (options.chunk.max(context), LABELLED_AT_ONCE),
        Task::ClassifyTokens => (options.chunk.max(context), usize::MAX),
        Task::Embed => (options.chunk.max(context), 1),
    };
    // A batch of texts takes a row each at every step.
    let rows = rows.max(options.sequences);
    Caps { rows, outputs: outputs.clamp(1, rows) }
}

/// Exact costs: the blueprint's wants and programs by each backend's own layout.
pub(crate) struct ModelCosts<'a> {
    config: &'a ModelConfig,
    tensors: &'a dyn Tensors,
    options: LoadOptions,
    candidates: &'a [Candidate],
    blueprints: RefCell<BTreeMap<usize, Rc<Blueprint>>>,
}

impl ModelCosts<'_> {
    /// The blueprint for `context` tokens, made once.
    pub(crate) fn blueprint(&self, context: usize) -> Result<Rc<Blueprint>, Error> {
        if let Some(blueprint) = self.blueprints.borrow().get(&context) {
            return Ok(Rc::clone(blueprint));
        }
        let settings = settings(&self.options, Some(context));
        let blueprint = Rc::new(build(self.config, self.tensors, &settings)?);
        self.blueprints.borrow_mut().insert(context, Rc::clone(&blueprint));
        Ok(blueprint)
    }
}

impl Costs for ModelCosts<'_> {
    fn blocks(&self) -> usize {
        // Any context that the model allows would do.
        self.blueprint(1).map_or(0, |blueprint| blueprint.blocks.len())
    }

    fn name(&self, block: usize) -> String {
        self.blueprint(1)
            .ok()
            .and_then(|blueprint| blueprint.blocks.get(block).map(|block| block.name.clone()))
            .unwrap_or_default()
    }

    fn stretch(&self, device: usize, blocks: Range<usize>, context: usize) -> Result<Footprint, String> {
        let blueprint = self.blueprint(context).map_err(|error| error.to_string())?;
        let layout = self.candidates[device].backend.layout();
        let mut footprint = layout.resident();
        let taken = blueprint
            .footprint(layout, blocks, &caps(&self.options, &blueprint))
            .map_err(|fault| fault.to_string())?;
        footprint.merge(&taken);
        Ok(footprint)
    }

    fn products(&self, block: usize) -> u64 {
        self.blueprint(1).map_or(0, |blueprint| blueprint.products(block))
    }

    fn row_bytes(&self, block: usize) -> u64 {
        self.blueprint(1).map_or(0, |blueprint| blueprint.row_bytes(block))
    }

    fn streaming(
        &self,
        (host, first): (usize, Range<usize>),
        blocks: Range<usize>,
        to: usize,
        context: usize,
    ) -> Result<(Footprint, Footprint), String> {
        let blueprint = self.blueprint(context).map_err(|error| error.to_string())?;
        if blueprint.task != Task::Generate {
            return Err(format!("{} needs its layers once for a text, wherever they live", blueprint.task));
        }
        let [host, to] = [host, to].map(|device| &self.candidates[device].backend);
        if !to.moves_kv() {
            return Err(format!("keys and values cannot leave {} yet", to.info().name));
        }
        let caps = caps(&self.options, &blueprint);
        let found = StreamFootprints::of(&blueprint, first, blocks, host.layout(), to.layout(), &caps);
        found.map(|found| (found.host, found.to)).map_err(|fault| fault.to_string())
    }
}
