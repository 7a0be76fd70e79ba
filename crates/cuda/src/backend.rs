//! The backend on any CubeCL runtime.

use crate::guard::{caught, fault};
use crate::kernels::variant::Norming;
use crate::layout::{CubeLayout, STAGING, register};
use crate::program::{CubeProgram, Launch, WeightBuffers, linear_of};
use crate::staging::{Uploader, persistent};
use crate::weight::WeightLayout;
use cubecl::ir::features::Plane;
use cubecl::prelude::*;
use cubecl::server::Handle;
use halfbyte_backend::{
    Backend, Caps, DeviceInfo, Fault, Fut, Kind, Layout, Ledger, Memory, NormKind, Program, Purpose, Slot,
    Stretch, Want, WantId, WeightSource,
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
    client: &'static ComputeClient<R>,
    info: DeviceInfo,
    layout: CubeLayout,
    pool: String,
    probe: Probe,
    ledger: Rc<Ledger>,
    held: RefCell<BTreeMap<u64, Held>>,
    next: Cell<u64>,
    /// Units of a plane, where all planes have that many and can sum.
    planes: Option<usize>,
}

struct Held {
    buffers: Buffers,
    ticket: u64,
}

#[derive(Debug, Clone)]
pub(crate) enum Buffers {
    Linear(WeightLayout, WeightBuffers),
    /// The weight, and whether a bias follows it.
    Norm(Handle, bool),
}

impl<R: Runtime> CubeBackend<R> {
    /// A backend on a client that is open, of any CubeCL runtime; `open` does this for CUDA and wgpu.
    ///
    /// `pool` names the memory as [`Memory::pool`] does, `probe` asks the driver for it.
    pub fn on(client: ComputeClient<R>, info: DeviceInfo, pool: String, probe: Probe) -> Self {
        let planes = client.features().plane.contains(Plane::Ops).then(|| plane_size(&client)).flatten();
        let ledger = Rc::new(Ledger::new());
        ledger.enter("staging", Purpose::Staging, STAGING);
        Self {
            client: Box::leak(Box::new(client)),
            layout: CubeLayout::new(&info.name),
            info,
            pool,
            probe,
            ledger,
            held: RefCell::default(),
            next: Cell::new(0),
            planes,
        }
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
        self.planes = size.filter(|_| planes);
        Ok(self)
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

    #[cfg(all(test, feature = "cuda", feature = "wgpu"))]
    pub(crate) fn client(&self) -> &ComputeClient<R> {
        self.client
    }

    fn device(&self) -> &str {
        self.layout.device()
    }

    fn uploader(&self) -> Uploader<'_, R> {
        Uploader { device: self.device(), client: self.client }
    }

    fn out_of_memory(&self, name: &str, wanted: u64, what: Purpose) -> Fault {
        let free = (self.probe)().map(|(free, _)| free);
        Fault::OutOfMemory { device: self.device().to_owned(), name: name.to_owned(), wanted, free, what }
    }

