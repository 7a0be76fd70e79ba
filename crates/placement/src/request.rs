//! What is asked of a plan.

use crate::Streaming;
use std::collections::BTreeMap;

/// Contexts that the planner chooses are multiples of this many tokens, except that the exact bounds
/// of a request are candidates too.
pub const CONTEXT_STEP: usize = 256;

/// The planner gives up context for speed, but not below this many tokens (or the request's own upper
/// bound, where that is less).
pub const CONTEXT_FLOOR: usize = 2048;

/// How blocks are spread over devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Policy {
    /// The placement that decodes fastest by the devices' rates. One GPU that takes everything usually
    /// is; a software GPU usually is not, and the CPU takes everything instead.
    Auto,
    /// As few blocks as possible off the GPUs, and the GPUs' shares as equal as their budgets allow.
    ///
    /// accelerate caps all GPUs but the last at their share plus a quarter of the largest block, which
    /// drives blocks to the CPU when GPUs differ; here the sum of the squared shares is least.
    Balanced,
    /// As few blocks as possible off the GPUs, and as many as possible on the first GPU, then on the
    /// second.
    Sequential,
    /// Everything on the device of this name.
    Only(String),
    /// Device names by block name or prefix, as accelerate's `device_map`: the longest prefix that
    /// ends at a dot wins, `""` stands for everything, and a number `n` is the n-th GPU.
    Given(BTreeMap<String, String>),
}

/// The context that is asked for, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// This many, or a refusal.
    Exactly(usize),
    /// As many as sensible, up to this many.
    ///
    /// The placement is chosen at [`CONTEXT_FLOOR`] tokens; then the context grows for as long as this
    /// very placement holds it. So a model stays whole on a GPU with a smaller context down to the
    /// floor, and only below the floor do blocks move to the CPU. Where no placement holds the floor,
    /// the largest context that any placement holds is taken, down to [`Request::min_context`].
    AtMost(usize),
}

/// What is asked of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The context, in tokens.
    pub context: Wanted,
    /// With [`Wanted::AtMost`], the least context that is of any use.
    pub min_context: usize,
    /// How blocks are spread over devices.
    pub policy: Policy,
    /// Whether layers of the host stream to a GPU for prompts.
    pub streaming: Streaming,
}
