//! The ladder: what to do when memory that was promised is not there, and when it is there again.
//!
//! [`next`] and [`back`] are pure. The engine carries out what they say: it drains what runs, keeps every
//! block that stays on its device, and fills only those that moved.

use crate::machine::Machine;
use crate::streaming::{Streamed, fits};
use crate::{Costs, Device, DeviceClass, Plan, Refusal, Request, Stage, Wanted, plan};
use halfbyte_backend::KvType;
use std::ops::Range;

/// What may change about a model beside its placement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    /// Rows of a submission: tokens of a prompt that are processed at once.
    pub chunk: usize,
    /// Element type of the KV cache.
    pub kv: KvType,
}

/// The costs of one model under any setting.
pub trait Variants {
    /// The costs under `setting`.
    fn costs(&self, setting: Setting) -> Box<dyn Costs + '_>;
}

/// What the ladder may do, and what it must not give up.
#[derive(Debug, Clone)]
pub struct Ladder {
    /// What is asked of every plan.
    pub request: Request,
    /// Chunks that may be tried, the largest first.
    pub chunks: Vec<usize>,
    /// KV types that may be tried although the text then differs, the most exact first; empty unless the
    /// user allows them.
    pub lossy: Vec<KvType>,
}

/// Where a model stands.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// The devices with the budgets that are known to be true.
    pub devices: Vec<Device>,
    /// Where every block lives.
    pub plan: Plan,
    /// Under which setting.
    pub setting: Setting,
    /// Whether this request has released caches and scratch before, and tried again.
    pub released: bool,
}

/// Memory that was promised and is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shortfall {
    /// The device, by its index.
    pub device: usize,
    /// Bytes that it may hold after all; `None` where nothing tells.
    pub fits: Option<u64>,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Free programs, caches and scratch, and place the same again.
    Release,
    /// So many rows at once.
    Chunk(usize),
    /// Blocks go from one device to another, by their indices.
    Move {
        /// Which.
        blocks: Range<usize>,
        /// Where they live.
        from: usize,
        /// Where they will live.
        to: usize,
    },
    /// So many tokens of context.
    Context(usize),
    /// A cache of this type: the text changes.
    Kv(KvType),
    /// Layers stream to a GPU for prompts from now on, or no more.
    Stream(bool),
}

/// What is left where no rung helps: the truth about the devices, and why nothing fits them.
#[derive(Debug, Clone, PartialEq)]
pub struct Bottom {
    /// The devices with the budgets that are known to be true.
    pub devices: Vec<Device>,
    /// Why nothing fits.
    pub refusal: Box<Refusal>,
}

/// The share of what was planned by which a budget shrinks where nothing tells how much is missing.
const UNKNOWN_SHARE: u64 = 16;

