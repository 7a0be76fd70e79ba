//! How much memory the device has.

use crate::gpu::Gpu;
use crate::heaps;
use halfbyte_backend::{DeviceKind, Memory};

/// The device's memory now: what the driver says, and no more than the budget that was set. The pool says
/// whether it is the host's own.
pub(crate) fn now(gpu: &Gpu) -> Memory {
    let shared = gpu.info.kind != DeviceKind::DiscreteGpu;
    let pool = if shared { "host".into() } else { gpu.info.name.clone() };
    let held = gpu.ledger.footprint().total();
    let heaps = heaps::read(&gpu.device);
    let (total, free, source) = match heaps {
        Some(heaps) if heaps.free.is_some() => (Some(heaps.total), heaps.free, "VK_EXT_memory_budget"),
        Some(heaps) => (Some(heaps.total), None, "Vulkan's heaps"),
        None => (None, None, "WebGPU does not tell"),
    };
    match gpu.budget {
        Some(budget) => {
            let left = budget.saturating_sub(held);
            let total = total.map_or(budget, |total| total.min(budget));
            let free = free.map_or(left, |free| free.min(left));
            Memory { pool, total: Some(total), free: Some(free), source: "the budget that was set".into() }
        }
        None => Memory { pool, total, free, source: source.into() },
    }
}
