//! `argmax.wgsl`: the greedy choice.

use super::Register;
use crate::pipeline::{Extent, Launch};
use halfbyte_shaders::{Flags, Kernel, Variant};

/// Chooses a token for each row of logits.
pub(crate) fn launch<'a>(logits: Register<'a>, vocabulary: usize, chosen: &'a wgpu::Buffer) -> Launch<'a> {
    let mut launch = Launch {
        variant: Variant { kernel: Kernel::Argmax, flags: Flags::default() },
        constants: vec![("VOCABULARY", vocabulary as f64), ("STRIDE", logits.stride as f64)],
        bindings: Vec::new(),
        grid: [Extent::Outputs(1), Extent::Fixed(1), Extent::Fixed(1)],
    };
    launch.read(1, logits.buffer);
    launch.write(2, chosen);
    launch
}