/// The next rung below `state`.
///
/// Exact rungs come first: release caches and scratch where nothing tells what is missing, a smaller chunk
/// in the same place, layers that stream no more, blocks on the next device, both, and a shorter context where the request allows it; the
/// same again with blocks on a disk.
/// Then, where the ladder has any, smaller KV types. Each step but the first lowers a budget below what was
/// planned, so no state comes twice and the ladder ends.
///
/// # Errors
/// The [`Bottom`] if nothing fits any more.
pub fn next(
    ladder: &Ladder,
    variants: &dyn Variants,
    state: &State,
    shortfall: Shortfall,
) -> Result<(State, Vec<Action>), Bottom> {
    if shortfall.fits.is_none() && !state.released {
        return Ok((State { released: true, ..state.clone() }, vec![Action::Release]));
    }
    let devices = lowered(state, shortfall);
    let here = State { devices, ..state.clone() };
    // To read weights from a disk is slower than anything else: it comes last.
    let in_memory: Vec<Device> = here
        .devices
        .iter()
        .map(|one| Device {
            budget: if one.kind == DeviceClass::Disk { 0 } else { one.budget },
            ..one.clone()
        })
        .collect();
    let exact = std::iter::once(state.setting.kv);
    let lossy = ladder.lossy.iter().copied().filter(|&kv| bits(kv) < bits(state.setting.kv));
    for kv in exact.chain(lossy) {
        let same = Setting { kv, ..state.setting };
        let smaller: Vec<Setting> = ladder
            .chunks
            .iter()
            .filter(|&&chunk| chunk < same.chunk)
            .map(|&chunk| Setting { chunk, ..same })
            .collect();
        let all = || std::iter::once(same).chain(smaller.iter().copied());
        let elsewhere = |devices: &[Device]| {
            let moved = |setting| moved(ladder, &*variants.costs(setting), &here, devices, setting);
            let shorter = |setting| shorter(ladder, &*variants.costs(setting), &here, devices, setting);
            all().find_map(moved).or_else(|| all().find_map(shorter))
        };
        let unstreamed = State { plan: Plan { streamed: None, ..here.plan.clone() }, ..here.clone() };
        let found = all()
            .find_map(|setting| in_place(&*variants.costs(setting), &here, setting))
            .or_else(|| all().find_map(|setting| in_place(&*variants.costs(setting), &unstreamed, setting)))
            .or_else(|| elsewhere(&in_memory))
            .or_else(|| elsewhere(&here.devices));
        if let Some(next) = found {
            let actions = actions(state, &next);
            return Ok((next, actions));
        }
    }
    let costs = variants.costs(state.setting);
    match plan(&here.devices, &*costs, &ladder.request) {
        Err(refusal) => Err(Bottom { devices: here.devices, refusal }),
        // Another context than the rungs above have tried.
        Ok(plan) => {
            let next = State { plan, ..here };
            let actions = actions(state, &next);
            Ok((next, actions))
        }
    }
}

/// The way back up, now that `devices` have these budgets: to `home`, where the model stood at first, if
/// that fits; else to the best placement at the present context. `None` where that changes nothing, or if
/// not even the present placement fits.
///
/// Budgets should be a margin below what [`next`] is called at, or the model would go to and fro.
pub fn back(
    ladder: &Ladder,
    variants: &dyn Variants,
    state: &State,
    home: &State,
    devices: Vec<Device>,
) -> Option<(State, Vec<Action>)> {
    let at = |of: &State| {
        let here = State { devices: devices.clone(), released: false, ..of.clone() };
        in_place(&*variants.costs(of.setting), &here, of.setting)
    };
    if let Some(next) = at(home) {
        let actions = actions(state, &next);
        return (!actions.is_empty()).then_some((next, actions));
    }
    let here = at(state)?;
    let chunks = ladder.chunks.iter().copied().chain([home.setting.chunk, state.setting.chunk]);
    let mut chunks: Vec<usize> =
        chunks.filter(|&chunk| chunk >= state.setting.chunk && chunk <= home.setting.chunk).collect();
    chunks.sort_unstable_by(|a, b| b.cmp(a));
    chunks.dedup();
    let settings = chunks.into_iter().map(|chunk| Setting { chunk, kv: state.setting.kv });
    let next = settings
        .filter_map(|setting| moved(ladder, &*variants.costs(setting), &here, &here.devices, setting))
        .next()?;
    let actions = actions(state, &next);
    (!actions.is_empty()).then_some((next, actions))
}

/// Whether `state`'s own plan keeps within its own devices' budgets.
pub fn holds(variants: &dyn Variants, state: &State) -> bool {
    in_place(&*variants.costs(state.setting), state, state.setting).is_some()
}

/// The devices after a shortfall: the one that failed has less than was planned on it.
fn lowered(state: &State, shortfall: Shortfall) -> Vec<Device> {
    let mut devices = state.devices.clone();
    let Some(pool) = devices.get(shortfall.device).map(|device| device.pool.clone()) else { return devices };
    // Devices of the same pool drew on the same memory.
    let planned = (0..devices.len())
        .filter(|&device| devices[device].pool == pool)
        .fold(0_u64, |sum, device| sum.saturating_add(state.plan.footprint(device).total()));
    let unknown = planned.saturating_sub((planned / UNKNOWN_SHARE).max(1));
    let fits = shortfall.fits.unwrap_or(unknown).min(planned.saturating_sub(1));
    let device = &mut devices[shortfall.device];
    if fits < device.budget {
        device.budget = fits;
        device.budget_source = "what fitted before an allocation failed".into();
    }
    devices
}

