//! How fast a model runs here, beside what the device can do at most.

use crate::devices::{Candidate, candidates};
use crate::loading::Loaded;
use crate::memory_report::MemoryRow;
use crate::model_source::ModelSource;
use crate::profile::{DecodeProfile, profile};
use crate::{Error, LoadOptions, Progress, planning};
use halfbyte_allocation::release_unused;
use halfbyte_backend::{Backend, DeviceKind, Fault, Input, Kind, Output, Place, Purpose, Rows, human_bytes};
use halfbyte_inference::{Engine, Session};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Instant;

/// What is measured.
#[derive(Debug, Clone)]
pub struct BenchOptions {
    /// Prompts of these lengths, each from an empty context. `None`: 512 and 2048 where a GPU takes part, else 128,
    /// as far as the context of the model goes.
    pub prefill: Option<Vec<usize>>,
    /// Decoding after contexts of these lengths. `None`: 0 and 4096 where a GPU takes part, else 0 and 512, or as far
    /// as the context of the model leaves room for the tokens.
    pub decode_at: Option<Vec<usize>>,
    /// Tokens that are decoded for each figure.
    pub tokens: usize,
    /// Each figure is the median of this many runs.
    pub repeats: usize,
    /// Whether decoding is taken apart by step class and by host and device.
    pub profile: bool,
}

impl Default for BenchOptions {
    fn default() -> Self {
        Self { prefill: None, decode_at: None, tokens: 32, repeats: 3, profile: false }
    }
}

/// One figure. Either the prefill or the decode fields are present.
#[derive(Debug, Clone, serde::Serialize)]
pub struct BenchRow {
    /// The device, or several joined by `+` in the order of the blocks.
    pub device: String,
    /// The maker's names.
    pub adapter: String,
    /// Whether a device is a processor that emulates a GPU: its speed says nothing of GPUs.
    pub software: bool,
    /// Length of the prompt.
    pub prefill_tokens: Option<usize>,
    /// Its tokens a second.
    pub prefill_tokens_per_second: Option<f64>,
    /// Tokens in the context before the first decoded one.
    pub context: usize,
    /// Decoded tokens a second.
    pub decode_tokens_per_second: Option<f64>,
    /// Bytes of weights and KV cache that decoding one token reads.
    pub bytes_per_token: Option<u64>,
    /// Bytes a second of these reads.
    pub read_rate: Option<f64>,
    /// Bytes a second that the devices read at most, of a processor the median of measurements before each run; for
    /// several devices, what the shares of each would allow together.
    pub read_bandwidth: Option<f64>,
    /// `read_rate / read_bandwidth`.
    pub share_of_limit: Option<f64>,
    /// Dispatches of one decoded token.
    pub dispatches_per_token: Option<f64>,
}

/// A device that takes part, and what it can do at most.
#[derive(Debug, Clone, serde::Serialize)]
pub struct BenchDevice {
    /// As device maps name it.
    pub device: String,
    /// The maker's name.
    pub adapter: String,
    /// API and driver.
    pub driver: String,
    /// Whether it is a processor that emulates a GPU.
    pub software: bool,
    /// Bytes a second that it reads of its own memory, measured before anything else.
    pub read_bandwidth: Option<f64>,
    /// Why that was not measured. Of a disk there is no one limit, since what memory keeps of its files it does not read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_measured: Option<String>,
    /// Of a disk, bytes a second that it reads past what memory keeps, if that was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_rate: Option<f64>,
}

/// What was measured.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct BenchReport {
    /// The devices that take part, in the order of the blocks.
    pub devices: Vec<BenchDevice>,
    /// Prompts, then decoding.
    pub rows: Vec<BenchRow>,
    /// One for each context of [`BenchOptions::decode_at`], if [`BenchOptions::profile`] asks for it and one
    /// device runs everything.
    pub profiles: Vec<DecodeProfile>,
    /// Planned, allocated and witnessed memory of each device, after all runs.
    pub memory: Vec<MemoryRow>,
}

