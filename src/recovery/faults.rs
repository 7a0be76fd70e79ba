//! The rung below, after an allocation has failed or a device was lost.

use super::{Evidence, Loader};
use crate::devices::reopen;
use crate::event::{Event, EventKind};
use crate::planning::SMALLER_CHUNKS;
use crate::{Error, KvType};
use halfbyte_backend::{Fault, Faulty};
use halfbyte_inference::Engine;
use halfbyte_placement::ladder::{self, Action, Bottom, Ladder, Shortfall, State};
use halfbyte_placement::{DeviceClass, Plan};
use std::rc::Rc;

/// How often a device is opened again within one request before it is done without.
const REOPENED_AT_MOST: usize = 3;

/// Rungs of the ladder that one request may climb down. Each lowers a budget below what was planned, so
/// the ladder ends by itself; this ends it sooner for who waits.
const RUNGS_AT_MOST: usize = 256;

impl Loader {
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

    /// The rung below `state`, after an allocation on `at` has failed.
    fn make_room(&mut self, state: &State, at: usize, fault: &Fault) -> Result<(State, String), Error> {
        let backend = &self.planning.candidates[at].backend;
        let planned = state.plan.footprint(at).total();
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

    pub(super) fn ladder(&self) -> Ladder {
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

    /// Has `--fault` happen on the first GPU that holds a part of the model, else on the CPU.
    pub(super) fn wrap(&mut self, plan: &Plan) {
        let Some(fault) = self.fault.as_ref().filter(|_| self.faulty.is_none()) else { return };
        let kind = |device: usize| self.planning.candidates[device].device.kind;
        let gpu = plan.stages.iter().find(|stage| kind(stage.device) == DeviceClass::Gpu);
        let Some(stage) = gpu.or(plan.stages.first()) else { return };
        let backend = &mut self.planning.candidates[stage.device].backend;
        *backend = Rc::new(Faulty::new(Rc::clone(backend), Rc::clone(fault)));
        self.faulty = Some(stage.device);
    }
}
