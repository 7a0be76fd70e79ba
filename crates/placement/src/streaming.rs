//! Layers of the host that stream to a GPU for long prompts: what that takes, and from how many tokens on it pays.

use crate::account::Account;
use crate::machine::{Arrangement, HANDOVER_SECONDS, Machine};
use crate::plan::Stage;
use crate::{Costs, Device, DeviceClass, Plan, Refusal, Request, Wanted};
use halfbyte_backend::Footprint;
use serde::Serialize;
use std::ops::Range;

/// Whether layers that the CPU decodes stream to a GPU for prompts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Streaming {
    /// For every prompt of two tokens and more, where there is room for it at all.
    Always,
    /// The CPU computes prompts, too, and no memory is kept for anything else.
    Never,
    /// For prompts that are long enough for it to pay by the devices' measured rates.
    #[default]
    Auto,
}

/// Layers that stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Streamed {
    /// The GPU, as an index into the devices that were planned for.
    pub device: usize,
    /// The layers.
    pub blocks: Range<usize>,
    /// The fewest tokens at once for which they do.
    pub from_rows: usize,
    /// What it takes on the GPU: room for two layers, and their programs.
    pub footprint: Footprint,
    /// The device of the first stage.
    pub host: usize,
    /// What it takes there: a program for what comes before the layers, and the hidden states between them.
    pub host_footprint: Footprint,
}

impl Streamed {
    /// Bytes on each device, beside those of the stages.
    pub(crate) fn held(&self) -> [(usize, u64); 2] {
        [(self.host, self.host_footprint.total()), (self.device, self.footprint.total())]
    }
}

/// Why [`Streaming::Auto`] streams nothing of a plan that has layers on the host before those on a GPU.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Unstreamed {
    /// A device has rates that nobody knows, as an index into the devices that were planned for.
    Unknown(usize),
    /// By these speeds no prompt is long enough.
    Never(Speeds),
    /// Only a prompt of this many tokens, more than the context, would be long enough.
    Beyond(usize),
    /// It would pay for prompts of this many tokens; but there is no room for it, or making that room costs the tokens of
    /// an answer more than a prompt gains.
    NoRoom(usize),
}

/// A prompt and an answer for which `auto` weighs faster prompts against slower tokens: layers make room on the GPU
/// for those that stream.
const TYPICAL_PROMPT: usize = 512;
const TYPICAL_ANSWER: usize = 128;

/// How often room for what streams is made and measured: what it takes depends on what lives where, a little.
const ROUNDS: usize = 4;

/// What layers cost, on the host and through the link. All of it for the layers together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Crossing {
    /// Bytes of weights.
    pub bytes: f64,
    /// Multiplications and additions of one token.
    pub products: f64,
    /// Bytes of one token that cross the link: keys and values back, hidden states both ways.
    pub row_bytes: f64,
    /// How often a device waits for the other: once a layer.
    pub handovers: f64,
}

/// What the two devices do in a second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speeds {
    /// Bytes of weights that the host reads.
    pub host_bytes: f64,
    /// Multiplications and additions of the host, on many tokens at once.
    pub host_products: f64,
    /// Bytes that reach the GPU.
    pub upload_bytes: f64,
    /// Multiplications and additions of the GPU, on many tokens at once.
    pub gpu_products: f64,
}

impl Crossing {
    /// Seconds that the host takes for `rows` tokens.
    pub fn on_host(&self, speeds: &Speeds, rows: f64) -> f64 {
        (self.bytes / speeds.host_bytes).max(rows * self.products / speeds.host_products)
    }

    /// Seconds of the way through the GPU for `rows` tokens. Nothing is taken to overlap: one queue may not.
    pub fn through(&self, speeds: &Speeds, rows: f64) -> f64 {
        let once = self.bytes / speeds.upload_bytes + self.handovers * HANDOVER_SECONDS;
        once + rows * self.row_through(speeds)
    }

    fn row_through(&self, speeds: &Speeds) -> f64 {
        self.products / speeds.gpu_products + self.row_bytes / speeds.upload_bytes
    }

