//! Why a model does not fit, in bytes, and what would make it fit.

use crate::account::Account;
use crate::machine::{Arrangement, Machine};
use crate::plan::Planner;
use crate::{Costs, Device, Policy, Request, Wanted, max_context, plan};
use halfbyte_backend::human_bytes;
use serde::Serialize;
use std::fmt;
use std::iter::once;
use std::ops::Range;

/// A request that cannot be met.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
pub struct Refusal {
    /// What stands in the way.
    pub reason: Reason,
    /// For each device that could take more blocks, how many bytes more would do.
    pub devices: Vec<Shortage>,
    /// The context in tokens that was refused.
    pub context: usize,
    /// The largest smaller context that fits, in tokens, if any.
    pub max_context: Option<usize>,
    /// Why nothing can be read from the disk, where layers could have gone there.
    pub without_disk: Option<String>,
    /// Changes that fit: each was planned.
    pub remedies: Vec<Remedy>,
}

/// What stands in the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// A block does not fit.
    Memory(Misfit),
    /// No device can run the model; the text says what one lacks.
    Unsupported(String),
    /// The request contradicts the devices or the model.
    Invalid(String),
}

/// The block that does not fit where the least is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Misfit {
    /// Its name.
    pub block: String,
    /// The bytes that it adds to its device.
    pub bytes: u64,
    /// The name of the device whose memory is short: of a block that was to be read from a disk, its host.
    pub device: String,
    /// Bytes of the device's budget that the blocks before it, and devices of its pool, leave.
    pub left: u64,
    /// The device's budget in bytes.
    pub budget: u64,
}

/// How far a device is from taking what no other device can take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shortage {
    /// The device's name.
    pub device: String,
    /// Its budget in bytes.
    pub budget: u64,
    /// Where the budget comes from.
    pub budget_source: String,
    /// Bytes of the budget that other devices of its pool withhold: what they hold, and what their own
    /// smaller budgets forbid.
    pub shared: u64,
    /// Bytes that it would have to hold, with every other device as full as it can be.
    pub needed: u64,
    /// `needed` beyond what it may hold.
    pub shortfall: u64,
    /// What it lacks, if it cannot run these blocks at all; the figures are then 0.
    pub unsupported: Option<String>,
}

/// A change that was planned and found to fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Remedy {
    /// The options to give, as in `--kv-cache q8`, or the name of a model to take instead.
    pub options: String,
    /// The context in tokens that it was planned to hold.
    pub context: usize,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            Reason::Memory(Misfit { block, bytes, device, left, budget }) => write!(
                f,
                "{block} needs {}, {device} has {} of its {} budget left",
                human_bytes(*bytes),
                human_bytes(*left),
                human_bytes(*budget)
            )?,
            Reason::Unsupported(why) => f.write_str(why)?,
            Reason::Invalid(what) => return f.write_str(what),
        }
        if let Some(why) = &self.without_disk {
            write!(f, "; nothing can be read from the disk: {why}")?;
        }
        match self.remedies.split_last() {
            None => Ok(()),
            Some((last, [])) => write!(f, "; {} fits", last.options),
            Some((last, others)) => {
                let others: Vec<_> = others.iter().map(|remedy| remedy.options.as_str()).collect();
                write!(f, "; {} or {} fits", others.join(", "), last.options)
            }
        }
    }
}

/// Adds the `alternatives` that fit to a refusal's remedies: each is the options that lead to it, as in
/// `--kv-cache q8`, and the costs under them, and is planned for the request that was refused. One that
/// fits only with a smaller context is offered with that context.
pub fn refusal_with(
    mut refusal: Box<Refusal>,
    devices: &[Device],
    request: &Request,
    alternatives: &[(String, &dyn Costs)],
) -> Box<Refusal> {
    if matches!(refusal.reason, Reason::Invalid(_)) {
        return refusal;
    }
    for (options, costs) in alternatives {
        if let Ok(plan) = plan(devices, *costs, request) {
            refusal.remedies.push(Remedy { options: options.clone(), context: plan.context });
        } else if let Some(context) = max_context(devices, *costs, &request.policy, refusal.context)
            && useful(request, context)
            && refusal.max_context.is_none_or(|without| context > without)
        {
            let options = format!("{options} --context {context}");
            refusal.remedies.push(Remedy { options, context });
        }
    }
    refusal
}

/// Whether `context` is enough for what was asked.
fn useful(request: &Request, context: usize) -> bool {
    match request.context {
        Wanted::Exactly(_) => context > 0,
        Wanted::AtMost(_) => context >= request.min_context,
    }
}

/// The refusal of a request that contradicts the devices or the model.
pub(crate) fn invalid(what: String) -> Box<Refusal> {
    Box::new(Refusal {
        reason: Reason::Invalid(what),
        devices: Vec::new(),
        context: 0,
        max_context: None,
        without_disk: None,
        remedies: Vec::new(),
    })
}

