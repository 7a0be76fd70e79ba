//! The decision itself.

use crate::account::Account;
use crate::context::Contexts;
use crate::machine::{Arrangement, Machine};
use crate::refusal::{invalid, refuse};
use crate::search::{Objective, search};
use crate::streaming::{Streamed, with_streaming};
use crate::{CONTEXT_FLOOR, CONTEXT_STEP, Costs, Device, Policy, Refusal, Request, Wanted, device_map};
use halfbyte_backend::Footprint;
use serde::Serialize;
use std::ops::Range;

/// A contiguous range of blocks on one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stage {
    /// The device, as an index into the devices that were planned for.
    pub device: usize,
    /// Its blocks.
    pub blocks: Range<usize>,
    /// The bytes they take there.
    pub footprint: Footprint,
}

/// Where every block lives.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// The stages in the order of the model; together they are all blocks.
    pub stages: Vec<Stage>,
    /// Tokens of context that the footprints are for.
    pub context: usize,
    /// What the rates predict for decoding with a short context, handovers included; absent where nobody stated the rate
    /// of a device in use, a disk's apart, which is then taken to be a part of its processor's ([`rates`](crate::rates)).
    pub predicted_tokens_per_second: Option<f64>,
    /// The layers that stream to a GPU for prompts, if any do.
    pub streamed: Option<Streamed>,
}

impl Plan {
    /// The device of `block`, if the model has it.
    pub fn device_of(&self, block: usize) -> Option<usize> {
        self.stages.iter().find(|stage| stage.blocks.contains(&block)).map(|stage| stage.device)
    }

    /// Everything that the plan puts on `device`.
    pub fn footprint(&self, device: usize) -> Footprint {
        let mut sum = Footprint::new();
        for stage in self.stages.iter().filter(|stage| stage.device == device) {
            sum.merge(&stage.footprint);
        }
        if let Some(streamed) = &self.streamed {
            if streamed.host == device {
                sum.merge(&streamed.host_footprint);
            }
            if streamed.device == device {
                sum.merge(&streamed.footprint);
            }
        }
        sum
    }
}

/// Places all blocks on `devices` as `request` asks, within every budget and pool. Disks take blocks only
/// where there is no placement without them, or where a device map says so. Room for layers that stream is made where
/// the request wants them to; that there is none is no refusal.
///
/// # Errors
/// A [`Refusal`] if nothing fits, or if the request contradicts the devices or the model.
pub fn plan(devices: &[Device], costs: &dyn Costs, request: &Request) -> Result<Plan, Box<Refusal>> {
    let found = placed(devices, costs, request)?;
    let plain = |devices: &[Device], request: &Request| placed(devices, costs, request);
    Ok(with_streaming(found, devices, costs, request, &plain))
}

/// [`plan`] without anything that streams.
fn placed(devices: &[Device], costs: &dyn Costs, request: &Request) -> Result<Plan, Box<Refusal>> {
    let planner = Planner::new(devices, costs, &request.policy).map_err(invalid)?;
    let in_memory = planner.without_disks().map(|planner| planner.choose(request));
    match in_memory {
        Some(Ok((arrangement, context))) => planner.plan(&arrangement, context),
        _ => match planner.choose(request) {
            Ok((arrangement, context)) => planner.plan(&arrangement, context),
            Err(context) => Err(refuse(&planner, request, context)),
        },
    }
}

/// The largest context up to `upper` (a multiple of [`CONTEXT_STEP`], or `upper` itself) at which
/// `policy` finds a placement; `None` if there is none, or if the policy contradicts the devices.
pub fn max_context(devices: &[Device], costs: &dyn Costs, policy: &Policy, upper: usize) -> Option<usize> {
    Planner::new(devices, costs, policy).ok()?.max_context(upper)
}

/// One policy on one machine.
pub(crate) struct Planner<'a> {
    pub(crate) machine: Machine<'a>,
    /// The arrangement, where the policy leaves no choice.
    pub(crate) fixed: Option<Arrangement>,
    objective: Objective,
}

