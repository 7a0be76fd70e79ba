//! What the driver says of its memory: WebGPU has no word for it, Vulkan has.

/// The memory that is nearest to the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Heaps {
    /// Bytes of all device-local heaps.
    pub(crate) total: u64,
    /// Bytes that this process could still take of them, other processes considered, where the driver
    /// tells (VK_EXT_memory_budget).
    pub(crate) free: Option<u64>,
}

/// Asks the driver; `None` where there is no Vulkan underneath.
#[cfg(not(any(target_vendor = "apple", target_family = "wasm")))]
pub(crate) fn read(device: &wgpu::Device) -> Option<Heaps> {
    use ash::{ext, vk};

    // SAFETY: the guard is dropped at the end of this function and nothing of it is destroyed.
    let hal = unsafe { device.as_hal::<wgpu::hal::api::Vulkan>() }?;
    let physical = hal.raw_physical_device();
    let instance = hal.shared_instance().raw_instance();
    // SAFETY: both handles are alive as long as the guard is.
    let extensions = unsafe { instance.enumerate_device_extension_properties(physical) }.ok()?;
    let budgeted = extensions
        .iter()
        .any(|one| one.extension_name_as_c_str().is_ok_and(|name| name == ext::memory_budget::NAME));

    let mut budget = vk::PhysicalDeviceMemoryBudgetPropertiesEXT::default();
    let mut properties = vk::PhysicalDeviceMemoryProperties2::default();
    if budgeted {
        properties = properties.push_next(&mut budget);
    }
    // SAFETY: as above; the chain holds only a structure whose extension the device has, and outlives the
    // call. wgpu asks for Vulkan 1.1 or its extension, where the function is from.
    unsafe { instance.get_physical_device_memory_properties2(physical, &mut properties) };

    let memory = properties.memory_properties;
    let local: Vec<usize> = memory
        .memory_heaps_as_slice()
        .iter()
        .enumerate()
        .filter(|(_, heap)| heap.flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL))
        .map(|(index, _)| index)
        .collect();
    let total = local.iter().map(|&index| memory.memory_heaps[index].size).sum();
    let left = |index: &usize| budget.heap_budget[*index].saturating_sub(budget.heap_usage[*index]);
    // Mesa 22 lists no budget although it is asked: 0 of everything is no answer.
    let answered = budgeted && local.iter().any(|&index| budget.heap_budget[index] > 0);
    Some(Heaps { total, free: answered.then(|| local.iter().map(left).sum()) })
}

/// Metal and the browser: not asked yet.
#[cfg(any(target_vendor = "apple", target_family = "wasm"))]
pub(crate) fn read(_device: &wgpu::Device) -> Option<Heaps> {
    None
}