/// Measures a model: read bandwidth of its devices first, then prompts and decoding. Token ids and, for a
/// [`ModelSource::Synthetic`], weights are made up. The context is made to hold the longest run.
///
/// # Errors
/// As [`CausalLm::load`](crate::CausalLm::load).
pub fn bench(
    source: &ModelSource,
    options: &LoadOptions,
    what: &BenchOptions,
    progress: &mut dyn Progress,
    on_row: &mut dyn FnMut(&BenchRow),
) -> Result<BenchReport, Error> {
    let model = source.open(options, progress)?;
    let candidates = pollster::block_on(candidates(options))?;
    crate::loading::expect(&model, halfbyte_inference::Task::Generate)?;
    let room = planning::max_positions(&model, options)?.min(options.context.unwrap_or(usize::MAX));
    let (prompts, contexts) = lengths(what, room, &candidates);
    let longest = prompts.iter().copied().chain(contexts.iter().map(|at| at + what.tokens)).max();
    let context = options.context.or(longest.map(|longest| longest.max(1)));
    let options = LoadOptions { context, ..options.clone() };
    let mut loaded = Loaded::load_on(candidates, &model, &options, progress, Instant::now())?;

    let mut limits = pollster::block_on(limits(&loaded))?;
    let mut rows = Vec::new();
    for &tokens in &prompts {
        let seconds = median(what.repeats, || prefill(&mut loaded, tokens))?;
        let row = BenchRow {
            prefill_tokens: Some(tokens),
            prefill_tokens_per_second: Some(tokens as f64 / seconds),
            ..limits.row(0)
        };
        on_row(&row);
        rows.push(row);
    }
    for &at in &contexts {
        let before = loaded.counts().0;
        limits.forget();
        let seconds = median(what.repeats, || {
            limits.measure();
            decode(&mut loaded, at, what.tokens, &mut |_| {})
        })?;
        // One run more warms up, and each begins with one token that is not timed.
        let steps = ((what.repeats + 1) * (what.tokens + 1)) as f64;
        let per_token = seconds / what.tokens as f64;
        let bytes = limits.bytes_per_token(at);
        let read_rate = bytes as f64 / per_token;
        let read_bandwidth = limits.bandwidth(at);
        let row = BenchRow {
            decode_tokens_per_second: Some(1.0 / per_token),
            bytes_per_token: Some(bytes),
            read_rate: Some(read_rate),
            read_bandwidth,
            share_of_limit: read_bandwidth.map(|limit| read_rate / limit),
            dispatches_per_token: Some((loaded.counts().0 - before) as f64 / steps),
            ..limits.row(at)
        };
        on_row(&row);
        rows.push(row);
    }
    let mut profiles = Vec::new();
    if what.profile {
        for &at in &contexts {
            profiles.extend(profile(&mut loaded, &limits, at, what)?);
        }
    }
    release_unused();
    Ok(BenchReport { devices: limits.devices, rows, profiles, memory: loaded.memory() })
}

/// The prompts and contexts that are asked for, or what suits the devices: a processor takes minutes for what a GPU
/// does in a second. Nobody asked for these, so they stay within a context of `room`.
fn lengths(what: &BenchOptions, room: usize, candidates: &[Candidate]) -> (Vec<usize>, Vec<usize>) {
    let gpu = |kind| matches!(kind, DeviceKind::DiscreteGpu | DeviceKind::IntegratedGpu);
    let (prompts, contexts) = match candidates.iter().any(|one| gpu(one.backend.info().kind)) {
        true => (vec![512, 2048], vec![0, 4096]),
        false => (vec![128], vec![0, 512]),
    };
    let within = |lengths: Vec<usize>, most: usize| {
        let mut lengths: Vec<usize> = lengths.into_iter().map(|length| length.min(most)).collect();
        lengths.dedup();
        lengths
    };
    (
        what.prefill.clone().unwrap_or_else(|| within(prompts, room)),
        what.decode_at.clone().unwrap_or_else(|| within(contexts, room.saturating_sub(what.tokens))),
    )
}

