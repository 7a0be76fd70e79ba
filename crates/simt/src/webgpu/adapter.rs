//! The adapter and its settings.

use super::device::{Device, Shared};
use super::errors::validation;
use super::queue::Queue;
use crate::finding::{Finding, Findings};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use wgpu::custom::{AdapterInterface, DispatchDevice, DispatchQueue, DispatchSurface, RequestDeviceFuture};

/// What the device is to be like.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Whether there are subgroups: the smallest size that the adapter tells of, and the size that shaders
    /// run with, which is the largest.
    pub subgroup: Option<(u32, u32)>,
    /// Decides the order of a dispatch's workgroups.
    pub seed: u64,
    /// The limits that the adapter offers.
    pub limits: wgpu::Limits,
    /// Features that it offers beside subgroups.
    pub features: wgpu::Features,
    /// Bytes of all buffers together, beyond which creating one is out of memory.
    pub memory: u64,
    /// What kind of device it says it is.
    pub device_type: wgpu::DeviceType,
}

impl Default for Settings {
    /// A discrete GPU of WebGPU's default limits with subgroups of 32.
    fn default() -> Self {
        Self {
            subgroup: Some((32, 32)),
            seed: 0,
            limits: wgpu::Limits::default(),
            features: wgpu::Features::empty(),
            memory: 1 << 32,
            device_type: wgpu::DeviceType::DiscreteGpu,
        }
    }
}

/// What becomes of a shader's label and text before it is parsed.
type Edit = Box<dyn Fn(&str, &str) -> String + Send + Sync>;

/// What all devices of an adapter share.
pub(super) struct State {
    pub(super) settings: Settings,
    pub(super) edit: Option<Edit>,
    pub(super) findings: Mutex<Findings>,
    pub(super) operations: Mutex<u64>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// An adapter, to open devices on and to ask what was found.
#[derive(Debug, Clone)]
pub struct Adapter(Arc<State>);

impl Adapter {
    /// An adapter of its own.
    pub fn new(settings: Settings) -> Self {
        Self::make(settings, None)
    }

    /// An adapter whose devices take `edit(label, text)` for each shader: for mutants.
    pub fn editing(settings: Settings, edit: impl Fn(&str, &str) -> String + Send + Sync + 'static) -> Self {
        Self::make(settings, Some(Box::new(edit)))
    }

    fn make(settings: Settings, edit: Option<Edit>) -> Self {
        let (findings, operations) = (Mutex::default(), Mutex::default());
        Self(Arc::new(State { settings, edit, findings, operations }))
    }

    /// As wgpu takes it.
    pub fn wgpu(&self) -> wgpu::Adapter {
        wgpu::Adapter::from_custom(self.clone())
    }

    /// What was found since the last call.
    pub fn findings(&self) -> Vec<Finding> {
        self.0.findings.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Operations that shaders have made, each counted for every invocation that took part: scalars, so
    /// that a product of two `vec4` counts as four.
    pub fn operations(&self) -> u64 {
        *self.0.operations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Settings {
    pub(super) fn features(&self) -> wgpu::Features {
        let mut features = self.features;
        features.set(wgpu::Features::SUBGROUP, self.subgroup.is_some());
        features
    }

    pub(super) fn info(&self) -> wgpu::AdapterInfo {
        let (least, size) = self.subgroup.unwrap_or((1, 1));
        wgpu::AdapterInfo {
            name: "interpreter".into(),
            vendor: 0,
            device: 0,
            device_type: self.device_type,
            device_pci_bus_id: String::new(),
            driver: "halfbyte-simt".into(),
            driver_info: env!("CARGO_PKG_VERSION").into(),
            backend: wgpu::Backend::Noop,
            subgroup_min_size: least,
            subgroup_max_size: size,
            transient_saves_memory: false,
        }
    }
}

impl AdapterInterface for Adapter {
    fn request_device(&self, desc: &wgpu::DeviceDescriptor<'_>) -> Pin<Box<dyn RequestDeviceFuture>> {
        let missing = desc.required_features - self.0.settings.features();
        if !missing.is_empty() {
            let error = wgpu::wgc::instance::RequestDeviceError::UnsupportedFeature(missing);
            return Box::pin(std::future::ready(Err(error.into())));
        }
        let shared = Arc::new(Shared::new(self.0.clone(), desc));
        // wgpu has no way for others to make its error of exceeded limits: the device says it.
        let offered = &self.0.settings.limits;
        desc.required_limits.check_limits_with_fail_fn(offered, false, |name, requested, allowed| {
            shared.report(validation(format!("{name}: {requested} is asked for, {allowed} is offered")));
        });
        let device = DispatchDevice::custom(Device(shared.clone()));
        let queue = DispatchQueue::custom(Queue(shared));
        Box::pin(std::future::ready(Ok((device, queue))))
    }

    fn is_surface_supported(&self, _surface: &DispatchSurface) -> bool {
        false
    }

    fn features(&self) -> wgpu::Features {
        self.0.settings.features()
    }

    fn limits(&self) -> wgpu::Limits {
        self.0.settings.limits.clone()
    }

    fn downlevel_capabilities(&self) -> wgpu::DownlevelCapabilities {
        wgpu::DownlevelCapabilities::default()
    }

    fn get_info(&self) -> wgpu::AdapterInfo {
        self.0.settings.info()
    }

    fn get_texture_format_features(&self, _format: wgpu::TextureFormat) -> wgpu::TextureFormatFeatures {
        wgpu::TextureFormatFeatures {
            allowed_usages: wgpu::TextureUsages::empty(),
            flags: wgpu::TextureFormatFeatureFlags::empty(),
        }
    }

    fn get_presentation_timestamp(&self) -> wgpu::PresentationTimestamp {
        wgpu::PresentationTimestamp::INVALID_TIMESTAMP
    }

    fn cooperative_matrix_properties(&self) -> Vec<wgpu::wgt::CooperativeMatrixProperties> {
        Vec::new()
    }
}