    /// The fewest tokens from which on the way through the GPU is the faster one, however many more there are;
    /// `None` if it never is.
    ///
    /// The host's time is flat until its arithmetic takes longer than its memory, then a line through zero; the
    /// other is a line. Where the link is faster than the host's memory, few tokens pay and somewhat more do not:
    /// then those further up decide.
    pub fn from_rows(&self, speeds: &Speeds) -> Option<usize> {
        let gained = self.products / speeds.host_products - self.row_through(speeds);
        if !(gained > 0.0 && gained.is_finite()) {
            return None;
        }
        // The way through is the faster one above the crossing of both lines.
        let rows = (self.through(speeds, 0.0) / gained).floor() + 1.0;
        // What no prompt has is never.
        let rows = (rows < f64::from(u32::MAX)).then_some((rows as usize).max(2))?;
        // Where it is faster just below that, too, it is against the flat part, and so for all that are fewer.
        let faster = |rows: f64| self.through(speeds, rows) < self.on_host(speeds, rows);
        Some(if faster(rows as f64 - 1.0) { 2 } else { rows })
    }
}

/// The speeds of a host and a GPU, if both were measured.
fn speeds(machine: &Machine<'_>, host: usize, gpu: usize) -> Option<Speeds> {
    Some(Speeds {
        host_bytes: machine.known_rate(host)?,
        host_products: machine.devices[host].products?,
        upload_bytes: machine.devices[gpu].upload?,
        gpu_products: machine.devices[gpu].products?,
    })
}

/// The layers of an arrangement that could stream, and the GPU: all layers of the stages before the first GPU's.
pub(crate) fn streamable(devices: &[Device], arrangement: &Arrangement) -> Option<(usize, Range<usize>)> {
    let is_gpu = |device: usize| devices[device].kind == DeviceClass::Gpu;
    let (gpu, blocks) = arrangement.iter().find(|(device, _)| is_gpu(*device))?;
    // The first block is looked up, not multiplied with.
    (blocks.start > 1).then_some((*gpu, 1..blocks.start))
}

/// What streaming an arrangement's layers takes, if it has any and the request has them stream.
///
/// # Errors
/// What the model or a device lacks.
pub(crate) fn streamed(
    machine: &Machine<'_>,
    streaming: Streaming,
    arrangement: &Arrangement,
    context: usize,
) -> Result<Option<Streamed>, String> {
    let Some((device, blocks)) = streamable(machine.devices, arrangement) else { return Ok(None) };
    let from_rows = match streaming {
        Streaming::Never => None,
        Streaming::Always => Some(2),
        Streaming::Auto => threshold(machine, arrangement, device, context),
    };
    let (Some(from_rows), Some((host, first))) = (from_rows, arrangement.first().cloned()) else {
        return Ok(None);
    };
    let (host_footprint, footprint) =
        machine.costs.streaming((host, first), blocks.clone(), device, context)?;
    Ok(Some(Streamed { device, blocks, from_rows, footprint, host, host_footprint }))
}

/// Why nothing of `plan` streams where that was left to the rates; `None` where something does, or nothing could.
pub fn unstreamed(devices: &[Device], costs: &dyn Costs, plan: &Plan) -> Option<Unstreamed> {
    let machine = Machine::new(devices, costs);
    let arrangement = arrangement(plan);
    let (gpu, _) = streamable(devices, &arrangement).filter(|_| plan.streamed.is_none())?;
    let Some((crossing, speeds)) = crossing(&machine, &arrangement, gpu) else {
        let hosts = arrangement.iter().map(|(device, _)| *device).take_while(|&device| device != gpu);
        let unknown = |&device: &usize| {
            let one = &devices[device];
            let rate = if device == gpu { one.upload } else { machine.known_rate(device) };
            one.products.is_none() || rate.is_none()
        };
        return hosts.chain([gpu]).find(unknown).map(Unstreamed::Unknown);
    };
    Some(match crossing.from_rows(&speeds) {
        None => Unstreamed::Never(speeds),
        Some(rows) if rows > plan.context => Unstreamed::Beyond(rows),
        Some(rows) => Unstreamed::NoRoom(rows),
    })
}

/// From how many tokens on it pays, within a context.
fn threshold(machine: &Machine<'_>, arrangement: &Arrangement, gpu: usize, context: usize) -> Option<usize> {
    let (crossing, speeds) = crossing(machine, arrangement, gpu)?;
    crossing.from_rows(&speeds).filter(|&rows| rows <= context)
}