/// What the devices of a model have to read for a token, and how fast they can.
pub(crate) struct Limits {
    pub(crate) device: String,
    pub(crate) adapter: String,
    pub(crate) software: bool,
    devices: Vec<BenchDevice>,
    stages: Vec<StageLimit>,
}

struct StageLimit {
    weights: u64,
    /// Of caches with so many slots: bytes of a slot.
    kv_per_slot: BTreeMap<usize, f64>,
    bandwidth: Option<f64>,
    /// Of a processor, to measure again.
    processor: Option<Rc<dyn Backend>>,
    /// What it read beside the runs of a figure, bytes a second.
    beside: Vec<f64>,
}

impl Limits {
    fn row(&self, context: usize) -> BenchRow {
        BenchRow {
            device: self.device.clone(),
            adapter: self.adapter.clone(),
            software: self.software,
            prefill_tokens: None,
            prefill_tokens_per_second: None,
            context,
            decode_tokens_per_second: None,
            bytes_per_token: None,
            read_rate: None,
            read_bandwidth: None,
            share_of_limit: None,
            dispatches_per_token: None,
        }
    }

    fn bytes_per_token(&self, context: usize) -> u64 {
        self.stages.iter().map(|stage| stage.bytes(context)).sum()
    }

    /// Measures processors again. Their memory is shared with whatever else runs on the machine, on a virtual one with
    /// strangers, and its speed differs by half from one second to the next: what a run is compared to must be of the
    /// same seconds.
    fn measure(&mut self) {
        for stage in &mut self.stages {
            let rate = stage.processor.as_ref().and_then(|it| pollster::block_on(it.read_bandwidth()).ok());
            stage.beside.extend(rate);
        }
    }

    /// A new figure begins.
    fn forget(&mut self) {
        self.stages.iter_mut().for_each(|stage| stage.beside.clear());
    }

    /// Stages run one after the other, so their times add up.
    pub(crate) fn bandwidth(&self, context: usize) -> Option<f64> {
        let seconds: Option<f64> = self
            .stages
            .iter()
            .map(|stage| stage.limit().map(|limit| stage.bytes(context) as f64 / limit))
            .sum();
        seconds.map(|seconds| self.bytes_per_token(context) as f64 / seconds)
    }
}

impl StageLimit {
    /// The median beside the runs of this figure, or what was measured at the beginning.
    fn limit(&self) -> Option<f64> {
        let mut rates = self.beside.clone();
        rates.sort_by(f64::total_cmp);
        rates.get(rates.len() / 2).copied().or(self.bandwidth)
    }

    fn bytes(&self, context: usize) -> u64 {
        let kv = self.kv_per_slot.iter().map(|(&slots, bytes)| bytes * context.min(slots) as f64);
        self.weights + kv.sum::<f64>() as u64
    }
}

/// Why a bandwidth was not measured, in few words.
fn why_not(fault: &Fault) -> String {
    match fault {
        Fault::OutOfMemory { free: Some(free), wanted, .. } => {
            format!("{} free of the {} that it takes", human_bytes(*free), human_bytes(*wanted))
        }
        Fault::Unsupported { what, .. } => what.clone(),
        other => other.to_string(),
    }
}

