//! The backend on any CubeCL runtime.

mod allocation;

use crate::cores::trusted;
use crate::guard::{caught, fault};
use crate::hardware::{Hardware, plane_size};
use crate::held::Held;
use crate::kernels::linear_cores::Cores;
use crate::kernels::variant::{Lookup, Team};
use crate::kv_rows::Cache;
use crate::layout::{CubeLayout, STAGING};
use crate::program::CubeProgram;
use crate::program_plan::ProgramPlan;
use crate::recording::{OneByOne, Recorder, Trial};
use crate::staging::Uploader;
use crate::weight::WeightLayout;
use cubecl::prelude::*;
use halfbyte_backend::{
    Backend, Caps, DeviceInfo, Fault, Fut, Kind, KvRows, KvSpan, Layout, Ledger, Memory, Program, Purpose,
    Slot, Stretch, Want, WeightSource,
};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Asks a driver for `(free, total)` bytes.
pub type Probe = Box<dyn Fn() -> Option<(u64, u64)>>;

/// A device behind a CubeCL runtime: `CubeBackend<CudaRuntime>` is CUDA, `CubeBackend<WgpuRuntime>` runs the
/// same kernels where there is no NVIDIA GPU.
pub struct CubeBackend<R: Runtime> {
    /// CubeCL keeps a device's server for the life of the process; so do we its client, which lets a
    /// submission's future outlive the backend.
    pub(crate) client: &'static ComputeClient<R>,
    info: DeviceInfo,
    layout: CubeLayout,
    pool: String,
    probe: Probe,
    ledger: Rc<Ledger>,
    /// Slots, with their tickets in the ledger.
    slots: RefCell<BTreeMap<u64, (Held, u64)>>,
    next: Cell<u64>,
    hardware: Hardware,
    /// Bytes that the ledger may reach.
    budget: Option<u64>,
    /// Who replays decode steps below CubeCL, if anyone does.
    recorder: Option<Rc<dyn Recorder>>,
}

impl<R: Runtime> CubeBackend<R> {
    /// A backend on a client that is open, of any CubeCL runtime; `open` does this for CUDA and wgpu.
    ///
    /// `pool` names the memory as [`Memory::pool`] does, `probe` asks the driver for it.
    pub fn on(client: ComputeClient<R>, info: DeviceInfo, pool: String, probe: Probe) -> Self {
        let mut hardware = Hardware::of(&info.name, &client);
        hardware.cores = trusted(&client, &hardware);
        let ledger = Rc::new(Ledger::new());
        ledger.enter("staging", Purpose::Staging, STAGING);
        Self {
            client: Box::leak(Box::new(client)),
            layout: CubeLayout::new(&info.name),
            info,
            pool,
            probe,
            ledger,
            slots: RefCell::default(),
            next: Cell::new(0),
            hardware,
            budget: None,
            recorder: None,
        }
    }

    /// The same backend with at most `budget` bytes, staging included: what is beyond is out of memory.
    #[must_use]
    pub fn with_budget(mut self, budget: Option<u64>) -> Self {
        self.budget = budget;
        self
    }

    /// The same backend with sums over planes (warps) or without: for tests, which run both kernels.
    ///
    /// # Errors
    /// [`Fault::Unsupported`] if planes have no one size here.
    #[doc(hidden)]
    pub fn with_planes(mut self, planes: bool) -> Result<Self, Fault> {
        let size = plane_size(self.client);
        if planes && size.is_none() {
            return Err(self.info.unsupported("planes of one size"));
        }
        self.hardware.team = Team::of(size.filter(|_| planes));
        Ok(self)
    }

    /// The same backend, whose products of many rows are tensor cores', but multiplied by loops: for tests.
    #[doc(hidden)]
    #[must_use]
    pub fn with_plain_cores(mut self) -> Self {
        self.hardware.cores = Some(Cores::PLAIN);
        self
    }