/// What the layers of an arrangement cost by either way, where all devices were measured. Of several hosts the
/// slowest counts.
fn crossing(machine: &Machine<'_>, arrangement: &Arrangement, gpu: usize) -> Option<(Crossing, Speeds)> {
    let mut sum = Crossing { bytes: 0.0, products: 0.0, row_bytes: 0.0, handovers: 0.0 };
    let mut least: Option<Speeds> = None;
    let hosts = arrangement.iter().take_while(|(device, _)| *device != gpu);
    for (device, blocks) in hosts {
        for block in blocks.start.max(1)..blocks.end {
            sum.bytes += machine.costs.reads(*device, block).ok()? as f64;
            sum.products += machine.costs.products(block) as f64;
            sum.row_bytes += machine.costs.row_bytes(block) as f64;
            sum.handovers += 1.0;
        }
        let mut of = speeds(machine, *device, gpu)?;
        // What lies on a disk reaches the GPU no faster than it leaves the disk.
        of.upload_bytes = match machine.devices[*device].kind {
            DeviceClass::Disk => (of.host_bytes.recip() + of.upload_bytes.recip()).recip(),
            _ => of.upload_bytes,
        };
        least = Some(least.map_or(of, |least| Speeds {
            host_bytes: least.host_bytes.min(of.host_bytes),
            host_products: least.host_products.min(of.host_products),
            upload_bytes: least.upload_bytes.min(of.upload_bytes),
            gpu_products: of.gpu_products,
        }));
    }
    least.map(|speeds| (sum, speeds))
}

/// Seconds of a typical prompt and answer, where all devices were measured. Layers of the GPUs count for their tokens
/// only: their prompts take the same time either way.
fn typical_seconds(machine: &Machine<'_>, plan: &Plan) -> Option<f64> {
    let arrangement = arrangement(plan);
    let answer = TYPICAL_ANSWER as f64 * machine.token_seconds(&arrangement);
    let Some((gpu, _)) = streamable(machine.devices, &arrangement) else { return Some(answer) };
    let (crossing, speeds) = crossing(machine, &arrangement, gpu)?;
    let rows = TYPICAL_PROMPT as f64;
    let streams = plan.streamed.as_ref().is_some_and(|streamed| streamed.from_rows <= TYPICAL_PROMPT);
    let prompt = if streams { crossing.through(&speeds, rows) } else { crossing.on_host(&speeds, rows) };
    Some(answer + prompt)
}

fn arrangement(plan: &Plan) -> Arrangement {
    plan.stages.iter().map(|stage| (stage.device, stage.blocks.clone())).collect()
}

/// Whether the stages and what streams keep within every budget and pool.
pub(crate) fn fits(machine: &Machine<'_>, plan: &Plan) -> bool {
    let account = Account::new(machine.costs, machine.devices, plan.context);
    let extra = plan.streamed.as_ref().map(Streamed::held);
    machine.fits_beside(&account, &arrangement(plan), extra.as_ref().map_or(&[][..], |extra| &extra[..]))
}

/// How a plan is made without anything that streams.
type Planner<'a> = dyn Fn(&[Device], &Request) -> Result<Plan, Box<Refusal>> + 'a;

/// `plan` with layers that stream, as far as the request wants them to and there is room; else `plan` as it is.
///
/// Layers may move off the GPU to make that room, with the same context where it can be had. `plain` plans without
/// anything that streams.
pub(crate) fn with_streaming(
    plan: Plan,
    devices: &[Device],
    costs: &dyn Costs,
    request: &Request,
    plain: &Planner<'_>,
) -> Plan {
    if request.streaming == Streaming::Never {
        return plan;
    }
    let machine = Machine::new(devices, costs);
    let on_disk = |plan: &Plan| -> usize {
        let disk = |stage: &&Stage| devices[stage.device].kind == DeviceClass::Disk;
        plan.stages.iter().filter(disk).map(|stage| stage.blocks.len()).sum()
    };
    let same = Request { context: Wanted::Exactly(plan.context), ..request.clone() };
    let mut found = None;
    // First the very context; `always` gives up some of it rather than not to stream.
    for request in [&same, request] {
        let mut next = plan.clone();
        for _ in 0..ROUNDS {
            let Ok(Some(streamed)) = streamed(&machine, request.streaming, &arrangement(&next), next.context)
            else {
                break;
            };
            let held = streamed.held();
            next.streamed = Some(streamed);
            if fits(&machine, &next) {
                found = Some(next);
                break;
            }
            let mut smaller = devices.to_vec();
            for (device, bytes) in held {
                smaller[device].budget = smaller[device].budget.saturating_sub(bytes);
            }
            match plain(&smaller, request) {
                Ok(plan) => next = plan,
                Err(_) => break,
            }
        }
        if found.is_some() || request.streaming == Streaming::Auto {
            break;
        }
    }
    let Some(found) = found else { return plan };
    let pays = || match (typical_seconds(&machine, &found), typical_seconds(&machine, &plan)) {
        (Some(with), Some(without)) => with < without,
        _ => false,
    };
    // Reading more from a disk is never worth it.
    let worse = on_disk(&found) > on_disk(&plan);
    if request.streaming == Streaming::Always || (!worse && pays()) { found } else { plan }
}