impl<'a> Planner<'a> {
    /// # Errors
    /// What contradicts the devices or the model.
    pub(crate) fn new(devices: &'a [Device], costs: &'a dyn Costs, policy: &Policy) -> Result<Self, String> {
        if devices.is_empty() {
            return Err("there is no device to place the model on".into());
        }
        if costs.blocks() == 0 {
            return Err("the model has no blocks".into());
        }
        let machine = Machine::new(devices, costs);
        let (fixed, objective) = match policy {
            Policy::Auto => (None, Objective::Seconds),
            Policy::Balanced => (None, Objective::Balanced),
            Policy::Sequential => (None, Objective::Sequential),
            Policy::Only(name) => (Some(device_map::only(&machine, name)?), Objective::Any),
            Policy::Given(map) => (Some(device_map::given(&machine, map)?), Objective::Any),
        };
        Ok(Self { machine, fixed, objective })
    }

    /// The same planner for a machine without disks, if that is another one.
    fn without_disks(&self) -> Option<Self> {
        let open = self.fixed.is_none();
        let machine = self.machine.without_disks().filter(|_| open)?;
        Some(Self { machine, fixed: None, objective: self.objective })
    }

    /// The best arrangement for `request` and the context that it holds; the context that is to be refused if
    /// there is none.
    fn choose(&self, request: &Request) -> Result<(Arrangement, usize), usize> {
        match request.context {
            Wanted::Exactly(context) => Ok((self.arrange(context).ok_or(context)?, context)),
            Wanted::AtMost(most) => {
                let least = request.min_context.min(most);
                let floor = CONTEXT_FLOOR.clamp(least, most);
                let start =
                    Contexts::new(least, floor).largest(|context| self.feasible(context)).ok_or(least)?;
                let arrangement = self.arrange(start).ok_or(start)?;
                let context = Contexts::new(start, most)
                    .largest(|context| self.holds(&arrangement, context))
                    .unwrap_or(start);
                Ok((arrangement, context))
            }
        }
    }

    /// The best arrangement at `context`, if any fits.
    fn arrange(&self, context: usize) -> Option<Arrangement> {
        self.arrange_by(context, self.objective)
    }

    /// Whether anything fits at `context`.
    pub(crate) fn feasible(&self, context: usize) -> bool {
        self.arrange_by(context, Objective::Any).is_some()
    }

    fn arrange_by(&self, context: usize, objective: Objective) -> Option<Arrangement> {
        let account = Account::new(self.machine.costs, self.machine.devices, context);
        match &self.fixed {
            Some(fixed) => self.machine.fits(&account, fixed).then(|| fixed.clone()),
            None => search(&self.machine, &account, objective),
        }
    }

    /// Whether `arrangement` fits at `context`.
    fn holds(&self, arrangement: &Arrangement, context: usize) -> bool {
        self.machine.fits(&Account::new(self.machine.costs, self.machine.devices, context), arrangement)
    }

    /// The largest context up to `upper` at which anything fits.
    pub(crate) fn max_context(&self, upper: usize) -> Option<usize> {
        Contexts::new(CONTEXT_STEP, upper).largest(|context| self.feasible(context))
    }

    /// `arrangement` with its bytes.
    fn plan(&self, arrangement: &Arrangement, context: usize) -> Result<Plan, Box<Refusal>> {
        let stages = arrangement
            .iter()
            .map(|(device, blocks)| {
                let footprint =
                    self.machine.costs.stretch(*device, blocks.clone(), context).map_err(invalid)?;
                Ok(Stage { device: *device, blocks: blocks.clone(), footprint })
            })
            .collect::<Result<_, Box<Refusal>>>()?;
        let predicted_tokens_per_second = self.machine.tokens_per_second(arrangement);
        Ok(Plan { stages, context, predicted_tokens_per_second, streamed: None })
    }
}