    /// A buffer of `bytes`, which are there when this returns.
    fn allocate(&self, name: &str, bytes: u64, what: Purpose) -> Result<Handle, Fault> {
        let largest = self.client.properties().memory.max_page_size;
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

    fn allocate_want(&self, want: &Want) -> Result<Buffers, Fault> {
        let (name, what) = (&want.name, want.purpose);
        match &want.kind {
            Kind::Linear(shape) => {
                let layout = WeightLayout::of(self.device(), shape)?;
                let codes = self.allocate(name, layout.codes_bytes(), what)?;
                let scales = self.allocate(name, layout.scales_bytes(), what)?;
                let state = self.allocate(name, layout.state_bytes(), what)?;
                Ok(Buffers::Linear(layout, WeightBuffers { codes, scales, state }))
            }
            Kind::Norm(shape) => {
                let handle = self.allocate(name, CubeLayout::norm(shape), what)?;
                Ok(Buffers::Norm(handle, shape.bias.is_some()))
            }
            Kind::Rope(_) | Kind::Kv(_) => {
                Err(self.layout.want(&want.kind).err().unwrap_or_else(|| self.info.unsupported(name.clone())))
            }
        }
    }

    /// Refuses what cannot fit before anything is allocated.
    fn check_room(&self, name: &str, wanted: u64, what: Purpose) -> Result<(), Fault> {
        match (self.probe)() {
            Some((free, _)) if wanted > free => Err(self.out_of_memory(name, wanted, what)),
            _ => Ok(()),
        }
    }

    fn buffers(&self, slot: Slot) -> Result<Buffers, Fault> {
        let held = self.held.borrow();
        let held =
            held.get(&slot.0).ok_or_else(|| Fault::Internal(format!("slot {} is not held", slot.0)))?;
        Ok(held.buffers.clone())
    }

    fn launch(&self, stretch: &Stretch, slots: &[Slot], index: usize) -> Result<Launch, Fault> {
        let step = *linear_of(self.device(), stretch, &stretch.steps[index])?;
        let buffers = |id: WantId| {
            let slot = slots.get(id.0 as usize);
            self.buffers(*slot.ok_or_else(|| Fault::Internal(format!("no slot for want {}", id.0)))?)
        };
        let Buffers::Linear(layout, weight) = buffers(step.weight)? else {
            return Err(Fault::Internal(format!("step {index}: the slot of its weight holds a norm")));
        };
        let norm = match step.pre.norm {
            None => None,
            Some(norm) => match buffers(norm.weight)? {
                Buffers::Norm(handle, bias) => match norm.kind {
                    NormKind::Rms => Some((handle, Norming::Rms)),
                    NormKind::Layer => Some((handle, Norming::Layer { bias })),
                },
                Buffers::Linear(..) => {
                    return Err(Fault::Internal(format!(
                        "step {index}: the slot of its norm holds a matrix"
                    )));
                }
            },
        };
        let name = stretch.want(step.weight)?.name.clone();
        Ok(Launch { name, weight, layout, norm, step, planes: self.planes })
    }

    /// Registers for `caps.rows` rows, with their ledger tickets.
    fn registers(&self, stretch: &Stretch, caps: &Caps) -> Result<(Vec<Handle>, u64), Fault> {
        let sizes: Vec<u64> = stretch.widths.iter().map(|&width| register(width, caps.rows)).collect();
        let total = sizes.iter().sum();
        self.check_room("activations", total, Purpose::Activations)?;
        let mut handles = Vec::with_capacity(sizes.len());
        for (index, (&bytes, &width)) in sizes.iter().zip(&stretch.widths).enumerate() {
            let handle = self.allocate(&format!("register {index}"), bytes, Purpose::Activations)?;
            // Columns that pad a row are read, times code 0, and must not be NaN; no kernel writes them.
            if register(width, 1) > width as u64 * 4 {
                let zeros = vec![0; usize::try_from(bytes.min(STAGING / 2)).unwrap_or(0)];
                let mut at = 0;
                while at < bytes {
                    let count = (bytes - at).min(zeros.len() as u64);
                    let chunk = &zeros[..count as usize];
                    self.uploader().write_rows(&handle, chunk, 1, (at / 16) as usize, 1)?;
                    at += count;
                }
            }
            handles.push(handle);
        }
        Ok((handles, total))
    }
}

/// Units of a plane, if all planes have that many and a cube holds them.
fn plane_size<R: Runtime>(client: &ComputeClient<R>) -> Option<usize> {
    let hardware = &client.properties().hardware;
    let size = hardware.plane_size_min;
    let known = size == hardware.plane_size_max && size.is_power_of_two() && (4..=64).contains(&size);
    known.then_some(size as usize)
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
        Memory {
            pool: self.pool.clone(),
            total: probed.map(|(_, total)| total),
            free: probed.map(|(free, _)| free),
            source: if probed.is_some() { "cuMemGetInfo" } else { "unknown" }.to_owned(),
        }
    }

    fn ledger(&self) -> &Ledger {
        &self.ledger
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
                    // What was allocated before it is dropped by now: back to the driver with it.
                    caught(self.device(), || self.client.memory_cleanup())?;
                    return Err(error);
                }
            };
            let mut slots = Vec::with_capacity(wants.len());
            for ((want, buffers), bytes) in wants.iter().zip(buffers).zip(sizes) {
                let ticket = self.ledger.enter(&want.name, want.purpose, bytes);
                let id = self.next.get();
                self.next.set(id + 1);
                self.held.borrow_mut().insert(id, Held { buffers, ticket });
                slots.push(Slot(id));
            }
            Ok(slots)
        })
    }

    fn upload<'a>(&'a self, slot: Slot, want: &'a Want, source: &'a dyn WeightSource) -> Fut<'a, ()> {
        Box::pin(async move {
            match (self.buffers(slot)?, &want.kind) {
                (Buffers::Linear(layout, buffers), Kind::Linear(shape)) => {
                    self.uploader().linear(&layout, &buffers, shape, source).await?;
                }
                (Buffers::Norm(handle, _), Kind::Norm(shape)) => {
                    self.uploader().norm(&handle, shape, source).await?;
                }
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

    fn release(&self, slots: &[Slot]) {
        for slot in slots {
            if let Some(held) = self.held.borrow_mut().remove(&slot.0) {
                self.ledger.strike(held.ticket);
            }
        }
        // A device that is lost has nothing to clean up.
        let _ = caught(self.device(), || self.client.memory_cleanup());
    }

    fn compile<'a>(
        &'a self,
        stretch: &'a Stretch,
        slots: &'a [Slot],
        caps: Caps,
    ) -> Fut<'a, Box<dyn Program>> {
        Box::pin(async move {
            stretch.check()?;
            let launches = (0..stretch.steps.len()).map(|index| self.launch(stretch, slots, index));
            let launches = launches.collect::<Result<Vec<_>, Fault>>()?;
            let (registers, bytes) = self.registers(stretch, &caps)?;
            let ticket = self.ledger.enter("registers", Purpose::Activations, bytes);
            Ok(Box::new(CubeProgram {
                device: self.device().to_owned(),
                client: self.client,
                launches,
                registers,
                widths: stretch.widths.clone(),
                inputs: stretch.inputs.clone(),
                outputs: stretch.outputs.clone(),
                caps,
                ledger: Rc::clone(&self.ledger),
                tickets: vec![ticket],
                dispatches: 0,
                submissions: 0,
            }) as Box<dyn Program>)
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
