//! What a model takes of its devices, by three accounts: the plan, our ledgers, the system.

use crate::witness::private_resident;
use halfbyte_backend::{Backend, DeviceKind, Footprint, Purpose};
use halfbyte_inference::DeviceFootprint;
use std::collections::BTreeSet;

/// One device's memory: what was planned, what our ledger holds, what the system says.
#[derive(Debug, Clone, serde::Serialize)]
pub struct MemoryRow {
    /// The device.
    pub device: String,
    /// Bytes that the plan gave it.
    pub planned_bytes: u64,
    /// Bytes of all allocations on it, by its ledger.
    pub measured_bytes: u64,
    /// Bytes that it reads where they lie in mapped files, by its ledger: no memory of this process.
    pub mapped_bytes: u64,
    /// Bytes by an independent witness. For what lives in the host's memory (the CPU, layers on the disk, a
    /// software GPU): the growth of this process's private resident memory since before loading, less what the
    /// ledgers of the others of these hold, and plus what its own held before. `None` where nothing tells.
    pub witnessed_bytes: Option<u64>,
    /// The same planned and allocated bytes by what they are for; what is read in files is among them.
    pub purposes: Vec<PurposeRow>,
}

/// What one purpose takes of a device.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct PurposeRow {
    /// What the bytes are for: `weights`, `KV cache`.
    pub purpose: String,
    /// Bytes that the plan gave it.
    pub planned_bytes: u64,
    /// Bytes of its allocations, by the device's ledger.
    pub measured_bytes: u64,
}

/// A row for each device of `planned`. `resident_before`: private resident bytes of this process before it loaded
/// anything.
pub(crate) fn memory_rows(
    planned: &[DeviceFootprint],
    backends: &[&dyn Backend],
    resident_before: Option<u64>,
) -> Vec<MemoryRow> {
    let grown = private_resident().zip(resident_before).map(|(now, before)| now.saturating_sub(before));
    let in_host_memory = |backend: &dyn Backend| {
        matches!(backend.info().kind, DeviceKind::Cpu | DeviceKind::Disk | DeviceKind::Software)
    };
    // What a backend holds since it was opened was there before.
    let held = |backend: &dyn Backend| {
        backend.ledger().footprint().total().saturating_sub(backend.layout().resident().total())
    };
    let host: u64 = backends.iter().filter(|one| in_host_memory(**one)).map(|one| held(*one)).sum();
    let row = |device: &DeviceFootprint| {
        let backend = backends.iter().copied().find(|backend| backend.info().name == device.device);
        let ledger = backend.map(|backend| backend.ledger().footprint()).unwrap_or_default();
        let witnessed = backend.filter(|backend| in_host_memory(*backend)).zip(grown);
        MemoryRow {
            device: device.device.clone(),
            planned_bytes: device.planned.total(),
            measured_bytes: ledger.total(),
            mapped_bytes: ledger.mapped(),
            witnessed_bytes: witnessed.map(|(backend, grown)| {
                let before = backend.layout().resident().total();
                (grown + before).saturating_sub(host - held(backend))
            }),
            purposes: purposes(&device.planned, &ledger),
        }
    };
    planned.iter().map(row).collect()
}

/// Two accounts of a device side by side.
fn purposes(planned: &Footprint, ledger: &Footprint) -> Vec<PurposeRow> {
    let named: BTreeSet<Purpose> = planned.iter().chain(ledger.iter()).map(|(purpose, _)| purpose).collect();
    let row = |purpose: Purpose| PurposeRow {
        purpose: purpose.to_string(),
        planned_bytes: planned.get(purpose),
        measured_bytes: ledger.get(purpose),
    };
    named.into_iter().map(row).collect()
}
