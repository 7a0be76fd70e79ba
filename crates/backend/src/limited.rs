//! A backend that holds no more than a limit which may change while it runs.

use crate::{
    Backend, Caps, DeviceInfo, Fault, Fut, KvRows, KvSpan, Layout, Ledger, Memory, Program, Purpose, Slot,
    Stretch, Want, WeightSource,
};
use std::cell::Cell;
use std::rc::Rc;

/// The most bytes that a device may hold. Shared by the [`Limited`] backend and whoever changes it.
pub type Limit = Rc<Cell<u64>>;

/// A backend that refuses every allocation beyond a [`Limit`] and otherwise does what the one within does.
///
/// What it holds when the limit falls below it stays: [`memory`](Backend::memory) then says that nothing is
/// free, and it is for the owner to move out.
pub struct Limited {
    inner: Rc<dyn Backend>,
    limit: Limit,
}

impl Limited {
    /// Limits a backend.
    pub fn new(inner: Rc<dyn Backend>, limit: Limit) -> Self {
        Self { inner, limit }
    }

    fn free(&self) -> u64 {
        self.limit.get().saturating_sub(self.ledger().footprint().total())
    }

    fn out_of_memory(&self, name: String, wanted: u64, what: Purpose) -> Fault {
        let (device, free) = (self.info().name.clone(), Some(self.free()));
        Fault::OutOfMemory { device, name, wanted, free, what }
    }
}

impl Backend for Limited {
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }

    fn layout(&self) -> &dyn Layout {
        self.inner.layout()
    }

    fn memory(&self) -> Memory {
        let memory = self.inner.memory();
        Memory {
            total: Some(memory.total.map_or(self.limit.get(), |total| total.min(self.limit.get()))),
            free: Some(memory.free.map_or(self.free(), |free| free.min(self.free()))),
            source: "a limit that may change".into(),
            pool: memory.pool,
        }
    }

    fn ledger(&self) -> &Ledger {
        self.inner.ledger()
    }

    fn reserve<'a>(&'a self, wants: &'a [Want]) -> Fut<'a, Vec<Slot>> {
        Box::pin(async move {
            let mut sum = 0_u64;
            for want in wants {
                sum = sum.saturating_add(self.layout().want(&want.kind)?);
                if sum > self.free() {
                    let bytes = self.layout().want(&want.kind)?;
                    return Err(self.out_of_memory(want.name.clone(), bytes, want.purpose));
                }
            }
            self.inner.reserve(wants).await
        })
    }

    fn upload<'a>(&'a self, slot: Slot, want: &'a Want, source: &'a dyn WeightSource) -> Fut<'a, ()> {
        self.inner.upload(slot, want, source)
    }

    fn release(&self, slots: &[Slot]) {
        self.inner.release(slots);
    }

    fn contents<'a>(&'a self, slot: Slot, want: &'a Want) -> Result<Box<dyn WeightSource + 'a>, Fault> {
        self.inner.contents(slot, want)
    }

    fn moves_kv(&self) -> bool {
        self.inner.moves_kv()
    }

    fn read_kv<'a>(&'a self, slot: Slot, span: KvSpan) -> Fut<'a, KvRows> {
        self.inner.read_kv(slot, span)
    }

    fn write_kv<'a>(&'a self, slot: Slot, span: KvSpan, rows: &'a KvRows) -> Fut<'a, ()> {
        self.inner.write_kv(slot, span, rows)
    }

    fn read_bandwidth(&self) -> Fut<'_, f64> {
        self.inner.read_bandwidth()
    }

    fn compile<'a>(
        &'a self,
        stretch: &'a Stretch,
        slots: &'a [Slot],
        caps: Caps,
    ) -> Fut<'a, Box<dyn Program>> {
        Box::pin(async move {
            let bytes = self.layout().program(stretch, &caps)?.total();
            if bytes > self.free() {
                let name = format!("the program of {} steps", stretch.steps.len());
                return Err(self.out_of_memory(name, bytes, Purpose::Activations));
            }
            self.inner.compile(stretch, slots, caps).await
        })
    }
}
