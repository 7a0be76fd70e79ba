//! What can go wrong on a device, as values.

use crate::Purpose;
use std::future::Future;
use std::pin::Pin;

/// The future of every backend call. Not `Send`: in the browser, GPU objects stay on their thread.
pub type Fut<'a, T> = Pin<Box<dyn Future<Output = Result<T, Fault>> + 'a>>;

/// A failed backend call. Nothing here ends the process: [`Fault::OutOfMemory`] climbs down the
/// ladder of placements, [`Fault::Lost`] rebuilds the device, the others refuse one request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// An allocation did not succeed; everything that was there before it is untouched.
    #[error(
        "{device}: {name} needs {} for {what}{}",
        human_bytes(*.wanted),
        .free.map(|free| format!(", {} is free", human_bytes(free))).unwrap_or_default()
    )]
    OutOfMemory {
        /// The device, as in `wgpu:0`.
        device: String,
        /// What was to be allocated, as in `model.layers.0.self_attn.qkv`.
        name: String,
        /// Bytes asked for.
        wanted: u64,
        /// Bytes that were free, where that is known.
        free: Option<u64>,
        /// What the bytes were for.
        what: Purpose,
    },
    /// The device is gone (driver reset, unplugged, out of memory while staging). Its contents are lost.
    #[error("{device} was lost: {reason}")]
    Lost {
        /// The device, as in `wgpu:0`.
        device: String,
        /// What the driver said.
        reason: String,
    },
    /// The device cannot do this at all; another may.
    #[error("{device} cannot run this: {what}")]
    Unsupported {
        /// The device, as in `wgpu:0`.
        device: String,
        /// What it lacks.
        what: String,
    },
    /// The weights could not be had: a broken checkpoint, an unreadable file.
    #[error("{0}")]
    Source(String),
    /// A setting of the environment or of options that cannot be met.
    #[error("{0}")]
    Setting(String),
    /// A request that contradicts its own program (too many rows, a position past the cache).
    #[error("invalid request: {0}")]
    Invalid(String),
    /// A defect of halfbyte.
    #[error("internal error (please report it): {0}")]
    Internal(String),
}

impl Fault {
    /// The refusal of a weight that would turn every answer into NaN: `tensor` of what is called `model`.
    pub fn not_finite(model: &str, tensor: &str) -> Self {
        Self::Source(format!(
            "{model}: tensor {tensor} holds NaN or infinity; download or convert the model again"
        ))
    }
}

/// `bytes` in the largest binary unit that keeps at least one digit before the point.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}
