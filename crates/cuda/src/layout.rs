//! What things cost, without a device.

use crate::held::kv_bytes;
use crate::kernels::GROUP;
use crate::program_plan::ProgramPlan;
use crate::weight::{WeightLayout, aligned};
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

impl Layout for CubeLayout {
    fn want(&self, kind: &Kind) -> Result<u64, Fault> {
        match kind {
            Kind::Linear(shape) => Ok(WeightLayout::of(&self.device, shape)?.bytes()),
            Kind::Norm(shape) => Ok(Self::norm(shape)),
            Kind::Rope(shape) => Ok(aligned(shape.bytes())),
            Kind::Kv(shape) => Ok(2 * aligned(kv_bytes(shape))),
        }
    }

    fn program(&self, stretch: &Stretch, caps: &Caps) -> Result<Footprint, Fault> {
        Ok(ProgramPlan::new(&self.device, stretch, caps)?.footprint())
    }

    fn resident(&self) -> Footprint {
        Footprint::of(Purpose::Staging, STAGING)
    }
}
