//! The next plan when memory that was promised is not there.

use crate::{Costs, Device, Plan, Refusal, Request, plan};

/// Plans again after an allocation on `device` has failed under `failed`, `shortfall` bytes short of
/// all that was planned there (0 where unknown).
///
/// The device's budget becomes what is known to fit, planned bytes less shortfall, so blocks move to
/// the next device of the stack or, where the request allows it, the context shrinks. The new budgets
/// come back beside the plan: pass them on to the next failure. Every step lowers a budget below what
/// was just planned there, so the ladder ends: in a plan that holds or in a [`Refusal`].
pub fn after_failure(
    devices: &[Device],
    costs: &dyn Costs,
    request: &Request,
    failed: &Plan,
    device: usize,
    shortfall: u64,
) -> (Vec<Device>, Result<Plan, Box<Refusal>>) {
    let mut devices = devices.to_vec();
    if let Some(pool) = devices.get(device).map(|device| device.pool.clone()) {
        // Devices of the same pool drew on the same memory.
        let planned = failed
            .stages
            .iter()
            .filter(|stage| devices.get(stage.device).is_some_and(|other| other.pool == pool))
            .fold(0_u64, |sum, stage| sum.saturating_add(stage.footprint.total()));
        let fits = planned.saturating_sub(shortfall.max(1));
        let device = &mut devices[device];
        if fits < device.budget {
            device.budget = fits;
            device.budget_source = "what fitted before an allocation failed".into();
        }
    }
    let next = plan(&devices, costs, request);
    (devices, next)
}
