//! What a submission costs, step class by step class.

/// The dispatches of one class in a submission: what they took on the device's own clock, and what they had to read.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct StepCost {
    /// The step class, as in `norm_gate_up`.
    pub class: String,
    /// How many dispatches are of it.
    pub dispatches: u64,
    /// Seconds of all of them, from the start to the end of each.
    pub seconds: f64,
    /// Bytes of weights and KV cache that they read; 0 where that is little, or depends on the data (experts).
    pub bytes: u64,
}
