//! What each class of steps of a submission took.

use crate::bound::BoundStep;
use halfbyte_backend::{Reg, StepCost};
use std::time::Instant;

/// Adds up the times between the ends of steps.
pub(crate) struct Clock {
    /// The position of the last row.
    position: u64,
    since: Instant,
    costs: Vec<StepCost>,
}

impl Clock {
    /// A clock for a submission whose last row is at `position`.
    pub fn start(position: u64) -> Self {
        Self { position, since: Instant::now(), costs: Vec::new() }
    }

    /// Step `index` of `steps` has ended.
    pub fn step_ends(&mut self, index: usize, steps: &[BoundStep]) {
        let (now, class) = (Instant::now(), class(&steps[index], steps));
        let known = self.costs.iter().position(|cost| cost.class == class).unwrap_or_else(|| {
            self.costs.push(StepCost { class: class.into(), dispatches: 0, seconds: 0.0, bytes: 0 });
            self.costs.len() - 1
        });
        let cost = &mut self.costs[known];
        cost.dispatches += 1;
        cost.seconds += (now - self.since).as_secs_f64();
        cost.bytes += bytes(&steps[index], self.position);
        // Without the time of this function.
        self.since = Instant::now();
    }

    /// By class, in the order in which classes first came.
    pub fn costs(self) -> Vec<StepCost> {
        self.costs
    }
}

/// As GPUs name their dispatches, see `ARCHITECTURE.md`.
fn class(step: &BoundStep, steps: &[BoundStep]) -> &'static str {
    let attended =
        |reg: Reg| steps.iter().any(|step| matches!(step, BoundStep::Attend { step, .. } if step.out == reg));
    match step {
        BoundStep::Embed { .. } => "embed",
        BoundStep::Attend { .. } => "attend",
        BoundStep::Moe { .. } => "moe",
        BoundStep::Head { .. } => "head",
        BoundStep::Linear { step, .. } if step.gated => "norm_gate_up",
        BoundStep::Linear { step, .. } if attended(step.input) => "merge_linear",
        BoundStep::Linear { step, .. } if step.residual.is_some() => "linear_residual",
        BoundStep::Linear { .. } => "norm_linear",
    }
}

/// Bytes of weights and of the KV cache that a step reads when its row is at `position`; of a mixture of experts that
/// depends on the data.
fn bytes(step: &BoundStep, position: u64) -> u64 {
    match step {
        BoundStep::Attend { step, cache: Some(cache), .. } => {
            let shape = cache.read().shape;
            let seen = (position + 1).min(step.window.map_or(u64::MAX, |window| window as u64));
            2 * shape.kv_heads as u64 * shape.head_bytes() * seen
        }
        BoundStep::Moe { .. } => 0,
        step => step.matrix().map_or(0, |matrix| matrix.read().read_bytes()),
    }
}
