//! Moves that the devices' memory asks for: out before it runs short, back once there is room again.

use super::{Due, Loader};
use crate::Error;
use crate::devices::Candidate;
use crate::event::{Event, EventKind};
use crate::pressure::Reading;
use halfbyte_backend::human_bytes;
use halfbyte_inference::Engine;
use halfbyte_placement::ladder::{self, Action, Bottom, Shortfall, State};
use halfbyte_placement::{DeviceClass, Plan};

impl Loader {
    /// After a model was loaded: what is left now is what others were promised.
    pub(crate) fn settle(&mut self) {
        self.pressure.settle(&self.planning.candidates);
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

    /// Has blocks leave the host's memory, if without that an answer of `bytes` would take its headroom. They stay away until
    /// it is [`answered`](Self::answered): memory that it has not filled yet looks free.
    ///
    /// # Errors
    /// [`Error::Usage`] if there is no room for `what` and nothing that could make some.
    pub(crate) fn make_way(&mut self, bytes: u64, what: &str) -> Result<(), Error> {
        let is_host = |one: &Candidate| one.device.kind == DeviceClass::Cpu;
        let candidates = &self.planning.candidates;
        let (Some(at), Some(state)) = (candidates.iter().position(is_host), &self.state) else {
            return Ok(());
        };
        let reading = self.pressure.with_answer(at, candidates, bytes).filter(|reading| reading.short);
        let (Some(reading), Some(free)) = (reading, candidates[at].backend.memory().free) else {
            return Ok(());
        };
        let name = candidates[at].device.name.clone();
        let cause = format!("{name}: {what} take {}, {} are left", human_bytes(bytes), human_bytes(free));
        let mut now = state.clone();
        let mates = candidates.iter().map(|one| one.device.pool == candidates[at].device.pool);
        for (device, _) in now.devices.iter_mut().zip(mates).filter(|(_, is_mate)| *is_mate) {
            device.budget = device.budget.min(reading.fits);
        }
        let shortfall = Shortfall { device: at, fits: Some(reading.fits) };
        let is_there = state.plan.footprint(at).total() > 0;
        match is_there.then(|| ladder::next(&self.ladder(), &self.planning, &now, shortfall)) {
            Some(Ok((state, actions))) => {
                self.due = Some(Due { state, actions, device: name, kind: EventKind::MemoryShort, cause });
                self.answering = true;
                Ok(())
            }
            // Its headroom may serve.
            _ if bytes <= free => Ok(()),
            _ => Err(Error::Usage(format!("{cause}, and nothing can move out: ask for fewer tokens"))),
        }
    }

    /// The answer that blocks made way for is made, or never will be.
    pub(crate) fn answered(&mut self) {
        self.answering = false;
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
        if self.answering {
            return None;
        }
        let room = self.pressure.lasting_room(readings)?;
        let (state, home) = (self.state.as_ref()?, self.home.as_ref()?);
        let place = |state: &State| {
            let Plan { stages, context, streamed, .. } = state.plan.clone();
            (stages, context, streamed, state.setting)
        };
        if place(state) == place(home) {
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
}
