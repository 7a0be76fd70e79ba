//! Which block of a model lives on which device, decided by arithmetic before anything is loaded.
//!
//! Everything here is a pure function of three things: the [`Device`]s with their budgets and rates,
//! the [`Costs`] of every stretch of blocks on every device (exact, because the backends' own layouts
//! answer), and the [`Request`]. There is no I/O, no clock and no thread, so a plan for another
//! machine is as good as one for this machine.
//!
//! * [`plan`] places the blocks, or returns a [`Refusal`] that names the block, the bytes that are
//!   missing and the remedies that were themselves planned and found to fit.
//! * [`max_context`] is the largest context that fits.
//! * [`ladder::next`] says what to do when a device turned out to hold less than it promised, and
//!   [`ladder::back`] when it holds more again.
//!
//! # The shape of a plan
//! A [`Stage`] is a contiguous range of blocks. Unless the user gives a device map, stages stand in
//! the order disk, CPU, GPUs as listed: the slow devices hold the first blocks, so a hybrid run hands
//! hidden states up once and only one token id comes back.
//!
//! # Layers that stream
//! Layers of the host may [stream](Streaming) to the first GPU for long prompts. What that takes is a part of the
//! plan, and from how many tokens on it pays is computed from the devices' measured rates.
//!
//! # How the search works
//! What a stretch takes only grows with its range and its context. So for every first block a device
//! has one furthest block that it reaches, found by galloping from the reach of the block before, and
//! the best split is a shortest path over block boundaries: exact, and a few hundred questions to
//! [`Costs`] for a hundred blocks. Devices that share memory add the bytes used so far to the state.

#![forbid(unsafe_code)]

mod account;
mod context;
mod costs;
mod device;
mod device_map;
pub mod ladder;
mod machine;
mod plan;
mod refusal;
mod request;
mod search;
pub mod streaming;

pub use costs::Costs;
pub use device::{Device, DeviceClass, rates};
pub use machine::HANDOVER_SECONDS;
pub use plan::{Plan, Stage, max_context, plan};
pub use refusal::{Misfit, Reason, Refusal, Remedy, Shortage, refusal_with};
pub use request::{CONTEXT_FLOOR, CONTEXT_STEP, Policy, Request, Wanted};
pub use streaming::{Streamed, Streaming};