async fn limits(loaded: &Loaded) -> Result<Limits, Error> {
    let blueprint = loaded.engine.blueprint();
    let (mut devices, mut stages) = (Vec::<BenchDevice>::new(), Vec::new());
    for (device, blocks) in loaded.engine.placement() {
        let Some(candidate) = loaded.candidates().iter().find(|one| one.device.name == device) else {
            continue;
        };
        let backend = &candidate.backend;
        let (mut weights, mut kv_per_slot) = (0, BTreeMap::new());
        // A looked-up embedding is not read as a whole; a tied head is.
        for block in blocks.filter(|&block| block > 0) {
            for want in &blueprint.stretch(block..block + 1).wants {
                let footprint = backend.layout().want_footprint(want)?;
                let bytes = footprint.total() + footprint.mapped();
                match (&want.kind, want.purpose) {
                    (Kind::Kv(shape), _) => {
                        let slots = shape.slots().max(1);
                        *kv_per_slot.entry(slots).or_default() += bytes as f64 / slots as f64;
                    }
                    (_, Purpose::Weights | Purpose::Embeddings) => weights += bytes,
                    _ => {}
                }
            }
        }
        let measured = backend.read_bandwidth().await;
        let not_measured = measured.as_ref().err().map(why_not);
        let bandwidth = measured.ok();
        let info = backend.info();
        devices.push(BenchDevice {
            device: device.to_owned(),
            adapter: info.adapter.clone(),
            driver: info.driver.clone(),
            software: info.kind == DeviceKind::Software,
            read_bandwidth: bandwidth,
            not_measured,
            disk_rate: candidate.device.rate.filter(|_| info.kind == DeviceKind::Disk),
        });
        let processor = (info.kind == DeviceKind::Cpu).then(|| Rc::clone(backend));
        stages.push(StageLimit { weights, kv_per_slot, bandwidth, processor, beside: Vec::new() });
    }
    let names =
        |name: fn(&BenchDevice) -> &str, by: &str| devices.iter().map(name).collect::<Vec<_>>().join(by);
    Ok(Limits {
        device: names(|device| &device.device, "+"),
        adapter: names(|device| &device.adapter, " + "),
        software: devices.iter().any(|device| device.software),
        stages,
        devices,
    })
}

/// The median of `repeats` runs, after one that warms up.
fn median(repeats: usize, mut run: impl FnMut() -> Result<f64, Error>) -> Result<f64, Error> {
    run()?;
    let mut seconds = (1..repeats.max(1)).map(|_| run()).collect::<Result<Vec<f64>, Error>>()?;
    seconds.push(run()?);
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[seconds.len() / 2])
}

/// `count` made-up rows of sequence 0 from `position` on.
pub(crate) fn places(position: usize, count: usize) -> Vec<Place> {
    let place = |at| Place { sequence: 0, position: at as u32, token_type: 0 };
    (position..position + count).map(place).collect()
}

/// Seconds for a prompt of `tokens`.
fn prefill(loaded: &mut Loaded, tokens: usize) -> Result<f64, Error> {
    let vocab = loaded.engine.blueprint().vocab as u32;
    let ids: Vec<u32> = (0..tokens as u32).map(|id| id.wrapping_mul(2_654_435_761) % vocab).collect();
    let start = Instant::now();
    pollster::block_on(Session::new(0).extend(&mut loaded.engine, &ids))?;
    Ok(start.elapsed().as_secs_f64())
}

/// Seconds for `tokens` greedy tokens after a context of `at` positions, whose keys and values are what the
/// cache happens to hold: reading them takes as long whatever they are. `after` is called after each.
pub(crate) fn decode(
    loaded: &mut Loaded,
    at: usize,
    tokens: usize,
    after: &mut dyn FnMut(&mut Engine),
) -> Result<f64, Error> {
    let failed = halfbyte_inference::ModelError::from;
    let engine = &mut loaded.engine;
    let first = places(at, 1);
    let rows = Rows { input: Input::Tokens(&[1]), places: &first, output: Output::Greedy(&[0]) };
    pollster::block_on(engine.forward(&rows)).map_err(failed)?;
    let start = Instant::now();
    let mut waiting = None;
    for position in at + 1..=at + tokens {
        let places = places(position.min(engine.blueprint().context - 1), 1);
        if engine.feeds_back() {
            let rows = Rows { input: Input::Chosen, places: &places, output: Output::Greedy(&[0]) };
            let next = engine.submit(&rows).map_err(failed)?;
            // One step late, as in generating.
            if let Some(ticket) = waiting.replace(next) {
                pollster::block_on(ticket).map_err(failed)?;
            }
        } else {
            let rows = Rows { input: Input::Tokens(&[1]), places: &places, output: Output::Greedy(&[0]) };
            pollster::block_on(engine.forward(&rows)).map_err(failed)?;
        }
        after(engine);
    }
    if let Some(ticket) = waiting {
        pollster::block_on(ticket).map_err(failed)?;
    }
    Ok(start.elapsed().as_secs_f64())
}
