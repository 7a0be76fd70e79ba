//! Opening a wgpu adapter under CubeCL (feature `wgpu`): the kernels of this crate without an NVIDIA GPU.

use crate::CubeBackend;
use crate::guard::caught;
use crate::weight::unsupported;
use cubecl::prelude::*;
use cubecl::wgpu::{AutoGraphicsApi, RuntimeOptions, WgpuDevice, WgpuRuntime, init_setup};
use halfbyte_backend::{DeviceInfo, DeviceKind, Fault};
use std::sync::OnceLock;
use wgpu::DeviceType;

impl CubeBackend<WgpuRuntime> {
    /// Opens wgpu's best adapter.
    ///
    /// # Errors
    /// [`Fault::Lost`] with wgpu's words if there is none.
    pub fn open() -> Result<Self, Fault> {
        Self::open_nth(0)
    }

    /// Opens wgpu's best adapter as `cube:0`, or the processor's as `cube:1`: each a wgpu device of its own with a
    /// server of CubeCL's of its own, so that two of them stand for two GPUs.
    ///
    /// # Errors
    /// [`Fault::Lost`] with wgpu's words if there is none; [`Fault::Unsupported`] for a third.
    pub fn open_nth(index: usize) -> Result<Self, Fault> {
        // CubeCL has one server for a device and process, and refuses to set it up twice.
        static ADAPTERS: [OnceLock<Result<DeviceInfo, Fault>>; 2] = [OnceLock::new(), OnceLock::new()];
        // CubeCL's, not the wgpu backend's `wgpu:0`.
        let name = format!("cube:{index}");
        let device = if index == 0 { WgpuDevice::DefaultDevice } else { WgpuDevice::Cpu };
        let adapter = ADAPTERS.get(index).ok_or_else(|| unsupported(&name, "more than two devices"))?;
        let info = adapter.get_or_init(|| caught(&name, || set_up(&name, &device))).clone()?;
        let client = caught(&name, || WgpuRuntime::client(&device))?;
        // Software adapters and many integrated ones use the host's memory, which is counted elsewhere.
        let pool = if info.kind == DeviceKind::DiscreteGpu { name } else { "host".to_owned() };
        Ok(Self::on(client, info, pool, Box::new(|| None)))
    }
}

fn set_up(name: &str, device: &WgpuDevice) -> DeviceInfo {
    let setup = init_setup::<AutoGraphicsApi>(device, RuntimeOptions::default());
    let adapter = setup.adapter.get_info();
    DeviceInfo {
        name: name.to_owned(),
        adapter: adapter.name,
        driver: format!("{}, {} {}", adapter.backend, adapter.driver, adapter.driver_info),
        kind: match adapter.device_type {
            DeviceType::DiscreteGpu => DeviceKind::DiscreteGpu,
            DeviceType::Cpu => DeviceKind::Software,
            _ => DeviceKind::IntegratedGpu,
        },
        limits: vec![(
            "max_storage_buffer_binding_size".to_owned(),
            setup.device.limits().max_storage_buffer_binding_size.to_string(),
        )],
    }
}
