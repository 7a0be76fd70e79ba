//! The backend on any CubeCL runtime.

use crate::cores::{self, TOLERANCE};
use crate::guard::{caught, fault};
use crate::hardware::{Hardware, offered_cores, plane_size};
use crate::held::{Held, WeightBuffers, kv_bytes};
use crate::kernels::linear_cores::Cores;
use crate::kernels::variant::{Lookup, Team};
use crate::kv_rows::Cache;
use crate::layout::{CubeLayout, STAGING};
use crate::program::CubeProgram;
use crate::program_plan::{ProgramPlan, Role};
use crate::recording::{OneByOne, Recorder, Trial};
use crate::staging::{Uploader, persistent};
use crate::weight::{WeightLayout, aligned};
use cubecl::prelude::*;
use cubecl::server::Handle;
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
        hardware.cores = trusted_cores(&client, &hardware);
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

    fn out_of_memory(&self, name: &str, wanted: u64, what: Purpose) -> Fault {
        let free = self.memory().free;
        Fault::OutOfMemory { device: self.device().to_owned(), name: name.to_owned(), wanted, free, what }
    }

    /// Bytes of the largest buffer.
    pub(crate) fn largest_buffer(&self) -> u64 {
        self.client.properties().memory.max_page_size
    }

    /// A buffer of `bytes`, which are there when this returns.
    pub(crate) fn allocate(&self, name: &str, bytes: u64, what: Purpose) -> Result<Handle, Fault> {
        let largest = self.largest_buffer();
        if bytes > largest {
            let message = format!("{name}: {bytes} bytes in one buffer, of at most {largest}");
            return Err(self.info.unsupported(message));
        }
        self.allocate_now(name, bytes, what)
    }

    fn allocate_now(&self, name: &str, bytes: u64, what: Purpose) -> Result<Handle, Fault> {
        let size = usize::try_from(bytes).map_err(|_| self.out_of_memory(name, bytes, what))?;
        // CubeCL allocates later, on its own thread, and panics there if that fails; asking for the
        // resource waits for it and tells.
        let handle = persistent(self.device(), self.client, || self.client.empty(size))?;
        let handle = caught(self.device(), || self.client.get_resource(handle.clone()).map(|_| handle));
        match handle {
            Ok(Ok(handle)) => Ok(handle),
            Ok(Err(_)) | Err(_) => Err(self.out_of_memory(name, bytes, what)),
        }
    }

    fn allocate_want(&self, want: &Want) -> Result<Held, Fault> {
        let (name, what) = (&want.name, want.purpose);
        match &want.kind {
            Kind::Linear(shape) => {
                let layout = WeightLayout::of(self.device(), shape)?;
                let codes = self.allocate(name, layout.codes_bytes(), what)?;
                let scales = self.allocate(name, layout.scales_bytes(), what)?;
                let state = self.allocate(name, layout.state_bytes(), what)?;
                Ok(Held::Linear(layout, WeightBuffers { codes, scales, state }))
            }
            Kind::Norm(shape) => {
                let handle = self.allocate(name, CubeLayout::norm(shape), what)?;
                Ok(Held::Norm(handle, shape.bias.is_some()))
            }
            Kind::Rope(shape) => {
                let table = self.allocate(name, aligned(shape.bytes()), what)?;
                self.uploader().write(&table, bytemuck::cast_slice(&shape.table().values))?;
                Ok(Held::Rope { table, pairs: shape.inv_freq.len() })
            }
            Kind::Kv(shape) => {
                let bytes = aligned(kv_bytes(shape));
                let keys = self.allocate(name, bytes, what)?;
                let values = self.allocate(name, bytes, what)?;
                Ok(Held::Kv { keys, values, shape: *shape })
            }
        }
    }

    /// Refuses what cannot fit before anything is allocated.
    fn check_room(&self, name: &str, wanted: u64, what: Purpose) -> Result<(), Fault> {
        match self.memory().free {
            Some(free) if wanted > free => Err(self.out_of_memory(name, wanted, what)),
            _ => Ok(()),
        }
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

    /// A program's buffers.
    fn program_buffers(&self, plan: &ProgramPlan) -> Result<BTreeMap<Role, Handle>, Fault> {
        let total = plan.buffers.values().map(|buffer| buffer.bytes).sum();
        self.check_room("activations", total, Purpose::Activations)?;
        let mut buffers = BTreeMap::new();
        for (&role, buffer) in &plan.buffers {
            let handle = self.allocate(&format!("{role:?}"), buffer.bytes, buffer.purpose)?;
            if buffer.padded {
                self.clear(&handle, buffer.bytes)?;
            }
            buffers.insert(role, handle);
        }
        Ok(buffers)
    }

    /// Fills a buffer with zeros.
    fn clear(&self, handle: &Handle, bytes: u64) -> Result<(), Fault> {
        let zeros = vec![0; usize::try_from(bytes.min(STAGING / 2)).unwrap_or(0)];
        let mut at = 0;
        while at < bytes {
            let count = (bytes - at).min(zeros.len() as u64);
            self.uploader().write_rows(handle, &zeros[..count as usize], 1, (at / 16) as usize, 1)?;
            at += count;
        }
        Ok(())
    }

    /// Back to the driver with what was dropped; a device that is lost has nothing to clean up.
    pub(crate) fn clean_up(&self) {
        let _ = caught(self.device(), || self.client.memory_cleanup());
    }
}

