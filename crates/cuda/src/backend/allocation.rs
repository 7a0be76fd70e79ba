//! Buffers of wants and programs: refused before they are allocated where there is no room, and there when they are given out.

use super::CubeBackend;
use crate::guard::caught;
use crate::held::{Held, WeightBuffers, kv_bytes};
use crate::layout::{CubeLayout, STAGING};
use crate::program_plan::{ProgramPlan, Role};
use crate::staging::persistent;
use crate::weight::{WeightLayout, aligned};
use cubecl::prelude::*;
use cubecl::server::Handle;
use halfbyte_backend::{Backend, Fault, Kind, Purpose, Want};
use std::collections::BTreeMap;

impl<R: Runtime> CubeBackend<R> {
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

    /// The buffers of a want; tables are filled.
    pub(super) fn allocate_want(&self, want: &Want) -> Result<Held, Fault> {
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
    pub(super) fn check_room(&self, name: &str, wanted: u64, what: Purpose) -> Result<(), Fault> {
        match self.memory().free {
            Some(free) if wanted > free => Err(self.out_of_memory(name, wanted, what)),
            _ => Ok(()),
        }
    }

    /// A program's buffers.
    pub(super) fn program_buffers(&self, plan: &ProgramPlan) -> Result<BTreeMap<Role, Handle>, Fault> {
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
