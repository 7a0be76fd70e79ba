//! Consecutive blocks on one backend: reserved, filled, compiled.

use super::parked::{HeldSlot, is_uploaded};
use super::{Moved, Progress};
use crate::ModelError;
use halfbyte_backend::{Backend, Caps, Fault, Kind, Program, Slot, Stretch, Want, WeightSource};
use std::ops::Range;
use std::rc::Rc;

/// Consecutive blocks on one backend.
pub(crate) struct Stage {
    pub(crate) backend: Rc<dyn Backend>,
    pub(crate) blocks: Range<usize>,
    pub(crate) stretch: Stretch,
    /// One for each want, empty until it is reserved.
    pub(crate) slots: Vec<Option<HeldSlot>>,
    pub(crate) program: Option<Box<dyn Program>>,
}

impl Drop for Stage {
    fn drop(&mut self) {
        // A program may refer to the slots.
        self.program = None;
        let slots: Vec<Slot> = self.slots.iter().flatten().map(|held| held.slot).collect();
        self.backend.release(&slots);
    }
}

impl Stage {
    pub(crate) fn name(&self) -> &str {
        &self.backend.info().name
    }

    pub(crate) async fn compile(&mut self, caps: Caps) -> Result<(), Fault> {
        let slots: Vec<Slot> = self.slots.iter().flatten().map(|held| held.slot).collect();
        self.program = Some(self.backend.compile(&self.stretch, &slots, caps).await?);
        Ok(())
    }

    /// Reserves the wants that have no slot yet: all or none.
    pub(crate) async fn reserve(&mut self, moved: &mut Moved) -> Result<(), Fault> {
        let missing: Vec<usize> = (0..self.slots.len()).filter(|&at| self.slots[at].is_none()).collect();
        let wants: Vec<Want> = missing.iter().map(|&at| self.stretch.wants[at].clone()).collect();
        for held in self.slots.iter().flatten() {
            moved.kept += held.bytes;
        }
        if wants.is_empty() {
            return Ok(());
        }
        let slots = self.backend.reserve(&wants).await?;
        for ((at, want), slot) in missing.into_iter().zip(&wants).zip(slots) {
            let bytes = self.backend.layout().want(&want.kind)?;
            // Rope tables and caches are ready once they are reserved.
            let filled = !is_uploaded(&want.kind);
            self.slots[at] = Some(HeldSlot { slot, bytes, filled });
            moved.placed += bytes;
            moved.caches_lost |= matches!(want.kind, Kind::Kv(_));
        }
        Ok(())
    }

    pub(crate) fn program(&mut self) -> Result<&mut Box<dyn Program>, Fault> {
        self.program.as_mut().ok_or_else(|| Fault::Internal("a stage that was not compiled".into()))
    }
}

/// Uploads what is not there yet.
pub(crate) async fn fill(
    stages: &mut [Stage],
    source: &dyn WeightSource,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), ModelError> {
    let slots = stages.iter().flat_map(|stage| stage.slots.iter().flatten());
    let total = slots.filter(|held| !held.filled).map(|held| held.bytes).sum();
    let mut done = 0;
    for stage in stages {
        let Stage { backend, stretch, slots, .. } = stage;
        for (want, held) in stretch.wants.iter().zip(slots) {
            let Some(held) = held.as_mut().filter(|held| !held.filled) else { continue };
            backend.upload(held.slot, want, source).await?;
            held.filled = true;
            done += held.bytes;
            progress(Progress {
                name: &want.name,
                device: &backend.info().name,
                bytes: held.bytes,
                done,
                total,
            });
        }
    }
    Ok(())
}