/// How products use tensor cores, if the device has any and they give what the host gives.
fn trusted_cores<R: Runtime>(client: &ComputeClient<R>, hardware: &Hardware) -> Option<Cores> {
    let wanted = std::env::var("HALFBYTE_CUDA_CORES").ok();
    let cores = offered_cores(client, wanted.as_deref())?;
    let tried = Hardware { cores: Some(cores), ..hardware.clone() };
    // One half a number was asked for by who knows what it costs.
    let most = if cores.split { TOLERANCE } else { 1e-2 };
    let device = &hardware.device;
    match cores::error(client, &tried) {
        Ok(error) if error <= most => Some(cores),
        Ok(error) => {
            tracing::warn!(
                "{device}: a product on tensor cores is off by {error:.1e}: they are not used; please report this"
            );
            None
        }
        Err(fault) => {
            tracing::warn!(
                "{fault}: tensor cores are not used (their kernels need mma.h and crt/mma.h of CUDA's toolkit)"
            );
            None
        }
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

#[cfg(all(test, feature = "wgpu"))]
mod tests {
    use super::*;
    use cubecl::wgpu::WgpuRuntime;
    use halfbyte_backend::NormShape;

    fn open() -> CubeBackend<WgpuRuntime> {
        CubeBackend::<WgpuRuntime>::open().expect("these tests need a wgpu adapter; Mesa's lavapipe will do")
    }

    fn norm(len: usize) -> Want {
        let shape = NormShape { len, weight: "norm".into(), bias: None };
        Want { name: "norm".into(), purpose: Purpose::Weights, kind: Kind::Norm(shape) }
    }

    #[test]
    fn what_does_not_fit_is_refused_before_it_is_allocated() {
        let mut backend = open();
        backend.probe = Box::new(|| Some((1000, 1 << 30)));
        let fault = pollster::block_on(backend.reserve(&[norm(32), norm(300)])).unwrap_err();
        let Fault::OutOfMemory { wanted, free, .. } = fault else { panic!("{fault}") };
        assert_eq!((wanted, free), (512 + 1536, Some(1000)));
        assert_eq!(backend.ledger().footprint(), backend.layout().resident());
        assert_eq!(backend.memory().free, Some(1000));
        assert_eq!(pollster::block_on(backend.reserve(&[norm(32)])).unwrap().len(), 1);
    }

    #[test]
    fn an_allocation_that_the_driver_refuses_is_a_value_and_the_device_goes_on() {
        let backend = open();
        let fault = backend.allocate_now("too large", 1 << 40, Purpose::Weights).unwrap_err();
        assert!(matches!(fault, Fault::OutOfMemory { wanted: 0x100_0000_0000, .. }), "{fault}");
        backend.allocate_now("small", 512, Purpose::Weights).unwrap();
    }
}