    /// The same backend with this many copies of the table of pairs in place of the codebook of 16: for tests.
    #[doc(hidden)]
    #[must_use]
    pub fn with_pairs(mut self, copies: usize) -> Self {
        self.hardware.lookup = Lookup::Pairs { copies };
        self
    }

    /// The same backend, whose decode steps are recorded and replayed through CubeCL, on `trial` or trusted: for
    /// tests.
    #[doc(hidden)]
    #[must_use]
    pub fn with_recordings(self, trial: Option<Trial>) -> Self {
        let recorder = OneByOne {
            device: self.device().to_owned(),
            client: self.client,
            trial,
            verdicts: RefCell::default(),
        };
        self.with_recorder(Rc::new(recorder))
    }

    /// How the trials of recorded steps ended, in words: for tests.
    #[doc(hidden)]
    pub fn trials(&self) -> Vec<String> {
        self.recorder.as_ref().map(|recorder| recorder.verdicts()).unwrap_or_default()
    }

    /// The same backend with decode steps recorded by `recorder`.
    pub(crate) fn with_recorder(mut self, recorder: Rc<dyn Recorder>) -> Self {
        self.recorder = Some(recorder);
        self
    }

    /// What CubeCL's own pools hold now, as a witness beside the [`Ledger`]: bytes in use, and bytes taken
    /// from the driver.
    ///
    /// # Errors
    /// [`Fault::Lost`] if the device does not answer.
    pub fn witnessed(&self) -> Result<(u64, u64), Fault> {
        let usage = caught(self.device(), || self.client.memory_usage())?;
        let usage = usage.map_err(|error| fault(self.device(), "memory usage", &error))?;
        Ok((usage.bytes_in_use, usage.bytes_reserved))
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn client(&self) -> &'static ComputeClient<R> {
        self.client
    }

    fn device(&self) -> &str {
        self.layout.device()
    }

    fn uploader(&self) -> Uploader<'_, R> {
        Uploader { device: self.device(), client: self.client }
    }

    fn held(&self, slot: Slot) -> Result<Held, Fault> {
        let slots = self.slots.borrow();
        let (held, _) =
            slots.get(&slot.0).ok_or_else(|| Fault::Internal(format!("slot {} is not held", slot.0)))?;
        Ok(held.clone())
    }

    /// A slot's cache, when all that was replayed over it has ended.
    fn cache(&self, slot: Slot) -> Result<Cache, Fault> {
        let Held::Kv { keys, values, shape } = self.held(slot)? else {
            return Err(Fault::Internal(format!("slot {} holds no cache", slot.0)));
        };
        if let Some(recorder) = &self.recorder {
            recorder.finish()?;
        }
        Ok(Cache { keys, values, shape })
    }
}

impl<R: Runtime> Backend for CubeBackend<R> {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn layout(&self) -> &dyn Layout {
        &self.layout
    }

    fn memory(&self) -> Memory {
        let probed = (self.probe)();
        let (free, total) = probed.unzip();
        let pool = self.pool.clone();
        match self.budget {
            Some(budget) => {
                let left = budget.saturating_sub(self.ledger.footprint().total());
                let total = total.map_or(budget, |total| total.min(budget));
                let free = free.map_or(left, |free| free.min(left));
                let source = "the budget that was set".to_owned();
                Memory { pool, total: Some(total), free: Some(free), source }
            }
            None => {
                let source = if probed.is_some() { "cuMemGetInfo" } else { "unknown" }.to_owned();
                Memory { pool, total, free, source }
            }
        }
    }

    fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn read_bandwidth(&self) -> Fut<'_, f64> {
        Box::pin(self.measure_bandwidth())
    }

    fn reserve<'a>(&'a self, wants: &'a [Want]) -> Fut<'a, Vec<Slot>> {
        Box::pin(async move {
            let sizes = wants.iter().map(|want| self.layout.want(&want.kind));
            let sizes = sizes.collect::<Result<Vec<u64>, Fault>>()?;
            if let Some(first) = wants.first() {
                self.check_room(&first.name, sizes.iter().sum(), first.purpose)?;
            }
            let buffers = wants.iter().map(|want| self.allocate_want(want)).collect::<Result<Vec<_>, _>>();
            let buffers = match buffers {
                Ok(buffers) => buffers,
                Err(error) => {
                    // What was allocated before it is dropped by now.
                    self.clean_up();
                    return Err(error);
                }
            };
            let mut slots = Vec::with_capacity(wants.len());
            for ((want, buffers), bytes) in wants.iter().zip(buffers).zip(sizes) {
                let ticket = self.ledger.enter(&want.name, want.purpose, bytes);
                let id = self.next.get();
                self.next.set(id + 1);
                self.slots.borrow_mut().insert(id, (buffers, ticket));
                slots.push(Slot(id));
            }
            Ok(slots)
        })
    }

    fn upload<'a>(&'a self, slot: Slot, want: &'a Want, source: &'a dyn WeightSource) -> Fut<'a, ()> {
        Box::pin(async move {
            match (self.held(slot)?, &want.kind) {
                (Held::Linear(layout, buffers), Kind::Linear(shape)) => {
                    if layout != WeightLayout::of(self.device(), shape)? {
                        return Err(Fault::Internal(format!("{} was reserved in another shape", want.name)));
                    }
                    self.uploader().linear(&layout, &buffers, shape, source).await?;
                }
                (Held::Norm(handle, _), Kind::Norm(shape)) => {
                    self.uploader().norm(&handle, shape, source).await?;
                }
                (Held::Rope { .. }, Kind::Rope(_)) | (Held::Kv { .. }, Kind::Kv(_)) => {}
                _ => {
                    return Err(Fault::Internal(format!(
                        "{}: its slot was reserved for another kind",
                        want.name
                    )));
                }
            }
            caught(self.device(), || self.client.flush())?
                .map_err(|error| fault(self.device(), &want.name, &error))
        })
    }

    fn moves_kv(&self) -> bool {
        true
    }

    fn read_kv<'a>(&'a self, slot: Slot, span: KvSpan) -> Fut<'a, KvRows> {
        Box::pin(async move { self.uploader().read_kv(&self.cache(slot)?, &span).await })
    }

    fn write_kv<'a>(&'a self, slot: Slot, span: KvSpan, rows: &'a KvRows) -> Fut<'a, ()> {
        Box::pin(async move { self.uploader().write_kv(&self.cache(slot)?, &span, rows).await })
    }

    fn release(&self, slots: &[Slot]) {
        for slot in slots {
            if let Some((_, ticket)) = self.slots.borrow_mut().remove(&slot.0) {
                self.ledger.strike(ticket);
            }
        }
        self.clean_up();
    }

    fn compile<'a>(
        &'a self,
        stretch: &'a Stretch,
        slots: &'a [Slot],
        caps: Caps,
    ) -> Fut<'a, Box<dyn Program>> {
        Box::pin(async move {
            if slots.len() != stretch.wants.len() {
                let (slots, wants) = (slots.len(), stretch.wants.len());
                return Err(Fault::Internal(format!("{slots} slots for {wants} wants")));
            }
            let plan = ProgramPlan::new(self.device(), stretch, &caps)?;
            let held = slots.iter().map(|&slot| self.held(slot)).collect::<Result<Vec<_>, _>>()?;
            let buffers = match self.program_buffers(&plan) {
                Ok(buffers) => buffers,
                Err(error) => {
                    self.clean_up();
                    return Err(error);
                }
            };
            let enter = |(purpose, bytes)| self.ledger.enter("program", purpose, bytes);
            let tickets = (Rc::clone(&self.ledger), plan.footprint().iter().map(enter).collect());
            let (hardware, recorder) = (self.hardware.clone(), self.recorder.clone());
            let program = CubeProgram::new(
                self.client,
                hardware,
                stretch.clone(),
                held,
                plan,
                buffers,
                caps,
                tickets,
                recorder,
            )?;
            Ok(Box::new(program) as Box<dyn Program>)
        })
    }
}
