//! Opening a wgpu adapter under CubeCL (feature `wgpu`): the kernels of this crate without an NVIDIA GPU.

use crate::CubeBackend;
use crate::guard::caught;
use cubecl::prelude::*;
use cubecl::wgpu::{AutoGraphicsApi, RuntimeOptions, WgpuDevice, WgpuRuntime, init_setup};
use halfbyte_backend::{DeviceInfo, DeviceKind, Fault};
use std::sync::OnceLock;
use wgpu::DeviceType;

/// The name of the device: CubeCL's, not the wgpu backend's `wgpu:0`.
const NAME: &str = "cube:0";

impl CubeBackend<WgpuRuntime> {
    /// Opens wgpu's best adapter.
    ///
    /// # Errors
    /// [`Fault::Lost`] with wgpu's words if there is none.
    pub fn open() -> Result<Self, Fault> {
        // CubeCL has one server for a device and process, and refuses to set it up twice.
        static ADAPTER: OnceLock<Result<DeviceInfo, Fault>> = OnceLock::new();
        let info = ADAPTER.get_or_init(|| caught(NAME, set_up)).clone()?;
        let client = caught(NAME, || WgpuRuntime::client(&WgpuDevice::DefaultDevice))?;
        // Software adapters and many integrated ones use the host's memory, which is counted elsewhere.
        let pool = if info.kind == DeviceKind::DiscreteGpu { NAME } else { "host" };
        Ok(Self::on(client, info, pool.to_owned(), Box::new(|| None)))
    }
}

fn set_up() -> DeviceInfo {
    let setup = init_setup::<AutoGraphicsApi>(&WgpuDevice::DefaultDevice, RuntimeOptions::default());
    let adapter = setup.adapter.get_info();
    DeviceInfo {
        name: NAME.to_owned(),
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
