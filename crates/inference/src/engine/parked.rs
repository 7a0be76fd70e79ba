//! What stays on the devices while an engine is between two placements.

use super::stage::Stage;
use halfbyte_backend::{Backend, Kind, Slot, Want};
use std::rc::Rc;

/// A reserved want.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeldSlot {
    pub(crate) slot: Slot,
    /// Its bytes on its device.
    pub(crate) bytes: u64,
    /// Whether it holds what it was reserved for.
    pub(crate) filled: bool,
}

/// Filled slots of stages that are no more. What is still parked when it is dropped is freed.
#[derive(Default)]
pub(crate) struct Parked(Vec<(Rc<dyn Backend>, Want, HeldSlot)>);

impl Parked {
    /// Takes over what a stage holds; its program must be at rest. A slot that was never filled is freed.
    pub(crate) fn take_in(&mut self, mut stage: Stage) {
        stage.program = None;
        let wants = std::mem::take(&mut stage.stretch.wants);
        for (want, held) in wants.into_iter().zip(stage.slots.iter_mut()) {
            if let Some(held) = held.take_if(|held| held.filled) {
                self.0.push((Rc::clone(&stage.backend), want, held));
            }
        }
    }

    /// The slot on `backend` that holds `want`, which then belongs to the caller.
    pub(crate) fn find(&mut self, backend: &Rc<dyn Backend>, want: &Want) -> Option<HeldSlot> {
        let is = |(on, held, _): &(Rc<dyn Backend>, Want, HeldSlot)| Rc::ptr_eq(on, backend) && held == want;
        self.0.iter().position(is).map(|at| self.0.swap_remove(at).2)
    }

    /// Where `want` is held, whichever device it is on.
    pub(crate) fn elsewhere(&self, want: &Want) -> Option<(&dyn Backend, Slot)> {
        let found = self.0.iter().find(|(_, held, _)| held == want);
        found.map(|(backend, _, held)| (&**backend, held.slot))
    }

    /// Frees what is on `backend`.
    pub(crate) fn forget(&mut self, backend: &Rc<dyn Backend>) {
        self.0.retain(|(on, _, held)| {
            let stays = !Rc::ptr_eq(on, backend);
            if !stays {
                on.release(&[held.slot]);
            }
            stays
        });
    }

    /// Frees everything.
    pub(crate) fn release(&mut self) {
        for (backend, _, held) in self.0.drain(..) {
            backend.release(&[held.slot]);
        }
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        self.release();
    }
}

/// Whether a want is filled by an upload: rope tables and caches are ready once they are reserved.
pub(crate) fn is_uploaded(kind: &Kind) -> bool {
    matches!(kind, Kind::Linear(_) | Kind::Norm(_))
}
