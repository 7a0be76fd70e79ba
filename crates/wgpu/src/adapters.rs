//! The adapters of this machine, in the order in which they are numbered.

use halfbyte_backend::{DeviceInfo, DeviceKind, Fault};

/// What to do where there is none.
const NO_ADAPTER: &str = "no Vulkan, Metal or DirectX 12 adapter was found: install the GPU's driver, or for \
    software Vulkan on Debian and Ubuntu `apt install mesa-vulkan-drivers`, or use the CPU";

/// Every adapter with the interfaces that have compute shaders: real GPUs first, discrete before
/// integrated, software last. One GPU that several interfaces offer is listed once, by the first.
///
/// # Errors
/// [`Fault::Unsupported`] saying how to get one, if there is none.
pub(crate) async fn adapters() -> Result<Vec<wgpu::Adapter>, Fault> {
    let descriptor = wgpu::InstanceDescriptor {
        backends: wgpu::Backends::PRIMARY,
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    };
    let instance = wgpu::Instance::new(descriptor);
    let mut adapters = instance.enumerate_adapters(wgpu::Backends::PRIMARY).await;
    adapters.retain(|adapter| {
        let wanted = wgpu::DownlevelFlags::COMPUTE_SHADERS;
        adapter.get_downlevel_capabilities().flags.contains(wanted)
    });
    adapters.sort_by_key(|adapter| rank(&adapter.get_info()));
    let mut seen = Vec::new();
    adapters.retain(|adapter| {
        let info = adapter.get_info();
        // Only hardware that says where it is plugged in can be told apart from its twin.
        let place = (info.vendor, info.device, info.device_pci_bus_id);
        let twin = !place.2.is_empty() && seen.contains(&place);
        seen.push(place);
        !twin
    });
    if adapters.is_empty() {
        return Err(Fault::Unsupported { device: "wgpu".into(), what: NO_ADAPTER.into() });
    }
    Ok(adapters)
}

/// The place of a kind of adapter in the numbering.
fn rank(info: &wgpu::AdapterInfo) -> u8 {
    match kind(info) {
        DeviceKind::DiscreteGpu => 0,
        DeviceKind::IntegratedGpu => 1,
        DeviceKind::Cpu | DeviceKind::Software | DeviceKind::Disk => 2,
    }
}

fn kind(info: &wgpu::AdapterInfo) -> DeviceKind {
    let name = info.name.to_lowercase();
    let software = ["llvmpipe", "lavapipe", "swiftshader", "microsoft basic render"];
    if info.device_type == wgpu::DeviceType::Cpu || software.iter().any(|known| name.contains(known)) {
        return DeviceKind::Software;
    }
    match info.device_type {
        wgpu::DeviceType::IntegratedGpu => DeviceKind::IntegratedGpu,
        _ => DeviceKind::DiscreteGpu,
    }
}

/// The adapter as `halfbyte devices` shows it.
pub(crate) fn describe(adapter: &wgpu::Adapter, index: usize) -> DeviceInfo {
    let info = adapter.get_info();
    let limits = adapter.limits();
    let subgroups = if adapter.features().contains(wgpu::Features::SUBGROUP) {
        format!("{} to {}", info.subgroup_min_size, info.subgroup_max_size)
    } else {
        "none".into()
    };
    let mut place = Vec::new();
    if !info.device_pci_bus_id.is_empty() {
        place.push(("pci_bus_id".to_owned(), info.device_pci_bus_id.clone()));
    }
    DeviceInfo {
        name: format!("wgpu:{index}"),
        adapter: info.name.clone(),
        driver: format!("{:?}, {} {}", info.backend, info.driver, info.driver_info),
        kind: kind(&info),
        limits: [
            ("max_binding".into(), limits.max_storage_buffer_binding_size.to_string()),
            ("max_buffer".into(), limits.max_buffer_size.to_string()),
            ("subgroup".into(), subgroups),
        ]
        .into_iter()
        .chain(place)
        .collect(),
    }
}
