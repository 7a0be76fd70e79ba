//! How much memory the device has.

use crate::gpu::Gpu;
use halfbyte_backend::{DeviceKind, Memory};

/// The device's memory now. WebGPU does not tell; the pool says whether it is the host's own.
pub(crate) fn now(gpu: &Gpu) -> Memory {
    let shared = gpu.info.kind != DeviceKind::DiscreteGpu;
    let pool = if shared { "host".into() } else { gpu.info.name.clone() };
    let held = gpu.ledger.footprint().total();
    match gpu.budget {
        Some(budget) => Memory {
            pool,
            total: Some(budget),
            free: Some(budget.saturating_sub(held)),
            source: "the budget that was set".into(),
        },
        None => Memory { pool, total: None, free: None, source: "WebGPU does not tell".into() },
    }
}