/// The refusal of a request for which nothing fits at `context`.
pub(crate) fn refuse(planner: &Planner<'_>, request: &Request, context: usize) -> Box<Refusal> {
    let machine = &planner.machine;
    let account = Account::new(machine.costs, machine.devices, context);
    let gaps = match &planner.fixed {
        Some(fixed) => fixed_gaps(machine, &account, fixed),
        None => open_gaps(machine, &account),
    };
    let devices: Vec<_> = gaps.iter().map(|gap| gap.shortage(machine, &account)).collect();
    let least = (0..gaps.len())
        .filter(|&index| devices[index].shortfall > 0)
        .min_by_key(|&index| devices[index].shortfall);
    let reason = match least {
        Some(index) => Reason::Memory(gaps[index].misfit(machine, &account)),
        None => Reason::Unsupported(
            devices
                .iter()
                .find_map(|row| row.unsupported.clone())
                .unwrap_or_else(|| "no device can hold any block of the model".into()),
        ),
    };

    let mut remedies = Vec::new();
    let max_context = planner.max_context(context);
    if let Some(context) = max_context.filter(|&context| useful(request, context)) {
        remedies.push(Remedy { options: format!("--context {context}"), context });
    }
    if request.policy != Policy::Auto {
        let auto = Request { policy: Policy::Auto, ..request.clone() };
        let planner_auto = Planner::new(machine.devices, machine.costs, &auto.policy);
        if planner_auto.is_ok_and(|auto| auto.feasible(context)) {
            remedies.push(Remedy { options: "--device-map auto".into(), context });
        }
    }
    Box::new(Refusal { reason, devices, context, max_context, without_disk: None, remedies })
}

/// Blocks that a device would have to hold, and the bytes that it has for them.
struct Gap {
    device: usize,
    ranges: Vec<Range<usize>>,
    available: u64,
}

/// The gaps of an arrangement that the user has fixed: every device with all that it was given.
fn fixed_gaps(machine: &Machine<'_>, account: &Account<'_>, fixed: &Arrangement) -> Vec<Gap> {
    // Where a device cannot run its blocks, the figures of the others still stand.
    let held = machine.held(account, fixed).unwrap_or_else(|_| vec![0; machine.devices.len()]);
    (0..machine.devices.len())
        .map(|device| {
            let own = fixed.iter().filter(|(other, _)| *other == device);
            let ranges: Vec<_> = own.map(|(_, range)| range.clone()).collect();
            Gap { device, ranges, available: machine.available(device, &held) }
        })
        .filter(|gap| !gap.ranges.is_empty())
        .collect()
}

/// The gaps of an open search: for every device, the blocks that those before it in the stack cannot
/// take from the front, nor those after it from the back.
fn open_gaps(machine: &Machine<'_>, account: &Account<'_>) -> Vec<Gap> {
    let blocks = machine.costs.blocks();
    (0..machine.stack.len())
        .filter_map(|turn| {
            let device = machine.stack[turn];
            let mut held = vec![0_u64; machine.devices.len()];
            let mut start = 0;
            for &other in &machine.stack[..turn] {
                let end = account.reach(other, start, start, machine.available(other, &held));
                held[other] = account.total(other, start..end).unwrap_or(0);
                start = end;
            }
            let mut end = blocks;
            for &other in machine.stack[turn + 1..].iter().rev() {
                let from = account.earliest(other, end, machine.available(other, &held));
                held[other] = account.total(other, from..end).unwrap_or(0);
                end = from;
            }
            let available = machine.available(device, &held);
            (start < end).then(|| Gap { device, ranges: once(start..end).collect(), available })
        })
        .collect()
}

impl Gap {
    fn needed(&self, account: &Account<'_>) -> Result<u64, String> {
        self.ranges
            .iter()
            .try_fold(0_u64, |sum, range| Ok(sum.saturating_add(account.total(self.device, range.clone())?)))
    }

    fn shortage(&self, machine: &Machine<'_>, account: &Account<'_>) -> Shortage {
        let device = &machine.devices[self.device];
        let needed = self.needed(account);
        let row = Shortage {
            device: device.name.clone(),
            budget: device.budget,
            budget_source: device.budget_source.clone(),
            shared: device.budget.saturating_sub(self.available),
            needed: 0,
            shortfall: 0,
            unsupported: None,
        };
        let read = self
            .ranges
            .iter()
            .fold(0_u64, |sum, range| sum.saturating_add(account.mapped(self.device, range.clone())));
        match needed {
            Ok(needed) if needed <= self.available && !device.may_read(read) => {
                let limit = device.files.unwrap_or(u64::MAX);
                let budget_source = "its limit of files".into();
                let shortfall = read - limit;
                Shortage { budget: limit, budget_source, shared: 0, needed: read, shortfall, ..row }
            }
            Ok(needed) => Shortage { needed, shortfall: needed.saturating_sub(self.available), ..row },
            Err(why) => Shortage { unsupported: Some(why), ..row },
        }
    }

    /// The first block that does not fit, for a device with a shortfall.
    fn misfit(&self, machine: &Machine<'_>, account: &Account<'_>) -> Misfit {
        let device = &machine.devices[self.device];
        let mut full = 0_u64;
        let mut misfit = None;
        for range in &self.ranges {
            let end = account.reach(self.device, range.start, range.start, self.available - full);
            let end = end.min(range.end);
            let before = account.total(self.device, range.start..end).unwrap_or(0);
            if end < range.end {
                // A disk may lack memory, or be forbidden to read so much.
                let read = |end| account.mapped(self.device, range.start..end);
                if !device.may_read(read(end + 1)) {
                    let limit = device.files.unwrap_or(u64::MAX);
                    return Misfit {
                        block: machine.costs.name(end),
                        bytes: read(end + 1) - read(end),
                        device: device.name.clone(),
                        left: limit.saturating_sub(read(end)),
                        budget: limit,
                    };
                }
                let with = account.total(self.device, range.start..end + 1).unwrap_or(before);
                misfit = Some((end, with.saturating_sub(before), self.available - full - before));
                break;
            }
            full += before;
        }
        let (block, bytes, left) = misfit.unwrap_or((0, 0, self.available));
        // What is read from a disk is computed in its host's memory.
        let host = machine.host_of(self.device).unwrap_or(self.device);
        Misfit {
            block: machine.costs.name(block),
            bytes,
            device: machine.devices[host].name.clone(),
            left,
            budget: device.budget,
        }
    }
}
