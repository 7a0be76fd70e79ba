//! What things cost, without a device.

use crate::kernels::GROUP;
use crate::program::linear_of;
use crate::weight::{WeightLayout, aligned, unsupported};
use halfbyte_backend::{Caps, Fault, Footprint, Kind, Layout, NormShape, Purpose, Stretch};

/// Bytes of the buffer that uploads pass through.
pub(crate) const STAGING: u64 = 4 << 20;

/// The account of a CubeCL device's bytes.
#[derive(Debug, Clone)]
pub struct CubeLayout {
    device: String,
}

impl CubeLayout {
    /// The account of `device`, named as in `cuda:0`, which need not exist.
    pub fn new(device: impl Into<String>) -> Self {
        Self { device: device.into() }
    }

    /// The device's name.
    pub(crate) fn device(&self) -> &str {
        &self.device
    }

    /// Bytes of a norm's weight, and of its bias if it has one, padded to whole groups of columns.
    pub(crate) fn norm(shape: &NormShape) -> u64 {
        let vectors = if shape.bias.is_some() { 2 } else { 1 };
        aligned(shape.len.next_multiple_of(GROUP) as u64 * 4 * vectors)
    }
}

/// Bytes of a register of `width` columns for `rows` rows, each row padded to whole groups.
pub(crate) fn register(width: usize, rows: usize) -> u64 {
    aligned((width.next_multiple_of(GROUP) * rows) as u64 * 4)
}

impl Layout for CubeLayout {
    fn want(&self, kind: &Kind) -> Result<u64, Fault> {
        match kind {
            Kind::Linear(shape) => Ok(WeightLayout::of(&self.device, shape)?.bytes()),
            Kind::Norm(shape) => Ok(Self::norm(shape)),
            Kind::Rope(_) => Err(unsupported(&self.device, "a rope table")),
            Kind::Kv(_) => Err(unsupported(&self.device, "a KV cache")),
        }
    }

    fn program(&self, stretch: &Stretch, caps: &Caps) -> Result<Footprint, Fault> {
        for step in &stretch.steps {
            linear_of(&self.device, stretch, step)?;
        }
        let registers = stretch.widths.iter().map(|&width| register(width, caps.rows)).sum();
        Ok(Footprint::of(Purpose::Activations, registers))
    }

    fn resident(&self) -> Footprint {
        Footprint::of(Purpose::Staging, STAGING)
    }
}
