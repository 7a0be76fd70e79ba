//! The seam between models and devices.
//!
//! A model is a list of fused [`Step`]s over [`Want`]s (the memory it asks for) and registers (its
//! activations). A [`Backend`] reserves the wants, fills them from a [`WeightSource`], and compiles a
//! [`Stretch`] of steps into a [`Program`] that is replayed for every token. Steps are semantics: a
//! backend decides how many dispatches each becomes. A dense Llama layer is five on a GPU.
//!
//! What a stretch costs is answered by a [`Layout`], which needs no device: the planner and the
//! allocator share that account, so that the [`Ledger`] equals the plan.
//!
//! [`conformance`] holds the one table of cases that every backend must pass.

#![forbid(unsafe_code)]

pub mod conformance;
mod device;
mod fault;
mod faulty;
mod footprint;
pub mod gpu;
pub mod kv;
mod ledger;
mod limited;
mod linear;
mod mapped;
mod profile;
mod program;
pub mod random;
pub mod rope;
pub mod sampler;
mod source;
mod step;
mod stretch;
mod want;

pub use device::{Backend, DeviceInfo, DeviceKind, Layout, Memory};
pub use fault::{Fault, Fut, human_bytes};
pub use faulty::{FaultCounts, FaultPlan, FaultSpec, Faulty};
pub use footprint::{Footprint, Purpose};
pub use kv::{KvRows, KvShape, KvSpan, KvType};
pub use ledger::{Ledger, LedgerRow};
pub use limited::{Limit, Limited};
pub use linear::{Arrangement, DType, Format, LinearShape, QuantFormat, Segment};
pub use mapped::{Mapped, MappedBytes, MappedQuantized, MappedScales};
pub use profile::StepCost;
pub use program::{Answer, Caps, Draw, Input, Output, Place, Program, Rows, Ticket};
pub use rope::{RopeShape, RopeTable};
pub use sampler::{SampleParams, Sampler, argmax, sample};
pub use source::{Canonical, WeightSource};
pub use step::{
    Act, Attend, Embed, Emit, EmitKind, Head, LinearStep, Moe, Norm, NormKind, Pairing, Pre, RopeUse, Step,
};
pub use stretch::{Reg, Stretch};
pub use want::{Kind, NormShape, Slot, Want, WantId};