/// The same placement and context under `setting`, if it fits.
fn in_place(costs: &dyn Costs, here: &State, setting: Setting) -> Option<State> {
    let context = here.plan.context;
    let stages: Vec<Stage> = here
        .plan
        .stages
        .iter()
        .map(|Stage { device, blocks, .. }| {
            let footprint = costs.stretch(*device, blocks.clone(), context).ok()?;
            Some(Stage { device: *device, blocks: blocks.clone(), footprint })
        })
        .collect::<Option<_>>()?;
    let streamed = match &here.plan.streamed {
        Some(Streamed { device, blocks, from_rows, host, .. }) => {
            let (host, device, blocks) = (*host, *device, blocks.clone());
            let first = stages.first().map(|stage| (host, stage.blocks.clone()))?;
            let (host_footprint, footprint) = costs.streaming(first, blocks.clone(), device, context).ok()?;
            Some(Streamed { device, blocks, from_rows: *from_rows, footprint, host, host_footprint })
        }
        None => None,
    };
    let plan = Plan { stages, streamed, ..here.plan.clone() };
    let machine = Machine::new(&here.devices, costs);
    fits(&machine, &plan).then(|| State { plan, setting, ..here.clone() })
}

/// Another placement for the same context.
fn moved(
    ladder: &Ladder,
    costs: &dyn Costs,
    here: &State,
    devices: &[Device],
    setting: Setting,
) -> Option<State> {
    let context = Wanted::Exactly(here.plan.context);
    let request = Request { context, ..ladder.request.clone() };
    let plan = plan(devices, costs, &request).ok()?;
    Some(State { plan, setting, ..here.clone() })
}

/// The placement with the longest context below the present one that the request still allows.
fn shorter(
    ladder: &Ladder,
    costs: &dyn Costs,
    here: &State,
    devices: &[Device],
    setting: Setting,
) -> Option<State> {
    let (Wanted::AtMost(most), least) = (ladder.request.context, ladder.request.min_context) else {
        return None;
    };
    let most = most.min(here.plan.context.saturating_sub(1));
    if least > most {
        return None;
    }
    let request = Request { context: Wanted::AtMost(most), min_context: least, ..ladder.request.clone() };
    let plan = plan(devices, costs, &request).ok()?;
    Some(State { plan, setting, ..here.clone() })
}

/// What leads from one state to another.
fn actions(from: &State, to: &State) -> Vec<Action> {
    let mut actions = Vec::new();
    if to.setting.chunk != from.setting.chunk {
        actions.push(Action::Chunk(to.setting.chunk));
    }
    let blocks = to.plan.stages.last().map_or(0, |stage| stage.blocks.end);
    for block in 0..blocks {
        let (Some(was), Some(is)) = (from.plan.device_of(block), to.plan.device_of(block)) else { continue };
        match actions.last_mut() {
            _ if was == is => {}
            Some(Action::Move { blocks, from, to }) if (*from, *to, blocks.end) == (was, is, block) => {
                blocks.end = block + 1;
            }
            _ => actions.push(Action::Move { blocks: block..block + 1, from: was, to: is }),
        }
    }
    if to.plan.context != from.plan.context {
        actions.push(Action::Context(to.plan.context));
    }
    if to.plan.streamed.is_some() != from.plan.streamed.is_some() {
        actions.push(Action::Stream(to.plan.streamed.is_some()));
    }
    if to.setting.kv != from.setting.kv {
        actions.push(Action::Kv(to.setting.kv));
    }
    actions
}

/// Bits of a cached number, roughly: the fewer, the further from exact.
fn bits(kv: KvType) -> u32 {
    match kv {
        KvType::F32 => 32,
        KvType::F16 => 16,
        KvType::Q8 => 8,
        KvType::Q4 => 4,
    }
}
